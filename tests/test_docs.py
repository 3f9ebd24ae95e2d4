"""The documentation: links lead somewhere, commands run, examples are valid, lists are complete.

What a page shows stands in fenced blocks. Blocks `sh` and `python` of a section run in their order, in a folder of the
section's own with what a reader would have there. What cannot run here is named in ELSEWHERE, with the reason and the
test that stands for it; so a new command without a test fails.
"""

import ast
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from conftest import ROOT, SERVE, SMALL, TRAIN, Run

from ssd_algo import demo
from ssd_algo.contract.log_lines import METRIC_DEFINITIONS
from ssd_algo.data import recordio

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])
LANGUAGES = {"sh", "python", "json", "xml", "text"}
COMMAND = r"(\w+=\S+ +)*(\.venv/bin/|(ssd-algo|python|pip|make|docker|curl|aws|git|sh|cd|mkdir|cp|cat|ls) )"

# A command (from its start) -> why it does not run here, and what stands for it.
ELSEWHERE = {
    r"make demo": "two minutes: tests/test_demo.py has all but the training",
    r"make install": "what runs this was installed by it",
    r"make (test|lint)\b(?!-)|\.venv/bin/(pytest|ruff)": "it runs this",
    r"make docs": "needs `make install`: test_the_second_half_of_troubleshooting_is_made and tests/test_hyperparameters.py",
    r"make bench": "hours: each benchmark prints figures of the documentation",
    r"make lock": "asks the package registry: the Dockerfile and `make install` take what it leaves",
    r"make sbom": "needs a second environment: tests/test_audit.py",
    r"make audit": "asks advisory services: tests/test_audit.py",
    r"make (image|test-image)": "needs Docker: tests/image/test_image.py",
    r"docker run .*(--read-only|--network)": "needs Docker: tests/image/test_confined.py",
    r"docker run": "needs Docker: tests/image/test_image.py",
    r"docker network create": "needs Docker: tests/image/test_image.py",
    r"docker (tag|push)|aws ecr": "needs a registry of one's own",
    r"aws sagemaker create-training-job": "needs an account: tests/test_request.py holds requests against the API",
    r".venv/bin/ssd-algo check .*s3://": "needs a bucket: tests/test_s3.py",
    r".venv/bin/ssd-algo predict --endpoint": "needs an account: tests/test_predict.py",
    r'SAGEMAKER_BASE_DIR="\$PWD/host-': "two minutes: tests/test_hosts.py",
    r"python -m venv notebooks|notebooks/bin/jupyter": "asks the package registry: tests/sdk/test_notebooks.py",
    r"git ": "of the contributor's own copy",
}
# What a reader puts in the place of something else; of the pages where it stands.
REPLACED = {
    "http://127.0.0.1:8080": "{url}",
    '"epochs": "40"': '"epochs": "1", "image_shape": "128"',
}


@dataclass(frozen=True)
class Block:
    """A fenced block: the heading it stands below, the line where it begins, its language and content."""

    section: str
    line: int
    language: str
    text: str


def split(page: Path) -> tuple[list[Block], list[tuple[int, str]]]:
    """The blocks of a page, and its other lines with their numbers."""
    blocks, prose, section, fenced = [], [], "", None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = re.fullmatch(r" *```(\w*)", line)
        if fence and fenced is None:
            fenced = (number, fence[1], [])
        elif fence:
            blocks.append(Block(section, fenced[0], fenced[1], textwrap.dedent("\n".join(fenced[2]))))
            fenced = None
        elif fenced:
            fenced[2].append(line)
        else:
            section = line.lstrip("# ") if line.startswith("#") else section
            prose.append((number, line))
    assert fenced is None, page
    return blocks, prose


def commands(text: str) -> Iterator[str]:
    """The commands of a block, each with the lines that belong to it."""
    lines, end = [], None
    for line in text.splitlines():
        lines.append(line)
        here = re.search(r"<<(\w+)$", line)
        end = here[1] if here else end
        if (line == end or end is None) and not line.endswith("\\"):
            if any(lines):
                yield "\n".join(lines)
            lines, end = [], None
    assert not lines, text


def elsewhere(command: str) -> str | None:
    """The pattern of ELSEWHERE that a command fits."""
    plain = re.sub(r"\s*\\\n\s*", " ", command)
    return next((pattern for pattern in ELSEWHERE if re.match(pattern, plain)), None)


def sections() -> list[tuple[str, str]]:
    """Pages and headings with something to run."""
    found = []
    for page in PAGES:
        for block in split(page)[0]:
            runs = block.language == "python" or (
                block.language == "sh" and not all(map(elsewhere, commands(block.text)))
            )
            key = (str(page.relative_to(ROOT)), block.section)
            if runs and key not in found:
                found.append(key)
    return found


