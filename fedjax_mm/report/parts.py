"""What a report is made of, and the page that Markdown makes of it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fedjax_mm.report.tables import Columns, Row, escape, table


class Heading(NamedTuple):
    """The beginning of a section."""

    text: str


class Note(NamedTuple):
    """A paragraph."""

    text: str


class Table(NamedTuple):
    """A table, and the name of its file."""

    name: str
    rows: Sequence[Row]
    columns: Columns = None


class Picture(NamedTuple):
    """A picture: the name of its file without the ending, or of several to choose among, by what they show.

    note: what is said where there is a choice.
    """

    alt: str
    files: Mapping[str, str]
    note: str = ""


Part = Heading | Note | Table | Picture


def markdown(title: str, parts: Sequence[Part]) -> str:
    """The page as Markdown, with the first of several pictures."""
    text = [f"# {title}"]
    for part in parts:
        match part:
            case Heading(words):
                text.append(f"## {escape(words)}")
            case Note(words):
                text.append(escape(words))
            case Table(_, rows, columns):
                text.append(table(rows, columns).strip())
            case Picture(alt, files, _):
                text.append(f"![{alt}]({next(iter(files.values()))}.png)")
    return "\n\n".join(text) + "\n"
