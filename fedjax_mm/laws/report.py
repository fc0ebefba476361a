"""What a check found: a table of the laws, with what deviates and by how much."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from fedjax_mm.checks import check_callable, say
from fedjax_mm.laws.case import Case, DoesNotApply
from fedjax_mm.laws.deviation import Deviation

Law = Callable[[Case], Deviation]


class LawBroken(AssertionError):
    """A method breaks a law."""


class Result(NamedTuple):
    """What one law found."""

    law: str
    """The law's name."""
    passed: bool
    """Whether the law holds, or does not apply."""
    deviation: float
    """The largest deviation; infinite where the law itself came to an error."""
    tolerance: float
    """The largest deviation that the law allows."""
    message: str = ""
    """What deviates, what the law could not look at, or why it does not apply."""
    skipped: bool = False
    """Whether the law does not apply."""

    @property
    def outcome(self) -> str:
        """The result in a word, as the table has it."""
        return "skipped" if self.skipped else "passed" if self.passed else "FAILED"


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """The results of all laws; printed, it is a table."""

    results: tuple[Result, ...]

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    def __getitem__(self, law: str) -> Result:
        """The result of the law of this name."""
        return next(result for result in self.results if result.law == law)

    @property
    def passed(self) -> bool:
        """Whether no law is broken."""
        return not self.failed

    @property
    def failed(self) -> list[str]:
        """The names of the laws that are broken."""
        return [result.law for result in self.results if not result.passed]

    @property
    def skipped(self) -> list[str]:
        """The names of the laws that do not apply."""
        return [result.law for result in self.results if result.skipped]

    def raise_if_failed(self) -> None:
        """Raises LawBroken, with the lines of the laws that are broken."""
        if self.failed:
            raise LawBroken("\n" + _table([result for result in self.results if not result.passed]))

    def __str__(self) -> str:
        held = len(self.results) - len(self.failed) - len(self.skipped)
        counts = f"{held} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"
        return f"{_table(self.results)}\n{counts}"

    __repr__ = __str__


def try_law(law: Law, case: Case) -> Result:
    """What the law finds. An error within it counts as a law that is broken."""
    if not isinstance(case, Case):
        raise ValueError(f"case is {say(case)}; give what make_case returns")
    check_callable("law", law, "of a Case, as those in laws.LAWS")
    name = getattr(law, "__name__", str(law))
    try:
        found = law(case)
    except DoesNotApply as reason:
        return Result(name, True, 0.0, 0.0, str(reason), skipped=True)
    except Exception as error:  # the method's own, of any kind
        first = (str(error).splitlines() or [""])[0]
        return Result(name, False, math.inf, 0.0, f"{type(error).__name__}: {first}")
    return Result(name, found.within, found.size, found.tolerance, found.note if found.within else found.where)


def _table(results: tuple[Result, ...] | list[Result]) -> str:
    rows = [("law", "outcome", "deviation", "allowed", "")]
    for result in results:
        size, allowed = ("", "") if result.skipped else (f"{result.deviation:.2g}", f"{result.tolerance:.2g}")
        rows.append((result.law.replace("_", " "), result.outcome, size, allowed, result.message))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
