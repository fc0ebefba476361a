"""Every method for clients of several kinds beside the same controls, in one table and one picture.

    python -m experiments.compare

By default on embedded data (handwritten digits, the left and the right half as two modalities; 30 clients, of which 10
hold the left halves, 10 the right, 10 both; Dirichlet(0.3) by class; 9 take part in a round), 3 seeds.
Stage-wise training, whose clients hold both modalities, and FedDAT, whose clients have tasks of their own, are compared
with theirs by `python -m experiments.layerwise compare` and `python -m experiments.feddat compare`.
"""

import dataclasses
import time

import tyro

from experiments.common import tables as problems
from experiments.fedavg import study as fedavg
from experiments.fedmekt import study as fedmekt


def variants(data: str) -> dict[str, problems.Variant]:
    """Every registered method with the rates of its own script for this dataset, and the controls."""
    adam = fedavg.PRESETS[data].method
    base = dataclasses.replace(adam, server_optimizer="sgd", server_lr=1.0)
    change = lambda **settings: problems.fedavg_variant(dataclasses.replace(base, **settings))
    chosen = {
        **problems.controls(base),
        "FedAvg": problems.fedavg_variant(base),
        "FedProx": change(prox=0.01),
        "FedAdam": problems.fedavg_variant(adam),
    }
    if data in fedmekt.PRESETS:  # these learn without clients' labels; the server has some
        unlabelled = fedmekt.variants(fedmekt.PRESETS[data])
        chosen |= {name: unlabelled[name] for name in ("server only", "FedMEKT")}
    return chosen


def main(settings: problems.Settings) -> list[dict]:
    """Runs the comparison, prints its table and writes report.md, table.json and the pictures to `out`."""
    begun = time.perf_counter()
    problems.cache_compilations()
    chosen = variants(settings.data)
    rows = problems.compare(settings, chosen)
    problems.write(settings, chosen, rows, "Comparison")
    print(f"Took {time.perf_counter() - begun:.0f} s.")
    return rows


if __name__ == "__main__":
    main(tyro.cli(problems.Settings, default=problems.Settings(out="runs/compare")))
