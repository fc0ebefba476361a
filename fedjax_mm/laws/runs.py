"""Laws about runs of `run.train`: killed and resumed, and with the clients' states kept elsewhere."""

import tempfile

from fedjax_mm.laws.case import Case, DoesNotApply
from fedjax_mm.laws.deviation import Deviation, counted, deviation, worst


def run_in_two_parts_equals_the_uninterrupted_run_bit_for_bit(case: Case) -> Deviation:
    """A run that is killed in its third round, and goes on after its second, gives the state and log of a whole one."""
    (whole, expected), (resumed, log) = case.trained
    rows = lambda log: [{key: value for key, value in row.items() if key != "seconds"} for row in log]
    return worst(
        deviation(resumed, whole, 0.0, "the state"),
        deviation(rows(log), rows(expected), 0.0, "the log"),
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
