"""Ctrl-C, SIGTERM and SIGHUP: the round in flight is finished and saved before the signal has its usual effect."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """Notes the first signal that comes while rounds run; a second one has its usual effect at once.

    A context. A signal that was ignored before (SIGHUP under nohup) stays ignored, and before `begin` every signal has
    its usual effect, because there is nothing to save. Handlers belong to the main thread: in another one nothing is
    caught.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._begun = False
        self._usual: dict[int, signal.Handlers] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                usual = signal.getsignal(number)
                if usual not in (signal.SIG_IGN, None):  # None: a handler that is not Python's
                    self._usual[number] = usual  # type: ignore[assignment]  # or a function of the user's
                    signal.signal(number, self._note)
        return self

    def begin(self) -> None:
        """From now on there is something to save."""
        self._begun = True

    def __exit__(self, *error: object) -> None:
        for number, usual in self._usual.items():
            signal.signal(number, usual)
        self._usual.clear()

    def take_effect(self, say: Callable[[str], None]) -> None:
        """Where a signal came: says so, by its name, and lets it do what it does without us."""
        if self.signal is not None:
            say(signal.Signals(self.signal).name)
            signal.raise_signal(self.signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None or not self._begun:
            self.__exit__()
            signal.raise_signal(number)
            return
        self.signal = number
        with contextlib.suppress(OSError):  # not print: the handler may stand in the middle of another print
            os.write(2, b"finishing the round and saving it; the same signal again stops at once\n")
