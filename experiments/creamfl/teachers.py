"""What clients must know to teach a server: `python -m experiments.creamfl teachers --data flickr8k --encoders frozen`.

For each number of examples of a client (--teachers) CreamFL is tuned and trained beside a server and clients alone. The
public pairs are the same, so that the settings of the server alone are chosen once. The gain of CreamFL's server is set
against how much better the clients alone retrieve than the server alone, over the same pictures.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.common import cli, tables
from experiments.creamfl import study, table, tuned
from fedjax_mm import report, run
from fedjax_mm.methods.creamfl.joint_space import MODALITIES
from fedjax_mm.methods.creamfl.joint_space_scores import scores
from fedjax_mm.methods.creamfl.training import Training
from fedjax_mm.report.paired import interval
from fedjax_mm.report.plots import COLOURS, GREY, save, style
from fedjax_mm.report.runs import over_seeds
from fedjax_mm.types import FedState

ALONE, TAUGHT = "server only", "CreamFL"
FEW = 200
"""Pictures that clients' recalls are over, as in `joint_space_scores.scores`."""


def compare(settings: study.Settings) -> list[dict[str, Any]]:
    """A row for each number of examples of a client; writes teachers.md and its picture, and a report of each number.

    Raises ValueError where there are fewer than two seeds.
    """
    common, rows = settings.common, []
    if len(common.all_seeds) < 2:
        raise ValueError("--seeds must be at least 2: gains are given with intervals over seeds")
    cli.write(common.out, settings)
    levels = {number: at(settings, number) for number in settings.teachers}
    of_server, tried = tuned.chosen(next(iter(levels.values())), [ALONE])
    kept = {key: getattr(of_server[ALONE], key) for key in ("server_lr", "server_passes")}
    for number, level in levels.items():
        own, notes = tuned.chosen(level, [TAUGHT])
        table.compare(level, {ALONE: dataclasses.replace(level, **kept), **own}, tried + notes)
        folders = {name: [tables.folder(level.common, name, seed) for seed in common.all_seeds] for name in level.rows}
        last = {name: [report.load(folder).rows[-1] for folder in same] for name, same in folders.items()}
        server = [server_recall(level, *one) for one in zip(common.all_seeds, folders[ALONE], strict=True)]
        rows.append({"examples": number} | gain(last, server))
    plot_gain(rows, pathlib.Path(common.out) / "teachers.png")
    shown = report.table([_in_words(row) for row in rows])
    text = ["# CreamFL and what its clients know", shown, "![gain](teachers.png)"]
    (pathlib.Path(common.out) / "teachers.md").write_text("\n\n".join(text) + "\n")
    return rows


def at(settings: study.Settings, number: int) -> study.Settings:
    """The settings of the two rows where a client has that many examples."""
    common = dataclasses.replace(settings.common, out=str(pathlib.Path(settings.common.out) / str(number)))
    numbers = settings.numbers._replace(per_client=number)
    return dataclasses.replace(settings, rows=(ALONE, TAUGHT), numbers=numbers, common=common)


def gain(last: Mapping[str, Sequence[Mapping[str, float]]], server: Sequence[float]) -> dict[str, np.ndarray]:
    """Lists over the seeds: R@10 of clients and of the server, each alone, and what CreamFL makes of them.

    last: the last metrics of the two rows' runs. server: what `server_recall` gives of the server alone.

    >>> alone, taught = {"test/rsum": 80.0, "test/both/i2t_r10": 30.0}, {"test/rsum": 100.0, "test/both/i2t_r10": 35.0}
    >>> {key: values.tolist() for key, values in gain({"server only": [alone], "CreamFL": [taught]}, [25.0]).items()}
    {'clients': [30.0], 'server': [25.0], 'taught clients': [35.0], 'rsum': [100.0], 'gain': [20.0]}
    """
    of = lambda name, key: np.array([row[f"test/{key}"] for row in last[name]])
    return {
        "clients": of(ALONE, "both/i2t_r10"),
        "server": np.array(server),
        "taught clients": of(TAUGHT, "both/i2t_r10"),
        "rsum": of(TAUGHT, "rsum"),
        "gain": of(TAUGHT, "rsum") - of(ALONE, "rsum"),
    }


def server_recall(settings: study.Settings, seed: int, folder: pathlib.Path) -> float:
    """R@10 from image to text, in percent, of a run's server, over the pictures that clients are tested on."""
    params, test = run.load(folder, clients=False).server["params"], study.load(settings, seed).test
    state = FedState({"params": params}, {}, jnp.int32(0))
    few = {m: test[m][:FEW] for m in MODALITIES}
    return scores(Training(), study.models(settings).server, {}, {}, state, few)["i2t_r10"]


def _in_words(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "examples of a client": row["examples"],
        "clients alone, R@10": over_seeds(row["clients"].tolist()),
        "server alone, R@10": over_seeds(row["server"].tolist()),
        "clients with CreamFL, R@10": over_seeds(row["taught clients"].tolist()),
        "CreamFL's rsum": over_seeds(row["rsum"].tolist()),
        "minus server only": tables.difference(row["gain"]),
    }


def plot_gain(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Writes the gain of the server, with 95 % intervals, against how far clients alone are ahead of it."""
    figure = Figure((6.5, 3.6), layout="constrained")
    panel = figure.subplots()
    panel.axhline(0, color=GREY, linewidth=1, linestyle=":")
    panel.axvline(0, color=GREY, linewidth=1, linestyle=":")
    for row in rows:
        ahead = float(np.mean(row["clients"] - row["server"]))
        mean, low, high = interval(row["gain"])
        panel.errorbar(ahead, mean, yerr=[[mean - low], [high - mean]], fmt="o", capsize=3, color=COLOURS[0])
        panel.annotate(str(row["examples"]), (ahead, mean), xytext=(6, 6), textcoords="offset points", fontsize=9)
    style(panel, "What the server gains", "clients alone minus server alone, R@10", "gain of the sum of recalls")
    save(figure, path)
