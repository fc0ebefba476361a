"""What the loaders are asked for: each check raises a ValueError of one sentence that names the argument."""

import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from fedjax_mm.checks import is_whole


def check_whole(least: int, **named: Any) -> None:
    """Raises ValueError for the first of the named arguments that is no whole number of `least` or more.

    >>> check_whole(1, image=96, length=40)
    """
    for name, value in named.items():
        if not is_whole(value, least):
            raise ValueError(f"{name} is {value!r}; give a whole number of {least} or more")


def check_limit(**named: Any) -> None:
    """Raises ValueError for the first of the named arguments that is neither None, for all, nor a number from 1 on."""
    for name, value in named.items():
        if value is not None and not is_whole(value, 1):
            raise ValueError(f"{name} is {value!r}; give a whole number from 1 on, or None for all")


def check_names(name: str, value: Any, known: Sequence[str] = ()) -> None:
    """Raises ValueError where an argument is no tuple of different names, or names what is not known (where said)."""
    example = ", ".join(map(repr, known)) or "'a', 'b'"
    texts = [] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} is {value!r}; give a tuple of names, as ({example})")
    if len(set(texts)) < len(texts):
        raise ValueError(f"{name} is {value!r}, which names something twice; name each once")
    if known and (unknown := [text for text in texts if text not in known]):
        raise ValueError(f"{name} has {unknown[0]!r}; choose from {', '.join(known)}")


def check_folder(name: str, value: Any) -> pathlib.Path:
    """Returns an argument that is a path; raises ValueError where it is none."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ValueError(f"{name} is {value!r}; give the path, as text or as pathlib.Path")
    return pathlib.Path(value)


def say_fewer(what: str, there: int, **limit: int | None) -> None:
    """Says in the log that there is less than a limit allows; a limit is what is taken at most."""
    for name, number in limit.items():
        if number is not None and number > there:
            logging.getLogger(__name__).warning("%s has %d, fewer than %s=%d asks for", what, there, name, number)
