"""How a peer and the script that times it talk: a line each way over the peer's stdin and stdout.

{"ready": true}         once, when the peer is set up
run 20               -> {"rounds": 20, "cpu": seconds, "wall": seconds}, going on from where it is
save /some/file.npz  -> {"saved": "/some/file.npz"}, the server's weights

A peer that begins anew with every request says so: "trained", the rounds behind its weights, and "first", the seconds
from nothing to the end of its first round.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable

Run = Callable[[int], dict]
Save = Callable[[str], None]


def serve(make: Callable[[str], tuple[Run, Save]]) -> None:
    """Answers until stdin closes; `make(folder)` sets a peer up on the workload in the folder that argv names."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(message: dict) -> None:
        print(json.dumps(message), file=answers, flush=True)

    run, save = make(sys.argv[1])
    answer({"ready": True})
    for line in sys.stdin:
        request, argument = line.split(maxsplit=1)
        if request == "run":
            answer(run(int(argument)))
        elif request == "save":
            save(argument.strip())
            answer({"saved": argument.strip()})
        else:
            raise ValueError(f"asked to {request!r}; a peer can run N and save PATH")


def timed(run: Callable[[int], None]) -> Run:
    """`run(rounds)`, which must have computed everything when it returns, with the time it takes."""

    def with_times(rounds: int) -> dict:
        cpu, wall = cpu_seconds(), time.perf_counter()
        run(rounds)
        return {"rounds": rounds, "cpu": cpu_seconds() - cpu, "wall": time.perf_counter() - wall}

    return with_times


def cpu_seconds() -> float:
    """CPU time of this process, all threads together, and of its children that ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
