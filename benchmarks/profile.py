"""Where a method's round spends its time: the operations that take most, from a trace.

python -m benchmarks.profile --name FedMEKT
"""

import collections
import gzip
import json
import pathlib
import re
import tempfile

import jax

from benchmarks.methods import WORKLOADS, Name
from benchmarks.timing import after, ours, rounds_of, start_of
from experiments.common import cli
from fedjax_mm import report
from fedjax_mm.types import OverClients


def main(name: Name = "FedMEKT", chunk: int = 1, rounds: int = 1, top: int = 15, out: str | None = None) -> None:
    """Prints what a round's operations take themselves, without what they call, all threads together.

    Args:
        name: of the method, at the sizes of `benchmarks.methods`.
        chunk: clients vmapped at a time.
        rounds: traced together.
        top: operations shown.
        out: folder the trace is kept in, for xprof or ui.perfetto.dev.
    """
    method, data, per_round = WORKLOADS[name](0)
    state, key = start_of(method, 0), jax.random.key(0)
    timed, _ = ours(method, OverClients(chunk), state, rounds_of(data, per_round, rounds, 0), key)
    after(timed)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(out or folder):
            after(timed)
        (path,) = sorted(pathlib.Path(out or folder).rglob("*.trace.json.gz"))[-1:]
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    report.show(totals([e for e in events if "hlo_op" in e.get("args", {})], rounds)[:top])


def totals(events: list[dict], rounds: int) -> list[dict]:
    """A row per kind of operation, those that take most first: the time it takes itself, without operations inside."""
    own, calls = collections.Counter(), collections.Counter()
    threads = collections.defaultdict(list)
    for event in events:
        threads[event["pid"], event["tid"]].append(event)
    for line in threads.values():
        open_ = []
        for event in sorted(line, key=lambda e: (e["ts"], -e["dur"])):
            while open_ and open_[-1]["ts"] + open_[-1]["dur"] <= event["ts"]:
                open_.pop()
            kind = _kind(event)
            own[kind] += event["dur"]
            calls[kind] += 1
            if open_:
                own[_kind(open_[-1])] -= event["dur"]
            open_.append(event)
    total = sum(own.values())
    rows = [{"operation": "all", "ms": total / 1e3 / rounds, "calls": sum(calls.values()) / rounds, "share": 1.0}]
    for kind, micro in own.most_common():
        rows.append(
            {"operation": kind, "ms": micro / 1e3 / rounds, "calls": calls[kind] / rounds, "share": micro / total}
        )
    return rows


def _kind(event: dict) -> str:
    return re.sub(r"(\.\d+)+$", "", event["name"])


if __name__ == "__main__":
    cli.run(lambda arguments: cli.call(main, arguments))
