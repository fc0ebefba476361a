"""The round: memory, upload transforms and clear errors. The laws are in laws/."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_mm.data.federated import FederatedData
from fedjax_mm.federate import federate
from fedjax_mm.methods.fedavg import FedAvgConfig, build
from fedjax_mm.models import heads, mlp
from fedjax_mm.types import Cohort, Download, Mean, OverClients, Server

KEY = jax.random.key(0)


def constant_change(change, upload=None):
    """Every client sends `change`; the server adds the mean."""
    update = lambda download, state, data, key: ({"w": Mean(jnp.array(change), data.weight)}, state, {})
    server = Server(
        lambda key: jnp.zeros(2),
        lambda w, public: {"all": Download(w)},
        lambda w, uploads, public, key: (w + uploads["all"]["w"].value, {}),
    )
    return federate(server, {"all": Cohort(4, lambda key: (), update)}, upload=upload)


ARRAYS, OWNED = {"x": np.ones((8, 1), np.float32)}, [[0], [1, 2], [3], [4, 5, 6, 7]]
DATA = FederatedData.from_arrays(ARRAYS, OWNED)


@pytest.mark.parametrize(("weight", "mean", "sum"), [(1.0, 2.0, 4), (-1.0, 3.0, 2), (np.nan, 3.0, 2), (3e38, 3.0, 2)])
def test_a_client_whose_slot_weight_is_none_is_left_out(weight, mean, sum):
    """Clients 0 and 1 send 1 with the weight, a slot of two clients that send 3 with weight 1."""

    def update(download, state, data, key):
        first = data.rows[0] < 3
        slot_weight = jnp.where(first, weight, 1.0)
        return {"w": Mean(jnp.where(first, 1.5, 3.0) - 0.5 * (weight == 1.0) * first, slot_weight)}, state, {}

    seen = lambda w, uploads, public, key: ((uploads["all"]["w"].value, uploads["all"]["w"].weight), {})
    server = Server(lambda key: (jnp.float32(0), jnp.float32(0)), lambda w, public: {"all": Download(w)}, seen)
    method = federate(server, {"all": Cohort(4, lambda key: (), update)})
    state, metrics = method.round(method.init(KEY), DATA.round({"all": np.arange(4)}), KEY)
    np.testing.assert_allclose(jnp.stack(state.server), [mean, sum])
    assert metrics["all"]["left_out"] == (0 if weight == 1 else 2)


def test_a_server_that_begins_does_so_before_it_sends_anything():
    seen = []

    def begin(w, public, key):
        return w + 1 + jax.random.uniform(key), {"public": public["y"].sum(), "both": jnp.float32(1)}

    def update(download, state, data, key):
        return {"w": Mean(download.sent, data.weight)}, state, {"got": download.sent[0]}

    server = Server(
        lambda key: jnp.zeros(2),
        lambda w, public: {"all": Download(10 * w)},
        lambda w, uploads, public, key: (
            w + uploads["all"]["w"].value,
            {"after": w[0], "drawn": jax.random.uniform(key), "both": jnp.float32(2)},
        ),
        begin,
    )
    data = FederatedData.from_arrays(ARRAYS, OWNED, public={"y": np.ones(3)})
    method = federate(server, {"all": Cohort(4, lambda key: (), update)}, over=OverClients(2))
    taken, state = data.round({"all": np.arange(4)}), method.init(KEY)
    for _ in range(2):  # what it begins with is what it ended with
        before, (state, metrics) = state.server, method.round(state, taken, KEY)
        begun = float(metrics["server"]["after"])
        drawn = begun - float(before[0]) - 1
        assert 0 < drawn < 1 and drawn != pytest.approx(float(metrics["server"]["drawn"]))
        assert drawn not in seen
        seen.append(drawn)
        assert float(metrics["all"]["got"]) == pytest.approx(10 * begun, rel=1e-6)
        np.testing.assert_allclose(state.server, 11 * begun, rtol=1e-6)
        assert (float(metrics["server"]["public"]), float(metrics["server"]["both"])) == (3, 2)


def test_a_server_without_a_beginning_is_as_one_that_begins_with_nothing():
    method = constant_change([1.0, 2.0])
    assert method.server.begin is None
    idle = method.server._replace(begin=lambda w, public, key: (w, {}))
    taken = DATA.round({"all": np.arange(4)})
    expected = method.round(method.init(KEY), taken, KEY)
    assert expected[1]["server"] == {}
    chex.assert_trees_all_equal(federate(idle, method.cohorts).round(method.init(KEY), taken, KEY), expected)


def test_round_memory_grows_by_chunk_models_not_by_participants():
    examples = np.random.default_rng(0).normal(size=(64, 100)).astype(np.float32)
    arrays = {"x": examples, "label": np.zeros(64, np.int32)}
    data = FederatedData.from_arrays(arrays, np.repeat(np.arange(32), 2))
    method = build(FedAvgConfig(batch_size=2), data, {"x": mlp.encoder((500,), 50)}, heads.linear(2))
    state = jax.eval_shape(method.init, KEY)
    model = sum(x.size * 4 for x in jax.tree.leaves(state.server["params"]))

    def temp_bytes(participants, chunk):
        taken = data.round({"all": np.arange(participants)})
        round = jax.jit(method._replace(over=OverClients(chunk)).round)
        return round.lower(state, taken, KEY).compile().memory_analysis().temp_size_in_bytes

    assert temp_bytes(32, 1) < temp_bytes(4, 1) + model / 2
    assert temp_bytes(32, 4) < temp_bytes(8, 4) + model / 2
    assert temp_bytes(32, 32) > temp_bytes(32, 1) + 20 * model  # what the bound above would miss, were it not one


def test_upload_transforms_stand_between_update_and_aggregation():
    method = constant_change([3.0, 4.0], optax.chain(optax.clip_by_global_norm(1.0), optax.scale(10.0)))
    new, _ = method.round(method.init(KEY), DATA.round({"all": np.arange(4)}), KEY)
    np.testing.assert_allclose(new.server, [6.0, 8.0], rtol=1e-5)


def test_a_transform_draws_anew_for_every_client_and_round():
    def noise():
        def update(updates, state, params=None, *, key):
            return jax.tree.map(lambda u: u + jax.random.normal(key, u.shape), updates), state

        return optax.GradientTransformationExtraArgs(lambda params: (), update)

    method = constant_change([0.0, 0.0], noise())
    state = method.init(KEY)
    draws = [method.round(state, DATA.round({"all": [j]}), KEY)[0].server for j in range(3)]
    later, _ = method.round(method.round(state, DATA.round({"all": [0]}), KEY)[0], DATA.round({"all": [0]}), KEY)
    draws.append(later.server - draws[0])
    assert len({np.asarray(d).tobytes() for d in draws}) == 4


def test_half_precision_uploads_are_summed_in_single_precision():
    method = constant_change([1.0, 1.0])
    cohort = method.cohorts["all"]._replace(
        update=lambda download, state, data, key: ({"w": Mean(jnp.full(2, 1.0078125, jnp.bfloat16), 100.0)}, state, {})
    )
    method = federate(method.server, {"all": cohort})
    new, _ = method.round(method.init(KEY), DATA.round({"all": np.arange(4)}), KEY)
    np.testing.assert_allclose(new.server, 1.0078125, rtol=1e-6)


def test_cohorts_must_match_the_data():
    method = constant_change([1.0, 1.0])
    other = FederatedData.from_arrays({"x": np.ones((2, 1), np.float32)}, {"B": [[0], [1]]})
    with pytest.raises(ValueError, match=r"data has cohorts \['B'\]; the method has \['all'\]"):
        method.round(method.init(KEY), other.round({"B": [0]}), KEY)
    with pytest.raises(ValueError, match="at least one cohort"):
        federate(method.server, {})


def test_a_thousand_clients_run_in_one_process():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 4000).astype(np.int32)
    arrays = {"x": (rng.normal(size=(4000, 5)) + label[:, None]).astype(np.float32), "label": label}
    data = FederatedData.from_arrays(arrays, np.repeat(np.arange(1000), 4))
    method = build(FedAvgConfig(batch_size=2), data, {"x": mlp.encoder((), 4)}, heads.linear(2))
    method = method._replace(over=OverClients(chunk=50))
    new, metrics = jax.jit(method.round)(method.init(KEY), data.round({"all": np.arange(1000)}), KEY)
    assert float(metrics["all"]["clients"]) == 1000 and float(metrics["all"]["left_out"]) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(new))
