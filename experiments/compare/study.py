"""The settings of the comparison, and the rows of a program, which are trained with all seeds at once."""

import dataclasses
import hashlib
import pathlib
import time
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import numpy as np

from experiments.common import cli
from experiments.compare import papers
from experiments.compare.papers import Program
from fedjax_mm import costs, run, stages
from fedjax_mm.run.json_files import Folder
from fedjax_mm.run.records import device, versions
from fedjax_mm.stages import Stage

FILE = "rows.json"
COSTS = {  # heading -> the field of costs.Cost, and its unit
    "MB down": ("bytes_down", 1e6),
    "MB up": ("bytes_up", 1e6),
    "MFLOP": ("round_flops", 1e6),
    "peak MB": ("peak_bytes", 1e6),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long every paper trains, with which seeds, and where the report goes."""

    common: Annotated[cli.Common, cli.FLAT] = cli.Common(rounds=30, seeds=5, out="runs/compare")

    def __post_init__(self) -> None:
        cli.without_runs(self.common)
        if self.common.dtype != "float32":
            raise ValueError("--dtype says nothing here: the comparison's networks compute in float32; leave it out")
        cli.at_least(3, rounds=self.common.rounds)  # each of LW-FedMML's stages needs one


def train(settings: Settings, paper: str, program: str) -> dict[str, Any]:
    """The rows of a program, trained to their end: {"rows": {row: its score, costs and seconds}, "device", "versions"}.

    A score is a list over the seeds, None for one that diverged. What the program's folder holds already, made from the
    same source with the same settings, is not trained again.
    """
    common = settings.common
    folder = Folder(pathlib.Path(common.out) / paper / program.replace(" ", "_"))
    made = {"rounds": common.rounds, "seeds": list(common.all_seeds), "split": common.split, "source": source()}
    made |= {"device": device(), "versions": versions()}
    known = folder.read_or_rebuild(FILE, print)
    if made.items() <= known.items():
        return known
    begun, compared = time.perf_counter(), papers.PAPERS[paper](common.split, common.all_seeds[0])
    chosen = compared.programs[program](common.rounds)
    scores, paid = _scores(settings, chosen, compared.score), _costs(chosen, common.rounds)
    seconds = (time.perf_counter() - begun) / len(scores)
    percent = lambda values: [compared.scale * float(x) if np.isfinite(x) else None for x in values]
    rows = {row: {"score": percent(values), "s": seconds} for row, values in scores.items()}
    rows |= {row: rows[row] | paid for row in chosen.rows if row not in chosen.uncounted}
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write(FILE, {**made, "rows": rows})
    print(f"{paper}: {', '.join(rows)}: done", flush=True)
    return {**made, "rows": rows}


def _scores(settings: Settings, program: Program, metric: str) -> dict[str, np.ndarray]:
    """Row -> its last score [seeds]."""
    common = settings.common
    sweep = run.sweep(
        program.build,
        program.data,
        grid=program.grid,
        seeds=common.all_seeds,
        rounds=common.rounds,
        per_round=program.per_round,
        test=program.test,
        chunk=None if common.chunk in (1, "1", "auto") else int(common.chunk),
        devices=common.devices or 1,
        log=lambda line: print(line, flush=True) if "diverged" in line else None,
    )
    found = {row: sweep.scores[f"test/{metric}"][i, :, -1] for i, row in enumerate(program.rows)}
    if program.untrained is None:
        return found
    method = _plan(program, common.rounds)[0].method
    first = [method.init(jax.random.fold_in(jax.random.key(seed), 0)) for seed in common.all_seeds]  # as runs start
    return {program.untrained: np.array([method.evaluate(state, program.test)[metric] for state in first])} | found


def _plan(program: Program, rounds: int) -> Sequence[Stage]:
    """The stages of the program's first row."""
    return stages.plan(program.build(**{name: values[0] for name, values in program.grid.items()}), rounds)


def _costs(program: Program, rounds: int) -> dict[str, float]:
    """What a client of average size pays in a round, a mean over the rounds of all stages, and the most memory of a
    step. Of several kinds of clients, what the one pays that pays most."""
    one = program.data.round({name: np.arange(1) for name in program.data.sizes})
    each = {name: float(cohort.counts.mean()) for name, cohort in program.data.cohorts.items()}
    plan = _plan(program, rounds)
    paid = [costs.of(stage.method, one, examples=each).values() for stage in plan]
    found = {}
    for heading, (field, unit) in COSTS.items():
        most = [max(getattr(cost, field) for cost in of_stage) / unit for of_stage in paid]
        mean = float(np.average(most, weights=[stage.rounds for stage in plan]))
        found[heading] = max(most) if field == "peak_bytes" else mean
    return found


def source() -> str:
    """A digest of the source that results come from."""
    files = sorted(file for folder in cli.OWN for file in folder.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
