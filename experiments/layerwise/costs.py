"""What stage-wise training costs a client at full size: bytes, FLOPs and memory, compared with the published ones.

    python -m experiments.layerwise costs

The models of the paper, COCO's ViT-Tiny with DistilBERT and ADVANCE's with the audio spectrogram transformer; compiled
for their batch sizes and never run. Published numbers are those of section 3.3 of the specification.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from fedjax_mm import costs, report, stages, trees
from fedjax_mm.data import FederatedData
from fedjax_mm.methods import layerwise
from fedjax_mm.methods.layerwise import LayerwiseConfig
from fedjax_mm.models import Transformer, ast, bert, transformer, vit
from fedjax_mm.report import plots
from fedjax_mm.run import records

PUBLISHED = {  # GMAC per sample, stage by stage
    "coco": {
        "end-to-end": (9.02,),
        "layer-wise": (1.674, 2.106, 2.596, 3.086, 3.575, 4.065),
        "progressive": (1.674, 3.143, 4.612, 6.082, 7.551, 9.020),
    },
    "advance": {
        "end-to-end": (200.0,),
        "layer-wise": (34.1, 44.6, 55.7, 66.7, 77.8, 88.9),
        "progressive": (34.1, 67.3, 100.5, 133.6, 166.8, 200.0),
    },
}
PLANS = ("end-to-end", "layer-wise", "progressive")


class Full(NamedTuple):
    """A model of the paper at full size, with what a batch of it looks like."""

    encoders: Mapping[str, Transformer]
    arrays: Mapping[str, np.ndarray]
    config: LayerwiseConfig
    num_classes: int | None


def full_size(name: str) -> Full:
    """ "coco" or "advance" with the paper's encoders, batch size and schedule 90_lh10."""
    config = layerwise.VARIANTS[name]
    images = np.zeros((config.batch_size, 224, 224, 3), np.uint8)
    if name == "coco":
        arrays = {"image": images, "text": np.ones((config.batch_size, 40), np.int32)}
        return Full({"image": vit.tiny(), "text": bert.distilbert()}, arrays, config, None)
    arrays = {"image": images, "audio": np.zeros((config.batch_size, 1024, 128), np.float32)}
    arrays["label"] = np.zeros(config.batch_size, np.int32)
    return Full({"image": vit.tiny(), "audio": ast.distilled()}, arrays, config, 13)


def costs_table(name: str, plans: tuple[str, ...] = PLANS) -> list[dict]:
    """A row per plan and stage: what one client pays, compiled for the full-size model and never run."""
    full, rows = full_size(name), []
    data = FederatedData.from_arrays(full.arrays, [np.arange(full.config.batch_size)], num_classes=full.num_classes)
    for plan in plans:
        config = dataclasses.replace(full.config, plan=plan)
        for s, stage in enumerate(layerwise.build(config, data, full.encoders, full.num_classes)):
            (cost,) = costs.of(stage.method, data.round({"all": np.arange(1)})).values()
            rows.append(
                {
                    "model": name,
                    "plan": plan,
                    "stage": s + 1,
                    "rounds": stage.rounds,
                    "MiB up": cost.bytes_up / 2**20,
                    "MiB down": cost.bytes_down / 2**20,
                    "MiB down, late": (cost.bytes_down + cost.bytes_held) / 2**20,
                    "GMAC per sample": cost.flops / 2 / config.batch_size / 1e9,
                    "GMAC, forward x 1 or 3": counted(full, config, stage) / 1e9,
                    "GMAC, published": PUBLISHED[name][plan][s],
                    "GMAC, XLA": cost.xla_flops / 2 / config.batch_size / 1e9,
                    "peak GB": cost.peak_bytes / 1e9,
                }
            )
            print(f"{name}, {plan}, stage {s + 1}: done", flush=True)
    return rows


def kept_table(name: str) -> list[dict]:
    """A row per stage of layer-wise training in which clients keep what frozen layers give of their examples.

    "GMAC once" is what a client pays for each of its examples as the stage begins; "MiB kept" is what it holds of each.
    Views must stay the same: no crops, one caption a picture, and no dropout in frozen layers.
    """
    full, rows = full_size(name), []
    data = FederatedData.from_arrays(full.arrays, [np.arange(full.config.batch_size)], num_classes=full.num_classes)
    config = dataclasses.replace(full.config, cache_frozen=True, crop=None, frozen_dropout=False)
    examples, arrays = config.batch_size, {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in full.arrays.items()}
    for s, stage in enumerate(layerwise.build(config, data, full.encoders, full.num_classes)):
        if stage.cache is None:
            continue
        (cost,) = costs.of(stage.method, stages.with_shapes(stage, data.round({"all": np.arange(1)}))).values()
        server = jax.eval_shape(stage.method.server.init, jax.random.key(0))
        row = {"model": name, "stage": s + 1, "GMAC per sample": cost.flops / 2 / examples / 1e9}
        row["GMAC once"] = costs.matmul_flops(stage.cache, server, arrays) / 2 / examples / 1e9
        row["MiB kept"] = trees.size_bytes(jax.eval_shape(stage.cache, server, arrays)) / examples / 2**20
        rows.append({**row, "peak GB": cost.peak_bytes / 1e9})
        print(f"{name}, kept, stage {s + 1}: done", flush=True)
    return rows


