"""A progress bar for a terminal and for a Jupyter notebook."""

import sys
import time
from collections.abc import Callable, Mapping

import jax

from fedjax_mm.run.rounds import Round


class Progress:
    """Shows rounds, rounds per second, the last score and the time left, where somebody may be looking.

    force: show it also where the output is neither a terminal nor a notebook. Of several processes the first one shows.
    """

    def __init__(self, start: int, rounds: int, force: bool = False):
        self.start, self.rounds, self.score, self.scored = start, rounds, "", False  # a loss, until there is a score
        self.begun: float | None = None
        self.show: Callable[[int, str, str, float | None], None] | None = None
        self.close: Callable[[], None] = lambda: None
        if jax.process_index() != 0:
            return
        if _in_notebook():
            self.show = _notebook_bar(rounds)
        elif force or (sys.stdout is not None and sys.stdout.isatty()):  # a daemon has none
            self.show, self.close = _terminal_bar(start, rounds, force)

    def reads_state(self, number: int) -> bool:
        """Never."""
        return False

    def __call__(self, done: Round, row: Mapping[str, float]) -> None:
        now = time.perf_counter()
        # The first round is compiled too: speed counts from its end.
        speed = (done.number - self.start - 1) / (now - self.begun) if self.begun else 0.0
        self.begun = self.begun or now
        scored = [key for key in row if key.startswith(("test/", "own/"))]
        if shown := scored or ([key for key in row if key.endswith("/loss")] if not self.scored else []):
            self.score = f"{shown[0]} {row[shown[0]]:.4g}"
        self.scored |= bool(scored)
        if self.show:
            left = (self.rounds - done.number) / speed if speed else None
            self.show(done.number, _speed(speed), self.score, left)


def _terminal_bar(start: int, rounds: int, force: bool) -> tuple[Callable, Callable]:
    """(what shows a round, what ends the bar): a line that stays below whatever is printed meanwhile."""
    from rich import progress as rich
    from rich.console import Console

    bar = rich.Progress(
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("rounds  {task.fields[speed]}  {task.fields[score]}"),
        rich.TimeRemainingColumn(compact=True),
        console=Console(force_terminal=True) if force else None,
        transient=True,
    )
    task = bar.add_task("", total=rounds, completed=start, speed="", score="")
    bar.start()
    return lambda number, speed, score, left: bar.update(task, completed=number, speed=speed, score=score), bar.stop


def _notebook_bar(rounds: int) -> Callable:
    """What shows a round: a line of text in the cell's output, which needs no widgets."""
    from IPython.display import display

    cell = display({"text/plain": ""}, raw=True, display_id=True)

    def show(number: int, speed: str, score: str, left: float | None) -> None:
        assert cell is not None  # with an id, display gives a handle
        cell.update({"text/plain": _line(number, rounds, speed, score, left)}, raw=True)

    return show


def _line(number: int, rounds: int, speed: str, score: str, left: float | None) -> str:
    filled = round(30 * number / rounds)
    minutes, seconds = divmod(round(left or 0), 60)
    rest = f"  {minutes}:{seconds:02d} left" if left is not None and number < rounds else ""
    return f"[{'#' * filled}{'.' * (30 - filled)}] {number}/{rounds} rounds  {speed}  {score}{rest}"


def _speed(rounds_per_second: float) -> str:
    if not rounds_per_second:
        return ""
    if rounds_per_second < 1:
        return f"{1 / rounds_per_second:.3g} s/round"
    return f"{rounds_per_second:.3g} rounds/s"


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this; IPython in a terminal has a terminal."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and type(shell).__name__ != "TerminalInteractiveShell"
