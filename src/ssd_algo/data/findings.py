"""What is wrong with an input: every fault is collected, then told together."""

import re
from collections import Counter
from dataclasses import dataclass, field

from ssd_algo.errors import UserError

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_SHOWN = 10  # warnings of a rule in a log
_LONGEST = 700  # characters of one sentence; the platform shows 1024 of a failure, which has more to say


def printable(text: str) -> str:
    """A text with control characters, and bytes of file names that are no text, as escapes."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault, or one thing to be warned of.

    Attributes
    ----------
    rule : str
        The rule that is broken, in a few words; the same for all findings of a kind.
    where : str
        File, record or channel, with the object's index where there is one.
    text : str
        What is wrong, with the value, and what to do.
    """

    rule: str
    where: str
    text: str

    def __str__(self) -> str:
        sentence = printable(f"{self.where}: {self.text}")
        return sentence if len(sentence) <= _LONGEST else sentence[: _LONGEST - 1] + "…"


@dataclass
class Findings:
    """Faults, for which the job is refused, and warnings, in the order in which they were found."""

    faults: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)

    def refuse(self, rule: str, where: str, text: str) -> None:
        self.faults.append(Finding(rule, where, text))

    def warn(self, rule: str, where: str, text: str) -> None:
        self.warnings.append(Finding(rule, where, text))

    def extend(self, others: "Findings") -> None:
        self.faults += others.faults
        self.warnings += others.warnings

    def short_warnings(self) -> list[str]:
        """The warnings as sentences, of each rule the first few and how many more there are."""
        seen: Counter[str] = Counter()
        sentences = []
        for warning in self.warnings:
            seen[warning.rule] += 1
            if seen[warning.rule] <= _SHOWN:
                sentences.append(str(warning))
        more = [f"{count - _SHOWN} more of the kind: {rule}." for rule, count in seen.items() if count > _SHOWN]
        return sentences + more

    def grouped_faults(self) -> str:
        """All faults, a line each, under the rule that they break."""
        lines = []
        for rule, count in Counter(fault.rule for fault in self.faults).items():
            lines += [f"{count} x {rule}", *(f"  {fault}" for fault in self.faults if fault.rule == rule)]
        return "\n".join(lines)

    def raise_faults(self) -> None:
        """Go on only without faults.

        Raises
        ------
        UserError
            Naming the first fault of the rule that is broken most often, and how many more there are.
        """
        if not self.faults:
            return
        rule, count = Counter(fault.rule for fault in self.faults).most_common(1)[0]
        first = next(fault for fault in self.faults if fault.rule == rule)
        others = len(self.faults) - count
        more = [f"{count - 1} more like it"] * (count > 1) + [f"{others} of other kinds"] * (others > 0)
        raise UserError(
            str(first) + (f" ({' and '.join(more)}; the log and data_check.json list all.)" if more else "")
        )
