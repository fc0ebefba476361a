"""Laws about runs: killed and resumed, with the clients' states kept elsewhere, and as one of a sweep."""

import tempfile
from typing import Any

from fedjax_mm.laws.case import Case, DoesNotApply
from fedjax_mm.laws.deviation import Deviation, counted, deviation, rows, worst


def run_in_two_parts_equals_the_uninterrupted_run_bit_for_bit(case: Case) -> Deviation:
    """A run that is killed in its third round, and goes on after its second, gives the state and log of a whole one."""
    (whole, expected), (resumed, log) = case.trained
    plain = lambda log: [{key: value for key, value in row.items() if key != "seconds"} for row in log]
    return worst(
        deviation(resumed, whole, 0.0, "the state"),
        deviation(plain(log), plain(expected), 0.0, "the log"),
        counted(len(log), 4, "the number of the log's lines"),
    )


def where_client_states_are_kept_changes_no_bit(case: Case) -> Deviation:
    """Four rounds give the same bits with the clients' states on the device, in host memory and in a folder.

    The round is one program with the states of all clients and another with those of its participants. With its
    optimisation off, XLA rounds these apart now and then, by some 1e-7: `rounding` allows for it.
    """
    (expected, _), _ = case.trained
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = [
                deviation(case.train(client_state=where), expected, case.rounding, f"states in {place}: ")
                for place, where in (("host memory", "host"), ("a folder", folder))
            ]
        except ValueError as error:
            if "random keys" not in str(error):
                raise
            raise DoesNotApply(str(error)) from error
    return worst(*found)


def run_of_a_sweep_equals_the_run_alone(case: Case) -> Deviation:
    """Four rounds as one of two seeds of `run.sweep` give the same bits as the run of this seed alone.

    Runs are mapped one at a time, so that each does the same operations. Two programs may still be rounded apart, as
    where clients' states are kept: `rounding` allows for it. Vmapped runs have sums of another order.
    """
    from fedjax_mm import run

    if not case.data.on_device:
        raise DoesNotApply("the data is off the device, where no sweep has it")
    (expected, _), _ = case.trained
    how: dict[str, Any] = {"rounds": 4, "per_round": case.per_round, "runs_at_once": 1, "log": lambda line: None}
    swept = run.sweep(lambda: case.method, case.data, grid={}, seeds=(case.seed + 1, case.seed), **how)
    return deviation(rows(swept.states[0], 1), expected, case.rounding, "the state")
