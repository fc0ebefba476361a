"""Text files of others: lines as their writers meant them, and JSON that may be damaged or nested without end."""

import json
import os
import pathlib
from typing import Any


def read_lines(path: str | os.PathLike, cure: str) -> list[str]:
    r"""Returns the lines of a UTF-8 file, which only \n, \r\n and \r end.

    `str.splitlines` takes ten further characters for ends of lines (U+2028, U+0085, a form feed), some of which stand
    within a line of vocabularies and captions; it would shift all lines behind them. cure: what to do about a file
    that is no text, for the ValueError.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error}); {cure}") from error
    lines = text.split("\n")  # read_text has made every end of a line a \n
    return lines[:-1] if lines[-1] == "" else lines


def parse_json(content: bytes | str, name: object, cure: str) -> Any:
    """Returns what JSON says; raises ValueError, with its name and the cure, where it is damaged or nested too deep."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is cut off or no JSON ({error}); {cure}") from error
