"""The laws that every method obeys, as functions that run on anyone's method.

    report = laws.check(method, data)
    print(report)
    report.raise_if_failed()

A law is a function `law(case) -> Deviation`, whose name states the law. It says how far the method is from the law, and
raises DoesNotApply where it has nothing to say.
"""

from collections.abc import Iterable, Mapping

from fedjax_mm.checks import check_flag, say
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.federate import Method
from fedjax_mm.laws.absence import cohort_in_which_nobody_takes_part_leaves_its_parts_untouched
from fedjax_mm.laws.case import Case, DoesNotApply, make_case
from fedjax_mm.laws.deviation import Deviation
from fedjax_mm.laws.programs import (
    bytes_reported_are_the_bytes_of_the_trees_that_travel,
    one_trace_for_all_rounds,
    replaced_fields_mean_what_they_say,
    scan_over_rounds_equals_a_loop,
    vmap_over_seeds_equals_one_seed_at_a_time,
)
from fedjax_mm.laws.report import Law, LawBroken, Report, Result, try_law
from fedjax_mm.laws.rounds import (
    a_draw_does_not_depend_on_who_else_takes_part,
    chunks_and_devices_agree,
    client_whose_update_is_not_finite_is_left_out_and_counted,
    mapped_round_equals_a_python_loop_over_clients,
    order_of_participants_does_not_matter,
    padding_clients_change_nothing_even_if_their_rows_are_nan,
    who_does_not_take_part_does_not_change,
)
from fedjax_mm.laws.runs import (
    run_in_two_parts_equals_the_uninterrupted_run_bit_for_bit,
    run_of_a_sweep_equals_the_run_alone,
    where_client_states_are_kept_changes_no_bit,
)

__all__ = [
    "LAWS",
    "Case",
    "Deviation",
    "DoesNotApply",
    "LawBroken",
    "Report",
    "Result",
    "check",
    "make_case",
    "try_law",
]

LAWS: tuple[Law, ...] = (
    mapped_round_equals_a_python_loop_over_clients,
    chunks_and_devices_agree,
    order_of_participants_does_not_matter,
    who_does_not_take_part_does_not_change,
    padding_clients_change_nothing_even_if_their_rows_are_nan,
    cohort_in_which_nobody_takes_part_leaves_its_parts_untouched,
    one_trace_for_all_rounds,
    run_in_two_parts_equals_the_uninterrupted_run_bit_for_bit,
    where_client_states_are_kept_changes_no_bit,
    bytes_reported_are_the_bytes_of_the_trees_that_travel,
    client_whose_update_is_not_finite_is_left_out_and_counted,
    scan_over_rounds_equals_a_loop,
    vmap_over_seeds_equals_one_seed_at_a_time,
    run_of_a_sweep_equals_the_run_alone,
    a_draw_does_not_depend_on_who_else_takes_part,
    replaced_fields_mean_what_they_say,
)


def check(
    method: Method,
    data: FederatedData,
    *,
    per_round: int | Mapping[str, int] | None = None,
    laws: Iterable[Law] = LAWS,
    seed: int = 0,
    tolerance: float = 1e-5,
    rounding: float = 0.0,
    strict: bool = False,
) -> Report:
    """What each law finds on the method and the data; print it to see which laws fail, and by how much.

    per_round: how many clients take part in a round (see `clients.choose`). By default up to 4 of each cohort, and one
        fewer than it has, so that somebody is idle.
    laws: which laws to run.
    seed: of the first states, of who takes part and of the rounds.
    tolerance: the deviation allowed where a sum may have another order, relative above 1 and absolute below. Laws that
        ask for the same bits allow none.
    rounding: the deviation allowed between two programs of which a law asks the same bits, for compilers that round
        them apart (see `where_client_states_are_kept_changes_no_bit`).
    strict: raise LawBroken where a law fails.

    A check compiles a dozen programs of the size of a round: choose a small instance of the method, and few examples.
    Raises ValueError where the method and the data do not fit.

    A server that keeps what it got from the first place of a cohort, whoever that is:

    >>> import numpy as np
    >>> from fedjax_mm import Cohort, Download, Each, Server, federate
    >>> first = lambda w, uploads, public, key: (uploads["all"]["w"].value[0], {})
    >>> server = Server(lambda key: np.float32(0), lambda w, public: {"all": Download(w)}, first)
    >>> send = lambda download, state, data, key: ({"w": Each(data.weight, data.weight)}, state, {})
    >>> data = FederatedData.from_arrays({"x": np.arange(6.0)}, [[0], [1, 2], [3, 4, 5]])
    >>> method = federate(server, {"all": Cohort(3, lambda key: (), send)})
    >>> print(check(method, data, laws=[order_of_participants_does_not_matter]))
    law                                    outcome  deviation  allowed
    order of participants does not matter  FAILED   0.25       1e-05    .server
    0 passed, 1 failed, 0 skipped
    """
    if not isinstance(laws, Iterable) or getattr(laws, "ndim", 1) == 0 or not all(map(callable, laws := list(laws))):
        raise ValueError(f"laws is {say(laws)}; give a list of laws, as laws.LAWS is")
    check_flag("strict", strict)
    checked = make_case(method, data, per_round, seed, tolerance, rounding)
    report = Report(tuple(try_law(law, checked) for law in laws))
    if strict:
        report.raise_if_failed()
    return report
