"""JSON files and lines of JSON with a checksum, which tells whether anything in them was changed since."""

import json
import pathlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

CHECKSUM = "crc32"  # the last key of every file and of every line
Log = Callable[[str], None]


class Folder(NamedTuple):
    """A folder of JSON files."""

    path: pathlib.Path

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file, with its checksum as the last key, whole or not at all."""
        if jax.process_index() == 0:
            temporary = self.path / f"{name}.tmp"
            summed = {**content, CHECKSUM: _checksum(json.dumps(content))}
            temporary.write_text(json.dumps(summed, indent=1, allow_nan=False))
            temporary.replace(self.path / name)

    def read(self, name: str) -> dict[str, Any] | None:
        """The mapping that a JSON file holds, or None where there is no file.

        Raises ValueError, with the file's name, where it is damaged.
        """
        return read_json(self.path / name) if (self.path / name).exists() else None

    def read_or_rebuild(self, name: str, log: Log) -> dict[str, Any]:
        """What `read` gives. Nothing where the file is missing, or is damaged and made anew, which the log says."""
        try:
            return self.read(name) or {}
        except ValueError as error:
            log(f"{error}; it is made anew")
            return {}


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """The mapping that a JSON file holds, without its checksum; files of earlier versions have none.

    Raises ValueError, with the file's name, where it holds no mapping or was changed since it was written.
    """
    cure = "bring it back from a copy or give another directory"
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); {cure}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged (it holds no mapping); {cure}")
    last = next(reversed(content), None)
    if last is not None and type(content[last]) is int:  # without a checksum, files end with a text or a mapping
        was = content.pop(last)
        if last != CHECKSUM or was != _checksum(json.dumps(content)):
            raise ValueError(f"{file} is damaged (it was changed after it was written); {cure}")
    return content


def line_of(row: Mapping[str, float | None]) -> str:
    """A row as a line of the log, with a checksum that tells whether a number of it was changed since."""
    text = json.dumps(row, allow_nan=False)
    return f'{text[:-1]}, "{CHECKSUM}": {_checksum(text)}}}\n'


def read_lines(file: pathlib.Path) -> tuple[list[dict[str, float]], int]:
    """(the whole rows, how many lines are damaged); a last line that a kill cut off is not counted."""
    rows, damaged, content = [], 0, file.read_bytes()
    *lines, last = content.split(b"\n")
    for line in (*lines, last):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and f'"{CHECKSUM}"'.encode() in content:  # logs of earlier versions have none
            crc = row.pop(CHECKSUM, None)
            row = row if crc == _checksum(json.dumps(row)) else None
        if isinstance(row, dict) and type(row.get("round")) is int:
            rows.append(row)
        elif line is not last:
            damaged += 1
    return rows, damaged


def _checksum(text: str) -> int:
    """Of a mapping as `json.dumps` writes it, which reads and writes back every number as it was."""
    return zlib.crc32(text.encode())