@pytest.fixture(scope="module")
def reader(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: a checkout's commands, a base folder with 8 photos and a model, the photos also as VOC."""
    folder = tmp_path_factory.mktemp("reader")
    data = folder / "base" / "input" / "data"
    demo.write_channels(data, 8, 4, np.random.default_rng(2))
    config = data.parent / "config"
    config.mkdir()
    (config / "hyperparameters.json").write_text(json.dumps(SMALL | {"num_training_samples": "8"}))
    for name in ("model", "output"):
        shutil.copytree(trained.base / name, folder / "base" / name, copy_function=os.link)
    shutil.copytree(folder / "base" / "output", folder / "earlier" / "output", copy_function=os.link)
    shutil.copytree(data / "train", folder / "photos")
    (folder / "annotations").mkdir()
    for path in (data / "train_annotation").iterdir():
        (folder / "annotations" / f"{path.stem}.xml").write_text(voc(json.loads(path.read_text())))
    (folder / "more").mkdir()
    os.link(folder / "base" / "output" / "model.tar.gz", folder / "model.tar.gz")
    for channel in ("holdout", "holdout_annotation"):
        shutil.copytree(data / channel.replace("holdout", "validation"), folder / "data" / channel)
    for name, photo in zip(("a.jpg", "b.jpg", "photo.jpg"), sorted((data / "train").iterdir()), strict=False):
        shutil.copy(photo, folder / name)
    shutil.copy(folder / "a.jpg", folder / "more" / "c.jpg")
    commands = folder / ".venv" / "bin"
    commands.mkdir(parents=True)
    (folder / "serve.py").write_text(SERVE_ONCE)
    once, command = f'"{sys.executable}" "{folder}/serve.py"', f'"{sys.executable}" -m ssd_algo.cli "$@"'
    for name, line in {
        "train": f'exec "{TRAIN[0]}" "{TRAIN[1]}"',
        "serve": f'exec {once} "{SERVE[1]}"',
        "ssd-algo": f'[ "$1" != serve ] || exec {once} -m ssd_algo.cli "$@"\nexec {command}',
        "python": f'exec "{sys.executable}" "$@"',
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{line}\n")
        (commands / name).chmod(0o755)
    for channel in ("train", "validation"):
        pack = [
            commands / "ssd-algo",
            "pack",
            data / channel,
            data / f"{channel}_annotation",
            folder / f"{channel}.rec",
        ]
        subprocess.run(pack, check=True, capture_output=True)
    return folder


# Runs its arguments, a server, until that is ready for requests.
SERVE_ONCE = """
import os, pathlib, sys
from ssd_algo import demo
with demo.serving([sys.executable, *sys.argv[1:]], dict(os.environ), pathlib.Path("serve.log")):
    pass
"""


def voc(annotation: dict) -> str:
    names = {each["class_id"]: each["name"] for each in annotation["categories"]}
    objects = "".join(
        f"<object><name>{names[each['class_id']]}</name><bndbox><xmin>{each['left'] + 1}</xmin><ymin>{each['top'] + 1}"
        f"</ymin><xmax>{each['left'] + each['width']}</xmax><ymax>{each['top'] + each['height']}</ymax></bndbox></object>"
        for each in annotation["annotations"]
    )
    return f"<annotation><filename>{annotation['file']}</filename>{objects}</annotation>"


@pytest.mark.parametrize(("page", "section"), sections(), ids=lambda each: each)
def test_what_a_section_shows_runs(page: str, section: str, reader: Path, url: str, tmp_path: Path) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(reader, folder, copy_function=os.link)
    script = ["set -euo pipefail"]
    for number, block in enumerate(each for each in split(ROOT / page)[0] if each.section == section):
        text = block.text
        for old, new in REPLACED.items():
            text = text.replace(old, new.format(url=url))
        if block.language == "sh":
            script += [command for command in commands(text) if not elsewhere(command)]
        elif block.language == "python":
            (folder / f"block{number}.py").write_text(text)
            script.append(f"python -W ignore block{number}.py")
    path = f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "NO_PROXY": "127.0.0.1", "CURL_HOME": str(folder)}
    (folder / ".curlrc").write_text("fail-with-body\nsilent\n")
    with (folder / "out").open("w") as out:
        process = subprocess.Popen(
            ["bash", "-c", "\n".join(script)],
            cwd=folder,
            env=environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        try:
            code = process.wait(300)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what was left running behind it
    said = (folder / "out").read_text()
    assert code == 0, said
    assert "Traceback" not in said


def test_every_command_runs_here_or_is_named() -> None:
    """And the other way round: nothing is named that no page shows, and what stands for it is there."""
    named, replaced = set(), set()
    for page in PAGES:
        blocks, prose = split(page)
        for block in blocks:
            where = f"{page.name}, line {block.line}"
            assert block.language in LANGUAGES, f"{where}: say what it is, one of {LANGUAGES}"
            if block.language == "sh":
                named |= {elsewhere(command) for command in commands(block.text)}
            if block.language == "text":
                assert not re.search(f"^{COMMAND}", block.text, re.M), f"{where}: a command; make the block one of sh"
            replaced |= {old for old in REPLACED if old in block.text}
        for number, line in prose:
            assert not line.startswith("    "), f"{page.name}, line {number}: fence it and say what it is"
    assert named - {None} == ELSEWHERE.keys()
    assert replaced == REPLACED.keys()
    for reason in ELSEWHERE.values():
        for test in re.findall(r"tests/\S+\.py", reason):
            assert (ROOT / test).is_file(), test


def test_targets_of_make() -> None:
    """Each `make TARGET`, also in a sentence, is one."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        blocks, prose = split(page)
        shown = re.findall(r"^make ([a-z-]+)", "\n".join(block.text for block in blocks), re.M)
        shown += re.findall(r"`make ([a-z-]+)", "\n".join(line for _, line in prose))
        assert set(shown) <= targets, page


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    titles = [line.lstrip("# ") for _, line in split(page)[1] if line.startswith("#")]
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title).lower()).replace(" ", "-") for title in titles
    }


def links() -> Iterator[tuple[Path, str]]:
    """Every link within the repository, of pages and of notebooks."""
    for page in PAGES:
        prose = "\n".join(line for _, line in split(page)[1])
        yield from ((page, target) for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "code", prose)))
    for notebook in ROOT.glob("examples/*.ipynb"):
        for cell in json.loads(notebook.read_text())["cells"]:
            if cell["cell_type"] == "markdown":
                yield from ((notebook, target) for target in re.findall(r"\]\(([^)\s]+)\)", "".join(cell["source"])))


def test_links_lead_somewhere() -> None:
    broken = []
    for page, target in links():
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken
    assert any("#" in target for _, target in links())


def test_every_page_is_in_the_readme() -> None:
    from_readme = {(page.parent / target).resolve() for page, target in links() if page == ROOT / "README.md"}
    assert {page for page in PAGES if page.parent != ROOT / "examples"} - {ROOT / "README.md"} <= from_readme


def test_pages_that_the_code_names_are_there() -> None:
    sources = [*ROOT.glob("src/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/*.py"), ROOT / "Makefile"]
    named = {page for path in sources for page in re.findall(r"\bdocs/\w+\.\w+\b", path.read_text())}
    assert "docs/serving.md" in named
    assert all((ROOT / page).is_file() for page in named)


def examples(page: str, language: str, word: str) -> list[str]:
    """Blocks of a language with a word in them."""
    return [block.text for block in split(ROOT / page)[0] if block.language == language and word in block.text]


def ssd_algo(*arguments: object) -> str:
    command = [sys.executable, "-m", "ssd_algo.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stderr + done.stdout
    return done.stdout


def folders(base: Path, *names: str) -> list[Path]:
    made = [base / name for name in names]
    for folder in made:
        folder.mkdir(parents=True)
    return made


def photo(path: Path) -> None:
    """Of the size that the examples speak of."""
    noise = np.random.default_rng(len(str(path))).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), noise)


def record(line: str, image: Path) -> bytes:
    """The payload that im2rec --pack-label makes of a line of its .lst file."""
    number, *label, name = line.split("\t")
    assert name == image.name
    values = np.asarray(label, dtype="<f4")
    header = np.zeros((), dtype=[("flag", "<u4"), ("label", "<f4"), ("id", "<u8"), ("id2", "<u8")])
    header["flag"], header["id"] = len(values), number
    return header.tobytes() + values.tobytes() + image.read_bytes()


def test_the_smallest_channels_are_valid(tmp_path: Path) -> None:
    """Each of the formats that train reads, as `ssd-algo check` says: one object, no fault, no warning."""
    (annotation,) = examples("docs/data.md", "json", '"file": "a.jpg"')
    (manifest,) = examples("docs/data.md", "json", "source-ref")
    (line,) = examples("docs/data.md", "text", "\ta.jpg")
    for channel in ("train", "validation"):
        pictures, labels = folders(tmp_path / "json", channel, f"{channel}_annotation")
        photo(pictures / "a.jpg")
        (labels / "a.json").write_text(annotation)
        (pictures,) = folders(tmp_path / "manifest", channel)
        photo(pictures / "a.jpg")
        (pictures / "a.manifest").write_text(manifest)
        (records,) = folders(tmp_path / "records", channel)
        with (records / "a.rec").open("wb") as file:
            recordio.write_record(file, record(line, tmp_path / "json" / channel / "a.jpg"))
    for kind in ("json", "manifest", "records"):
        said = ssd_algo("check", "--num-classes", 1, tmp_path / kind)
        assert said.count("1 images, 1 objects") == 2, said
        assert said.endswith("train takes this data.\n")


@pytest.mark.parametrize(
    ("language", "word", "name"), [("xml", "<annotation>", "a.xml"), ("json", "bbox", "coco.json")]
)
def test_the_smallest_sets_are_packed(language: str, word: str, name: str, tmp_path: Path) -> None:
    (text,) = examples("docs/data.md", language, word)
    pictures, labels = folders(tmp_path, "photos", "annotations")
    photo(pictures / "a.jpg")
    (labels / name).write_text(text)
    said = ssd_algo("pack", pictures, labels / name if language == "json" else labels, tmp_path / "a.rec")
    assert said == f"{tmp_path}/a.rec: 1 images, 1 objects.\n  class 0: 1 objects  dog\n"


def test_examples_can_be_parsed() -> None:
    for page in PAGES:
        for block in split(page)[0]:
            if block.language == "json":
                json.loads(block.text)
            if block.language == "xml":
                ElementTree.fromstring(block.text)


def test_the_metric_definitions_of_the_readme() -> None:
    (block,) = examples("README.md", "python", "metric_definitions")
    assert ast.literal_eval(block.partition("= ")[2]) == METRIC_DEFINITIONS


def test_the_tree_names_every_module() -> None:
    """And nothing that is not there."""
    (tree,) = examples("docs/architecture.md", "text", "src/ssd_algo/")
    parents: list[tuple[int, str]] = []
    named = set()
    for line in tree.splitlines():
        indent, names = len(line) - len(line.lstrip()), re.split(r"  +", line.strip())[0].split()
        if indent > 14:  # a description goes on
            continue
        parents = [(other, name) for other, name in parents if other < indent]
        above = "".join(name for _, name in parents)
        named |= {above + name for name in names}
        if names[-1].endswith("/"):
            parents.append((indent, names[-1]))
    assert all((ROOT / name).exists() for name in named), [name for name in named if not (ROOT / name).exists()]
    modules = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "src" / "ssd_algo").rglob("*")
        if path.suffix in (".py", ".html", ".jinja") and path.name != "__init__.py" and path.parent.name != "programs"
    }
    assert modules <= named, modules - named
    folders = {
        f"{path.name}/" for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "src", "base"))
    }
    assert folders - {"build/", "dist/"} <= {name.split("/")[0] + "/" for name in named}


def failures():
    """docs/failures.py as a module."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import failures
    finally:
        sys.path.pop(0)
    return failures


def test_the_second_half_of_troubleshooting_is_made() -> None:
    assert failures().PAGE.read_text() == failures().page(), "run `make docs`"


def fixed_parts(text: str) -> list[str]:
    return [part for part in (each.strip() for each in text.split("…")) if len(part.split()) > 1]


def test_sentences_that_the_documentation_quotes_are_the_codes() -> None:
    """Code spans of several words in the first half of troubleshooting, up to what the built-in says."""
    made = failures()
    strings = " ".join(
        " ".join(str(node.value).split())
        for path in made.SOURCES.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
    )
    sentences = [each.sentence for found in made.all_failures().values() for each in found]
    half = made.PAGE.read_text().partition(made.MARK)[0].partition("## What the built-in said")[0]
    quoted = [" ".join(span.split()) for span in re.findall(r"`([^`]*)`", half)]
    quoted = [span for span in quoted if len(span.split()) > 4 and not span.startswith(("curl ", "exec:"))]
    assert len(quoted) > 10
    for span in quoted:
        parts = fixed_parts(span)
        assert parts
        for part in parts:
            assert part in strings or any(part in sentence for sentence in sentences), f"{span}: {part}"


def test_rules_of_the_data_are_those_of_the_code() -> None:
    """Each rule that a sentence is told under stands in a table of docs/data.md, and no other does."""
    made = failures()
    rules = {each.rule for found in made.all_failures().values() for each in found} - {""}
    page = (ROOT / "docs" / "data.md").read_text().partition("## Rules")[2]
    cells = {cell for row in re.findall(r"^\| ([^|*]+) \|", page, re.M) for cell in row.split(", ")} - {
        "rule",
        "warning",
        "---",
    }
    assert rules <= cells, rules - cells
    strings = {
        node.value
        for path in made.SOURCES.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
    }
    assert cells <= strings, cells - strings
