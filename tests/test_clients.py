"""Mapping over clients and drawing participants, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mm import clients


@pytest.mark.parametrize(("chunk", "devices"), [(1, None), (3, None), (12, None), (1, 4), (3, 2), (6, 2)])
def test_map_reduce_sums_totals_and_stacks_eaches(chunk, devices):
    x = np.arange(24.0).reshape(12, 2)
    mesh = clients.make_mesh(devices) if devices else None
    one = lambda shared, client: (shared * client["x"], {"square": client["x"] ** 2, "who": client["who"]})
    total, each = jax.jit(lambda s, c: clients.map_reduce(one, s, c, chunk=chunk, mesh=mesh))(
        3.0, {"x": x, "who": np.arange(12)}
    )
    np.testing.assert_allclose(total, 3 * x.sum(0))
    assert sorted(np.asarray(each["who"]).tolist()) == list(range(12))
    np.testing.assert_allclose(each["square"], x[np.asarray(each["who"])] ** 2)


def test_map_reduce_refuses_clients_that_do_not_divide():
    with pytest.raises(ValueError, match="5 clients do not divide into chunks of 2"):
        clients.map_reduce(lambda s, c: (c, c), 0.0, jnp.arange(5.0), chunk=2)


def test_gradient_inside_a_mesh_is_each_clients_own():
    """With shard_map's default types the gradient by the shared weights would be summed over devices."""
    grad = lambda w, x: (jax.grad(lambda w: (w * x).sum())(w), 0.0)
    total, _ = clients.map_reduce(grad, jnp.ones(3), jnp.ones((4, 3)), chunk=1, mesh=clients.make_mesh(4))
    np.testing.assert_allclose(total, 4 * np.ones(3))
    _, each = clients.map_reduce(
        lambda w, x: (0.0, jax.grad(lambda w: (w * x).sum())(w)),
        jnp.ones(3),
        jnp.ones((4, 3)),
        chunk=1,
        mesh=clients.make_mesh(4),
    )
    np.testing.assert_allclose(each, np.ones((4, 3)))


def test_choose_is_a_function_of_seed_and_round_without_replacement():
    sizes = {"A": 10, "B": 5}
    drawn = [clients.choose(sizes, 6, r, seed) for r in range(50) for seed in range(20)]
    for one in drawn:
        real = {k: i[i < sizes[k]] for k, i in one.items()}
        assert sum(map(len, real.values())) == 6
        assert all(len(set(i.tolist())) == len(i) for i in real.values())
        assert {k: len(i) for k, i in one.items()} == {"A": 6, "B": 5}
    again = clients.choose(sizes, 6, 7, 0)
    assert all((again[k] == drawn[140][k]).all() for k in sizes)
    assert any((drawn[0]["A"] != drawn[i]["A"]).any() for i in (1, 20))
    often = np.bincount(np.concatenate([d["B"] for d in drawn]), minlength=6)[:5] / len(drawn)
    assert abs(often.mean() - 6 / 15) < 0.03  # uniform over all clients, whatever their cohort


def test_choose_per_cohort_draws_that_many_from_each():
    one = clients.choose({"A": 10, "B": 5}, {"A": 3, "B": 0}, 0, 0)
    assert len(one["A"]) == 3 and (one["A"] < 10).all() and one["B"].tolist() == [5]


@pytest.mark.parametrize(
    ("per_round", "message"),
    [
        (16, "asks for 16 clients of all cohorts, which has 15"),
        ({"A": 11, "B": 1}, "asks for 11 clients of A, which has 10"),
        ({"A": 1}, r"names cohorts \['A'\]"),
    ],
)
def test_more_participants_than_clients_is_an_error(per_round, message):
    with pytest.raises(ValueError, match=message):
        clients.choose({"A": 10, "B": 5}, per_round, 0, 0)


def test_more_devices_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="asked for 64 devices, but JAX sees 4"):
        clients.make_mesh(64)


@pytest.mark.parametrize("number", [True, 2.5, 2.0, "3", -1, np.nan, None, [1], np.array([1, 2])])
def test_a_number_of_participants_that_is_none_is_refused(number):
    for per_round in (number, {"A": number, "B": 1}):
        with pytest.raises(ValueError, match="per_round of .* is .*; give a whole number from 0 upwards"):
            clients.choose({"A": 10, "B": 5}, per_round, 0, 0)


@pytest.mark.parametrize("per_round", [0, {"A": 0, "B": 0}])
def test_a_round_of_nobody_is_refused(per_round):
    with pytest.raises(ValueError, match="asks for no client of .*; ask for at least one"):
        clients.choose({"A": 10, "B": 5}, per_round, 0, 0)


@pytest.mark.parametrize("number", [0, -2, 1.0, "auto", True, None])
def test_chunks_and_devices_are_whole_numbers(number):
    with pytest.raises(ValueError, match=f"chunk is {number!r}; give a whole number from 1"):
        clients.map_reduce(lambda s, c: (c, c), 0.0, jnp.arange(4.0), chunk=number)
    if number is not None:
        with pytest.raises(ValueError, match=f"devices is {number!r}; give a whole number from 1"):
            clients.make_mesh(number)


def test_clients_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"leaves \[\(4,\), \(2,\)\]; give arrays \[C, ...\] of one length"):
        clients.map_reduce(lambda s, c: (c[0], c), 0.0, (jnp.arange(4.0), jnp.arange(2.0)), chunk=2)
