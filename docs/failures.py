"""The sentences that the source code can fail with, as the second half of troubleshooting.md.

python docs/failures.py        writes it; `make docs` does

A varying part of a sentence is shown as `…`.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from ssd_algo import errors

PAGE = Path(__file__).parent / "troubleshooting.md"
SOURCES = Path(errors.__file__).parent
MARK = "<!-- From here on made by `make docs` from the source code. -->\n"

# Headings, and whose sentences stand below each: paths below the package, the first that fits.
SECTIONS = {
    "Data": ("data/", "training/data.py", "training/model_channel.py"),
    "Weights and models": ("model/", "training/starting_point.py", "inference/"),
    "Requests to a server": ("serving/",),
    "Commands": ("cli", "contract/requests.py", "demo.py"),
    "Configuration, devices and hosts": ("",),
}
ERRORS = {name: each for name, each in vars(errors).items() if isinstance(each, type)}


@dataclass(frozen=True)
class Failure:
    """A sentence, the rule of the data that it belongs to if there is one, and how what has it ends."""

    rule: str
    sentence: str
    ending: str


Texts = list[tuple[int, str, ast.expr]]  # line, name, what is assigned to it


def failures(path: Path) -> Iterator[Failure]:
    """Those of a source file, in its order."""
    tree = ast.parse(path.read_text())
    assignments = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    texts = [
        (node.lineno, node.targets[0].id, node.value)
        for node in sorted(assignments, key=lambda node: node.lineno)
        if isinstance(node.targets[0], ast.Name)
    ]
    for node in ast.walk(tree):
        yield from _failures(node, texts)


def _failures(node: ast.AST, texts: Texts) -> Iterator[Failure]:
    match node:
        case ast.Call(func=ast.Attribute(attr="refuse" | "warn" as kind), args=[rule, _, text]):
            for name in _sentences(rule, texts):
                for sentence in _sentences(text, texts):
                    yield Failure(name, sentence, "a warning" if kind == "warn" else ending(errors.UserError))
        case ast.Tuple(elts=[_, ast.Constant(value=str(rule)), ast.Constant() | ast.IfExp() as text]):
            # labels.check_objects has a table of which objects are wrong, the rule, and the sentence.
            for sentence in _sentences(text, texts):
                if sentence.endswith("."):
                    yield Failure(rule, sentence, ending(errors.UserError))
        case ast.Call(func=ast.Name(id="BadLabel"), args=[ast.Constant(value=str(rule)), text]):
            for sentence in _sentences(text, texts):
                yield Failure(rule, f"{sentence}; correct the label and pack the file again.", ending(errors.UserError))
        case ast.Call(func=ast.Name(id=name), args=[text, *_]) if name in ERRORS:
            for sentence in _sentences(text, texts):
                yield Failure("", sentence, ending(ERRORS[name]))


def ending(error: type) -> str:
    """How what has an error ends."""
    if issubclass(error, errors.RequestError):
        return f"HTTP {error.http_status}"
    return f"{error.prefix}, exit code {error.exit_code}"


def _sentences(node: ast.expr, texts: Texts) -> list[str]:
    """What a text may be: both branches of a condition; nothing where it is another error's or somebody else's."""
    if isinstance(node, ast.Name):
        before = [value for line, name, value in texts if name == node.id and line <= node.lineno]
        return _sentences(before[-1], texts) if before and not isinstance(before[-1], ast.Name) else []
    if isinstance(node, ast.IfExp):
        return _sentences(node.body, texts) + _sentences(node.orelse, texts)
    text = re.sub(r"(…\s*)+", "… ", _text(node))
    text = re.sub(r"… (?=[,;:)\"'%>_]|\.(?:\s|$))", "…", text)
    return [text.strip()] if isinstance(node, ast.Constant) or len(re.findall(r"[a-z]{2,}", text)) > 2 else []


def _text(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return re.sub(r"\{[\w.:]*\}", "…", text)
        case ast.JoinedStr(values=values):
            return "".join(_text(each) for each in values)
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return _text(left) + _text(right)
    return "…"


def _section(path: str) -> str:
    return next(title for title, parts in SECTIONS.items() if path.startswith(parts))


def all_failures() -> dict[str, list[Failure]]:
    """Those of the package by section, without repetitions."""
    found: dict[str, list[Failure]] = {title: [] for title in SECTIONS}
    for path in sorted(SOURCES.rglob("*.py")):
        for failure in failures(path):
            section = found[_section(str(path.relative_to(SOURCES)))]
            if failure not in section:
                section.append(failure)
    return found


def _escaped(text: str) -> str:
    return re.sub(r"([|*_`<>\[\]])", r"\\\1", " ".join(text.split()))


def generated() -> str:
    """The second half of the page."""
    lines = ["## How failures end", "", "| who can act | ends with |", "| --- | --- |"]
    for error in ERRORS.values():
        if hasattr(error, "exit_code") or hasattr(error, "http_status"):
            lines.append(f"| {_escaped(error.__doc__ or '')} | {ending(error)} |")
    lines.append("")
    for title, found in all_failures().items():
        lines += [f"## {title}", ""]
        ruled = sorted((each for each in found if each.rule), key=lambda each: (each.ending == "a warning", each.rule))
        if ruled:
            lines += ["| rule | sentence, after its place | ends with |", "| --- | --- | --- |"]
            for (rule, end), same in groupby(ruled, key=lambda each: (each.rule, each.ending)):
                sentences = "<br>".join(_escaped(each.sentence) for each in same)
                lines.append(f"| {rule} | {sentences} | {end} |")
            lines.append("")
        others = sorted((each for each in found if not each.rule), key=lambda each: each.sentence.lstrip('…" '))
        if others:
            lines += ["| sentence | ends with |", "| --- | --- |"]
            lines += [f"| {_escaped(each.sentence)} | {each.ending} |" for each in others]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def page() -> str:
    """The whole page: what is written by hand, then what is not."""
    return PAGE.read_text().partition(MARK)[0] + MARK + "\n" + generated()


if __name__ == "__main__":
    PAGE.write_text(page())
