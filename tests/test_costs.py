"""Costs against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_mm import costs
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.federate import federate
from fedjax_mm.local import gradient_step, local_steps, masked_mean
from fedjax_mm.types import Cohort, Download, Each, Mean, Server

FEATURES, HIDDEN, BATCH, TIME = 7, 16, 5, 9


SGD = optax.sgd(0.1)


def method(tx=SGD, held=(), upload=None, recurrent=False, dtype=jnp.float32):
    def update(download, state, data, key):
        def loss(params, batch, key):
            x = batch["x"]
            if recurrent:  # the same weights TIME times over
                x, _ = jax.lax.scan(lambda h, _: (h @ params["square"], None), x, None, TIME)
            return masked_mean((jnp.tanh(x @ params["in"]) @ params["out"])[:, 0], batch["mask"]), {}

        carry = (download.sent, tx.init(download.sent))
        (params, _), metrics = local_steps(gradient_step(loss, tx), carry, data, key, batch_size=BATCH, epochs=3)
        sent = jax.tree.map(lambda x: x.astype(dtype), params)
        return {"model": Mean(sent, data.weight), "reps": Each(jnp.zeros((4, 2)), data.weight)}, state, metrics

    params = {"in": jnp.ones((FEATURES, HIDDEN)), "out": jnp.ones((HIDDEN, 1)), "square": jnp.eye(FEATURES)}
    server = Server(lambda key: params, lambda p, public: {"all": Download(p, held)}, lambda p, u, public, k: (p, {}))
    return federate(server, {"all": Cohort(3, lambda key: (), update)}, upload=upload)


def cost_of(**settings):
    x = np.ones((40, FEATURES), np.float32)
    data = FederatedData.from_arrays({"x": x}, [np.arange(20), np.arange(20, 33), np.arange(33, 40)])
    return costs.of(method(**settings), data.round({"all": np.arange(3)}))["all"]


PARAMS = FEATURES * HIDDEN + HIDDEN + FEATURES**2


def test_bytes_are_leaf_sizes():
    cost = cost_of(held={"frozen": jnp.zeros(11, jnp.bfloat16)})
    assert (cost.bytes_down, cost.bytes_held, cost.bytes_up) == (4 * PARAMS, 22, 4 * PARAMS + 4 * 8)
    assert cost_of(dtype=jnp.bfloat16).bytes_up == 2 * PARAMS + 4 * 8


def test_upload_transforms_are_counted_after_they_ran():
    quantise = optax.stateless(lambda updates, params: jax.tree.map(lambda x: x.astype(jnp.int8), updates))
    assert cost_of(upload=quantise).bytes_up == PARAMS + 8


def test_round_flops_are_those_of_all_steps_of_a_client_of_mean_size():
    cost = cost_of()  # clients have 20, 13 and 7 examples: 13 on the mean, 3 batches of 5, three times
    assert cost.flops is not None and cost.round_flops == 3 * 3 * cost.flops
    data = FederatedData.from_arrays({"x": np.ones((40, FEATURES), np.float32)}, [np.arange(20), np.arange(20, 30)])
    two = method()._replace(cohorts={"all": method().cohorts["all"]._replace(size=2)})
    taken = data.round({"all": np.array([1, 2])})  # and nobody
    assert costs.of(two, taken)["all"].round_flops == 3 * 2 * cost.flops
    assert costs.of(two, taken, examples={"all": 15.2})["all"].round_flops == 3 * 3 * cost.flops
    assert costs.of(two, taken, examples={"all": 0})["all"].round_flops == 3 * 1 * cost.flops
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), taken)
    steps = -(-taken.cohorts["all"].rows.shape[1] // BATCH)  # of a client that fills all rows
    assert costs.of(two, shapes)["all"].round_flops == 3 * steps * cost.flops


def test_flops_are_those_of_one_step_whatever_the_number_of_steps():
    forward = 2 * BATCH * (FEATURES * HIDDEN + HIDDEN)
    backward = 2 * BATCH * (FEATURES * HIDDEN + 2 * HIDDEN)  # no gradient with respect to the examples
    cost = cost_of()
    assert cost.flops == forward + backward
    assert forward + backward <= cost.xla_flops < 2 * (forward + backward) + 10 * PARAMS


def test_a_loop_inside_a_step_counts_as_often_as_it_runs():
    square = 2 * BATCH * FEATURES**2
    once, looped = cost_of(), cost_of(recurrent=True)
    extra = looped.flops - once.flops - 2 * BATCH * FEATURES * HIDDEN  # x now carries a gradient
    assert extra == pytest.approx(3 * TIME * square, rel=0.15)  # forward, and backward for weights and state
    assert looped.xla_flops < looped.flops  # XLA counts a loop's body once


def test_peak_memory_holds_weights_optimiser_state_and_batch():
    sgd, adam = cost_of().peak_bytes, cost_of(tx=optax.adam(0.1)).peak_bytes
    assert sgd >= 4 * (PARAMS + BATCH * FEATURES)
    assert adam >= 4 * (3 * PARAMS + BATCH * FEATURES) > sgd


def test_an_update_without_local_steps_has_bytes_but_no_flops():
    plain = method()
    cohort = plain.cohorts["all"]._replace(
        update=lambda download, state, data, key: ({"model": Mean(download.sent, data.weight)}, state, {})
    )
    x = np.ones((4, FEATURES), np.float32)
    taken = FederatedData.from_arrays({"x": x}, [[0], [1], [2, 3]]).round({"all": np.arange(3)})
    cost = costs.of(plain._replace(cohorts={"all": cohort}), taken)["all"]
    assert cost == costs.Cost(4 * PARAMS, 4 * PARAMS, 0, None, None, None)


def test_of_a_condition_the_branch_with_most_counts_and_a_loop_of_unknown_length_as_often_as_told():
    a = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    product = 2 * 4**3
    branches = (lambda a: a @ a @ a, lambda a: a @ a, lambda a: a)
    assert costs.matmul_flops(lambda i, a: jax.lax.switch(i, branches, a), jnp.int32(0), a) == 2 * product
    by_platform = lambda a: jax.lax.platform_dependent(a, cpu=branches[1], default=branches[0])
    assert costs.matmul_flops(by_platform, a) == product  # they compute the same, whatever that takes
    looped = lambda n, a: jax.lax.fori_loop(0, n, lambda _, x: x @ a, a)
    n = jax.ShapeDtypeStruct((), jnp.int32)
    assert costs.matmul_flops(looped, n, a) == product
    assert costs.matmul_flops(looped, n, a, unknown_trips=7) == 7 * product
    with pytest.raises(ValueError, match="unknown_trips"):
        costs.matmul_flops(looped, n, a, unknown_trips=-1)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_zeros_that_a_convolution_puts_between_its_inputs_are_no_work(stride):
    x, kernel = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((2, 2, 3, 5), jnp.float32)

    def convolve(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=dimensions)

    forward = 2 * (8 // stride) ** 2 * 2 * 2 * 3 * 5
    assert costs.matmul_flops(convolve, x, kernel) == forward
    backward = jax.grad(lambda x, kernel: convolve(x, kernel).sum(), (0, 1))
    assert costs.matmul_flops(backward, x, kernel) == pytest.approx(3 * forward)
