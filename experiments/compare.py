"""Every method for clients of several kinds compared with the same controls, in one table and one picture.

    python -m experiments.compare --jobs 2

The default is embedded data: handwritten digits, whose left and right halves are two modalities. 10 of the 30 clients
hold left halves, 10 right halves and 10 both; classes are spread by Dirichlet(0.3), 9 clients take part in each of 60
rounds, and there are 3 seeds. With --jobs 2 it takes 3 to 4 minutes on 2 CPU cores; it makes docs/compare.png.

Stage-wise training, whose clients hold both modalities, and FedDAT, whose clients have tasks of their own, are compared
with their baselines by `python -m experiments.layerwise compare` and `python -m experiments.feddat compare`.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

from experiments.common import cli, data, tables
from experiments.common.tables import Variant, fedavg_variant
from experiments.fedavg import study as fedavg
from experiments.fedmekt import study as fedmekt

PRESETS = {name: data.Settings(data=name, common=cli.Common(out="runs/compare")) for name in data.DATASETS}


def variants(dataset: str) -> dict[str, Variant]:
    """Every method with the rates of its own script for this dataset, and the controls."""
    adam = fedavg.PRESETS[dataset].method
    base = dataclasses.replace(adam, server_optimizer="sgd", server_lr=1.0)
    chosen = {
        **tables.controls(base),
        "FedAvg": fedavg_variant(base),
        "FedProx": fedavg_variant(dataclasses.replace(base, prox=0.01)),
        "FedAdam": fedavg_variant(adam),
    }
    if dataset in fedmekt.PRESETS:  # these learn without clients' labels; the server has some
        unlabelled = fedmekt.variants(fedmekt.PRESETS[dataset])
        chosen |= {name: unlabelled[name] for name in ("server only", "FedMEKT")}
    return chosen


def compare(settings: data.Settings) -> list[dict[str, Any]]:
    """Runs the comparison, prints its table and writes report.md, table.json and the pictures to `out`."""
    begun = time.perf_counter()
    cli.write(settings.common.out, settings)
    rows = tables.compare(settings, functools.partial(variants, settings.data))
    tables.write(settings, variants(settings.data), rows, "Comparison")
    print(f"Took {time.perf_counter() - begun:.0f} s.")
    return rows


def main(arguments: Sequence[str]) -> None:
    """Runs the command."""
    compare(cli.parse(PRESETS, arguments, __doc__))


if __name__ == "__main__":
    cli.run(main)
