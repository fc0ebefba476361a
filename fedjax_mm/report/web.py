"""A report as one self-contained HTML page: pictures are in it, nothing is loaded, and no script runs."""

import base64
import html
import pathlib
from collections.abc import Sequence

from fedjax_mm.report.parts import Heading, Note, Part, Picture, Table
from fedjax_mm.report.tables import cell_text, columns_of, is_number

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto; max-width: 62rem;
  padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid #ddd;
  overflow-wrap: anywhere; }
nav { font-size: .9rem; } nav a { margin-right: 1rem; display: inline-block; overflow-wrap: anywhere; }
a { color: #0072b2; }
p { margin: .6rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid #e6e6e6; max-width: 24rem;
  overflow-wrap: break-word; vertical-align: top; }
th { border-bottom: 2px solid #999; vertical-align: bottom; }
th.n, td.n { text-align: right; white-space: nowrap; }
tbody tr:hover { background: #f4f7fa; }
img { display: block; max-width: 100%; height: auto; margin: .8rem 0; }
fieldset { border: 0; margin: .8rem 0; padding: 0; }
fieldset legend { font-size: .88rem; color: #555; padding: 0; }
fieldset label { font-size: .9rem; padding: .2rem .9rem .2rem .2rem; cursor: pointer; }
fieldset img { display: none; }
fieldset input:nth-of-type(1):checked ~ img:nth-of-type(1), fieldset input:nth-of-type(2):checked ~ img:nth-of-type(2),
fieldset input:nth-of-type(3):checked ~ img:nth-of-type(3), fieldset input:nth-of-type(4):checked ~ img:nth-of-type(4)
{ display: block; }
@media print { nav { display: none; } fieldset img { display: block; } }
"""


def page(title: str, parts: Sequence[Part], folder: pathlib.Path) -> str:
    """The page; the pictures' files are in `folder`. All that names hold is escaped."""
    numbers = {id(part): f"s{i}" for i, part in enumerate(part for part in parts if isinstance(part, Heading))}
    links = [f'<a href="#{numbers[id(part)]}">{_text(part.text)}</a>' for part in parts if isinstance(part, Heading)]
    body, choices = [], 0
    for part in parts:
        match part:
            case Heading(words):
                body.append(f'<h2 id="{numbers[id(part)]}">{_text(words)}</h2>')
            case Note(words):
                body.append(f"<p>{_text(words)}</p>")
            case Table():
                body.append(_table(part))
            case Picture(_, files, _) if len(files) > 1:
                body.append(_choice(part, f"c{choices}", folder))
                choices += 1
            case Picture(alt, files, _):
                body.append(_image(alt, folder / f"{next(iter(files.values()))}.png"))
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            # Nothing is fetched, whatever a name may hold.
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src '
            "'unsafe-inline'\">",
            f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            f"<h1>{_text(title)}</h1>\n<nav>{''.join(links)}</nav>\n<main>",
            *body,
            "</main>\n</body>\n</html>\n",
        ]
    )


def _text(words: str) -> str:
    return html.escape(words)


def _table(part: Table) -> str:
    columns = columns_of(part.rows, part.columns)
    kind = {key: ' class="n"' if is_number(part.rows, key) else "" for key in columns}
    head = "".join(f'<th scope="col"{kind[key]}>{_text(name)}</th>' for key, name in columns.items())
    line = lambda row: "".join(f"<td{kind[key]}>{_text(cell_text(row.get(key)))}</td>" for key in columns)
    rows = "\n".join(f"<tr>{line(row)}</tr>" for row in part.rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'


def _choice(part: Picture, name: str, folder: pathlib.Path) -> str:
    """Pictures, at most four, of which the one that is chosen is seen; without a script."""
    buttons, images = [], []
    for j, (label, file) in enumerate(part.files.items()):
        checked = "" if j else " checked"
        buttons.append(f'<input type="radio" name="{name}" id="{name}-{j}"{checked}>')
        buttons.append(f'<label for="{name}-{j}">{_text(label)}</label>')
        images.append(_image(f"{part.alt}, against {label}", folder / f"{file}.png"))
    return "\n".join(
        ["<fieldset>", "<legend>against</legend>", *buttons, *images, "</fieldset>", f"<p>{_text(part.note)}</p>"]
    )


def _image(alt: str, file: pathlib.Path) -> str:
    return f'<img alt="{_text(alt)}" src="data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}">'
