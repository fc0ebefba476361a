"""Each law is seen to fail on a method that breaks it, and to pass on a sound one; both are toys that compile fast."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from fedjax_mm import aggregate, laws
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.federate import Method, federate
from fedjax_mm.types import Cohort, Download, Each, Mean, Server

X = np.random.default_rng(0).normal(size=(14, 2)).astype(np.float32)
OWNED = {"left": [[0], [1, 2], [3, 4, 5], [6, 7]], "right": [[8], [9, 10], [11, 12, 13]]}
DATA = FederatedData.from_arrays({"x": X}, OWNED)


def sound(data=DATA, *, grow=lambda x: x, server=None, start=jnp.zeros):
    """Clients send the mean of their examples plus noise, and remember a sum. grow: of what they send."""

    def update(download, state, data, key):
        own = (jnp.arange(len(data.rows)) < data.count).astype(jnp.float32)[:, None]
        examples = data.arrays["x"][jnp.clip(data.rows, 0, len(data.arrays["x"]) - 1)]
        mean = jnp.where(own > 0, examples, 0).sum(0) / jnp.maximum(own.sum(), 1)
        mean = mean + 0.1 * jax.random.normal(key, (2,))
        sent = grow(download.sent["w"] + mean)
        return {"w": Mean(sent, data.weight), "z": Each(mean, data.weight)}, {"sum": state["sum"] + mean}, {}

    def update_server(state, uploads, public, key):
        mean = {slot: aggregate.average(aggregate.collect(uploads, slot), state[slot]) for slot in state}
        return (server(mean, uploads) if server else mean), {}

    start_server = lambda key: {"w": start(2), "z": start(2)}
    download = lambda state, public: {name: Download(state) for name in data.sizes}
    cohort = lambda n: Cohort(n, lambda key: {"sum": jax.random.normal(key, (2,))}, update)
    cohorts = {name: cohort(n) for name, n in data.sizes.items()}
    return federate(Server(start_server, download, update_server), cohorts)


class IdleClientsMove(Method):
    def round(self, state, data, key):
        new, metrics = Method.round(self, state, data, key)
        return dataclasses.replace(new, clients=jax.tree.map(lambda x: x + 1, new.clients)), metrics


class NobodyIsCounted(Method):
    def round(self, state, data, key):
        new, metrics = Method.round(self, state, data, key)
        uncounted = {name: {**m, "left_out": 0.0 * m["left_out"]} for name, m in metrics.items() if name != "server"}
        return new, {**metrics, **uncounted}


class DrawsTogether(Method):
    def round(self, state, data, key):
        total = sum(taken.weight.sum() for taken in data.cohorts.values())
        return Method.round(self, state, data, jax.random.fold_in(key, total.astype(jnp.int32)))


class StartsFromTheServer(Method):
    """As two methods of this library once did: the states drawn one by one know nothing of it."""

    def init(self, key):
        state = Method.init(self, key)
        like = lambda x: jnp.broadcast_to(state.server["w"] + 1, x.shape)
        return dataclasses.replace(state, clients=jax.tree.map(like, state.clients))


def captured():
    """As a Method of this library once was: its round is that of the fields it was built from."""
    first = sound()

    class Captured(Method):
        def round(self, state, data, key):
            return first.round(state, data, key)

    return Captured(*first)


def counts_traces(what=lambda x, calls: x + len(calls)):
    """A function with a state of its own, outside of what JAX knows."""
    calls = []
    return lambda x: (calls.append(1), what(x, calls))[1]


def erased(mean, uploads):
    """The mean of what was sent, which is 0 where nobody sent anything."""
    return {slot: aggregate.collect(uploads, slot).value if slot == "w" else mean[slot] for slot in mean}


def unweighted(mean, uploads):
    return {**mean, "z": aggregate.collect(uploads, "z").value.mean(0)}


def first_sent(mean, uploads):
    return {**mean, "z": uploads["left"]["z"].value[0]}


def tells_the_host(mean, uploads):
    io_callback(lambda w: None, None, mean["w"], ordered=True)  # several seeds would have no order
    return mean


def half(n):
    return jnp.zeros(n, jnp.float16)


def halves_once():
    return counts_traces(lambda x, calls: x.astype(jnp.float16 if len(calls) == 1 else jnp.float32))


def counted_server():
    count = counts_traces()
    return lambda mean, uploads: {**mean, "w": count(mean["w"])}


BROKEN = {
    "mapped_round_equals_a_python_loop_over_clients": lambda: sound(grow=counts_traces()),
    "chunks_and_devices_agree": lambda: sound(server=unweighted),
    "order_of_participants_does_not_matter": lambda: sound(server=first_sent),
    "who_does_not_take_part_does_not_change": lambda: IdleClientsMove(*sound()),
    "padding_clients_change_nothing_even_if_their_rows_are_nan": lambda: sound(server=unweighted),
    "cohort_in_which_nobody_takes_part_leaves_its_parts_untouched": lambda: sound(server=erased),
    "one_trace_for_all_rounds": lambda: sound(start=half),
    "run_in_two_parts_equals_the_uninterrupted_run_bit_for_bit": lambda: sound(server=counted_server()),
    "where_client_states_are_kept_changes_no_bit": lambda: StartsFromTheServer(*sound()),
    "bytes_reported_are_the_bytes_of_the_trees_that_travel": lambda: sound(grow=halves_once()),
    "client_whose_update_is_not_finite_is_left_out_and_counted": lambda: NobodyIsCounted(*sound()),
    "scan_over_rounds_equals_a_loop": lambda: sound(start=half),
    "vmap_over_seeds_equals_one_seed_at_a_time": lambda: sound(server=tells_the_host),
    "run_of_a_sweep_equals_the_run_alone": lambda: sound(server=counted_server()),
    "a_draw_does_not_depend_on_who_else_takes_part": lambda: DrawsTogether(*sound()),
    "replaced_fields_mean_what_they_say": captured,
}


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_a_law_fails_on_a_method_that_breaks_it(law):
    bystander = laws.order_of_participants_does_not_matter
    if law is bystander:
        bystander = laws.who_does_not_take_part_does_not_change
    report = laws.check(BROKEN[law.__name__](), DATA, laws=[law, bystander])
    assert report.failed == [law.__name__], report
    assert report[law.__name__].deviation > report[law.__name__].tolerance and report[law.__name__].message
    with pytest.raises(laws.LawBroken, match=law.__name__.replace("_", " ")):
        report.raise_if_failed()


def test_all_laws_hold_for_a_sound_method_and_the_report_is_a_table():
    report = laws.check(sound(), DATA, strict=True)
    assert report.passed and not report.skipped and len(list(report)) == len(laws.LAWS)
    lines = str(report).splitlines()
    assert lines[0].split() == ["law", "outcome", "deviation", "allowed"] and len(lines) == len(laws.LAWS) + 2
    assert lines[4].startswith("who does not take part does not change") and lines[4].split()[-3:] == [
        "passed",
        "0",
        "0",
    ]
    assert lines[-1] == f"{len(laws.LAWS)} passed, 0 failed, 0 skipped"


def test_a_law_without_anything_to_say_is_skipped_and_says_why():
    one = FederatedData.from_arrays({"x": X.astype(np.int32)}, {"only": [[0, 1]]})
    some = [
        laws.order_of_participants_does_not_matter,
        laws.who_does_not_take_part_does_not_change,
        laws.client_whose_update_is_not_finite_is_left_out_and_counted,
        laws.a_draw_does_not_depend_on_who_else_takes_part,
    ]
    report = laws.check(sound(one), one, laws=some, strict=True)
    assert report.skipped == [law.__name__ for law in some]
    messages = [result.message for result in report]
    assert messages[0] == "no cohort has two participants with examples"
    assert messages[1].startswith("every client takes part in every round")
    assert messages[2] == "only has no array of floats"
    assert messages[3] == "no round has two participants with examples"
    assert str(report).endswith("0 passed, 0 failed, 4 skipped")


def test_a_check_refuses_what_does_not_fit():
    other = FederatedData.from_arrays({"x": X}, {"left": [[0], [1]]})
    with pytest.raises(ValueError, match=r"the method has cohorts of .* clients; the data has {'left': 2}"):
        laws.check(sound(), other)
    with pytest.raises(ValueError, match="one Method, not list; check the method of each stage"):
        laws.check([sound()], DATA)
    with pytest.raises(ValueError, match="asks for 9 clients of left"):
        laws.check(sound(), DATA, per_round={"left": 9, "right": 1})
