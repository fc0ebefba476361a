"""One client's steps, against plain NumPy SGD on the same batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_mm.local import gradient_step, local_steps, masked_mean
from fedjax_mm.types import ClientData

X = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
Y = X @ np.array([1.0, -2.0, 0.5], np.float32) + 0.3
MOST = 13


def client(rows, uniform=False):
    padded = np.concatenate([rows, np.full(MOST - len(rows), 29)]).astype(np.int32)
    return ClientData({"x": X, "y": Y}, jnp.asarray(padded), jnp.int32(len(rows)), jnp.float32(1), None, uniform)


def loss(w, batch, key):
    return masked_mean((batch["x"] @ w - batch["y"]) ** 2, batch["mask"]), {"rows": batch["mask"].sum()}


def train(data, shuffle=False, key=0, **settings):
    tx = optax.sgd(0.05)
    carry = (jnp.zeros(3), tx.init(jnp.zeros(3)))
    (w, _), metrics = local_steps(
        gradient_step(loss, tx), carry, data, jax.random.key(key), batch_size=4, shuffle=shuffle, **settings
    )
    return w, metrics


def numpy_sgd(rows, epochs, drop_last=False):
    w = np.zeros(3)
    for _ in range(epochs):
        for start in range(0, len(rows), 4):
            r = rows[start : start + 4]
            if drop_last and len(r) < 4:
                continue
            w = w - 0.05 * 2 * X[r].T @ (X[r] @ w - Y[r]) / len(r)
    return w


@pytest.mark.parametrize("count", [1, 4, 7, 13])
@pytest.mark.parametrize("drop_last", [False, True])
def test_steps_equal_plain_sgd_in_closed_form(count, drop_last):
    rows = np.random.default_rng(count).permutation(29)[:count]
    w, metrics = jax.jit(lambda d: train(d, epochs=3, drop_last=drop_last))(client(rows))
    np.testing.assert_allclose(w, numpy_sgd(rows, 3, drop_last), atol=1e-5)
    per_epoch = count // 4 if drop_last else -(-count // 4)
    seen = min(count, per_epoch * 4)
    assert float(metrics["rows"]) == pytest.approx(seen / max(per_epoch, 1))


def test_uniform_clients_have_a_static_trip_count_and_the_same_result():
    rows = np.arange(MOST)
    dynamic, static = (jax.make_jaxpr(train)(client(rows, uniform)) for uniform in (False, True))
    assert "while" in str(dynamic) and "while" not in str(static)
    np.testing.assert_allclose(train(client(rows, True))[0], train(client(rows))[0], atol=1e-6)


def test_under_vmap_every_client_ends_where_its_own_steps_end():
    parts = [np.arange(1), np.arange(3, 16), np.arange(16, 21), np.arange(0)]
    clients = [client(p) for p in parts]
    axes = ClientData(None, 0, 0, 0, None)
    rows, count = jnp.stack([c.rows for c in clients]), jnp.stack([c.count for c in clients])
    data = ClientData(clients[0].arrays, rows, count, jnp.ones(4), None)
    many, metrics = jax.vmap(lambda d: train(d, epochs=2, shuffle=True), (axes,))(data)
    for i, one in enumerate(clients):
        alone, alone_metrics = train(one, epochs=2, shuffle=True)
        np.testing.assert_allclose(many[i], alone, atol=1e-6)
        np.testing.assert_allclose(metrics["loss"][i], alone_metrics["loss"], atol=1e-5)
    assert (np.asarray(many[3]) == 0).all()


def test_every_epoch_sees_every_own_row_once_and_no_other_in_a_new_order():
    rows = np.array([3, 5, 8, 11, 20, 22])
    seen = lambda carry, batch, key: (jnp.roll(carry, 1).at[0].set(jnp.where(batch["mask"], batch["r"], -1)[0]), {})
    data = ClientData(
        {"r": jnp.arange(30)}, jnp.asarray([*rows, *[29] * 7], jnp.int32), jnp.int32(6), jnp.float32(1), None
    )
    orders = []
    for key in range(2):
        carry, _ = local_steps(seen, jnp.full(12, -1), data, jax.random.key(key), batch_size=1, epochs=2, shuffle=True)
        epochs = np.asarray(carry).reshape(2, 6)
        assert all(sorted(e.tolist()) == rows.tolist() for e in epochs)
        orders += [tuple(e.tolist()) for e in epochs]
    assert len(set(orders)) == 4


def test_order_does_not_depend_on_the_largest_client():
    rows = np.array([3, 5, 8, 11, 20])
    wide = ClientData({"x": X, "y": Y}, jnp.asarray([*rows, *[0] * 90], jnp.int32), jnp.int32(5), jnp.float32(1), None)
    np.testing.assert_allclose(train(client(rows), shuffle=True)[0], train(wide, shuffle=True)[0], atol=1e-6)


def test_bad_settings_are_errors():
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        local_steps(lambda c, b, k: (c, {}), 0.0, client(np.arange(3)), jax.random.key(0), batch_size=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 2.0}, "batch_size is 2.0; give a whole number"),
        ({"batch_size": True}, "batch_size is True"),
        ({"batch_size": "2"}, "batch_size is '2'"),
        ({"batch_size": -1}, "batch_size must be at least 1"),
        ({"epochs": 1.5}, "epochs is 1.5"),
        ({"epochs": None}, "epochs is None"),
        ({"epochs": -1}, "epochs at least 0"),
        ({"drop_last": "no"}, "drop_last is 'no'; give True or False"),
        ({"shuffle": 1}, "shuffle is 1; give True or False"),
    ],
)
def test_settings_of_another_type_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        local_steps(
            lambda c, b, k: (c, {}), 0.0, client(np.arange(3)), jax.random.key(0), **({"batch_size": 2} | settings)
        )