def counted(full: Full, config: LayerwiseConfig, stage: stages.Stage) -> float:
    """MACs of one sample as the sister paper counts: a forward pass, three times where it trains.

    From forward passes of growing depth, traced and counted, not typed in.
    """
    state = jax.eval_shape(stage.method.init, jax.random.key(0))
    (download,) = jax.eval_shape(stage.method.server.download, state.server, None).values()
    total = 0.0
    for m, encoder in full.encoders.items():
        head = sum(x.size for x in jax.tree.leaves(state.server[m]["head"]) if x.ndim == 2)
        total += _encoder_macs(encoder, state.server[m]["encoder"], download.sent[m]["encoder"], full.arrays[m])
        total += 3 * head * config.batch_size
    if "prediction" in state.server:
        kernels = [x.size for x in jax.tree.leaves(state.server["prediction"]) if x.ndim == 2]
        total += 3 * sum(kernels) * config.batch_size
    return total / config.batch_size


def _encoder_macs(encoder: Transformer, params, sent, batch: np.ndarray) -> float:
    """Of a batch, pieces that are `sent` three times."""
    shape = jax.ShapeDtypeStruct(batch.shape, batch.dtype)
    depths = range(len(params["layers"]) + 1)
    upto = [costs.matmul_flops(encoder.tokens, transformer.first(params, n), shape) / 2 for n in depths]
    pieces = [sent["embeddings"], *(sent["layers"][name] for name in sorted(sent["layers"], key=int))]
    macs = np.diff([0.0, *upto])
    return sum((3 if jax.tree.leaves(piece) else 1) * m for piece, m in zip(pieces, macs, strict=True))


def schedules(rows: list[dict], name: str) -> list[dict]:
    """What a client pays over a whole schedule, and how many times less than end-to-end."""
    by_plan = {plan: [row for row in rows if (row["model"], row["plan"]) == (name, plan)] for plan in PLANS}
    (whole,) = by_plan["end-to-end"]
    sums = {
        "GiB in all": lambda row: (row["MiB up"] + row["MiB down"]) / 1024,
        "GiB, late": lambda row: (row["MiB up"] + row["MiB down, late"]) / 1024,
        "FLOPs": lambda row: row["GMAC, forward x 1 or 3"],
        "FLOPs measured": lambda row: row["GMAC per sample"],
    }
    table = []
    for schedule, rounds in layerwise.SCHEDULES.items():
        for plan in ("layer-wise", "progressive"):
            row = {"model": name, "schedule": schedule, "plan": plan}
            for key, of in sums.items():
                total = sum(r * of(stage) for r, stage in zip(rounds, by_plan[plan], strict=True))
                row |= {} if key.startswith("FLOPs") else {key: total}
                row[f"times less {key.partition(' in all')[0]}"] = sum(rounds) * of(whole) / total
            row["times less memory, last stage"] = whole["peak GB"] / by_plan[plan][-1]["peak GB"]
            table.append(row)
    return table


def main(out: str = "runs/layerwise_costs") -> None:
    """Prints what each stage and each schedule costs a client of the full-size models, compiled and never run.

    Args:
        out: directory for report.md, table.json and the pictures.
    """
    folder = pathlib.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for name in PUBLISHED for row in costs_table(name)]
    kept = [row for name in PUBLISHED for row in kept_table(name)]
    totals = [row for name in PUBLISHED for row in schedules(rows, name)]
    for table in (rows, kept, totals):
        report.show(table)
    text = ["# Costs of a client, full-size models", "## Stages", report.table(rows)]
    for name in PUBLISHED:
        shown = [row for row in rows if row["model"] == name]
        plots.plot_costs(shown, folder / f"{name}.png", costs=("MiB up", "GMAC per sample", "peak GB"))
        text += [f"![{name}]({name}.png)"]
    text += ["## Layer-wise training that keeps what frozen layers give", report.table(kept)]
    text += ["## Schedules", "End-to-end training for as many rounds costs so many times more.", report.table(totals)]
    (folder / "report.md").write_text("\n\n".join(text) + "\n")
    written = {"versions": records.versions(), "stages": rows, "kept": kept, "schedules": totals}
    (folder / "table.json").write_text(json.dumps(written, indent=1))
    print(f"Wrote {folder}/report.md and its pictures.")
