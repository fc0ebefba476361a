"""Central noise, the clip that adapts, and the epsilon that a run has spent."""

import functools
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import DATA, KEY, PARAMS, X, toy

from fedjax_mm import laws, run, uploads
from fedjax_mm.types import Each, Mean
from fedjax_mm.uploads import privacy
from fedjax_mm.uploads.privacy import Privacy, gaussian_epsilon, noise_for

TOY = toy()
ROUNDS = {}  # a method's id -> itself, so that no other gets its id, and its round, which is compiled once
EVERYONE = DATA.round({"all": np.arange(4)})
CHANGES = np.stack([X[rows].mean(0) for rows in ([0, 1, 2], [3, 4, 5, 6], [7, 8], [9])])


def moved(method, taken=EVERYONE, key=KEY):
    """[PARAMS] how the server's weights changed in a round."""
    state = method.init(KEY)
    _, step = ROUNDS.setdefault(id(method), (method, jax.jit(method.round)))
    new, _ = step(state, taken, key)
    at = lambda server: server.get("method", server)["w"]
    return np.asarray(at(new.server) - at(state.server)).ravel(), new


@functools.cache
def noised(**settings):
    return uploads.central_noise(toy(), DATA, **{"clip": 2.0, "noise_multiplier": 0.0, "denominator": 4} | settings)


def test_without_noise_it_is_the_mean_of_clipped_changes_over_the_denominator():
    clipped = CHANGES * np.minimum(1, 2 / np.linalg.norm(CHANGES, axis=1))[:, None]
    assert (np.linalg.norm(CHANGES, axis=1) > 2).any()
    np.testing.assert_allclose(moved(noised())[0], clipped.sum(0) / 4, atol=1e-5)
    two = DATA.round({"all": np.array([0, 2, 4, 4])})
    np.testing.assert_allclose(moved(noised(), two)[0], clipped[[0, 2]].sum(0) / 4, atol=1e-5)
    weight = np.minimum([3, 4, 2, 1], 2) / 2
    np.testing.assert_allclose(moved(noised(weight_cap=2.0))[0], weight @ clipped / 4, atol=1e-5)
    wide = noised(clip=1e3, weight_cap=4.0, denominator=10 / 4)
    np.testing.assert_allclose(moved(wide)[0], moved(TOY)[0], atol=1e-5)


def test_noise_has_its_size_and_is_another_in_each_round_and_for_nobody_too():
    method = noised(noise_multiplier=3.0, denominator=5.0)
    nobody = DATA.round({"all": np.array([4, 4])})
    step, start = jax.jit(method.round), method.init(KEY)
    draws = np.stack([step(start, nobody, jax.random.key(i))[0].server["w"] - start.server["w"] for i in range(100)])
    assert draws.std() == pytest.approx(3 * 2 / 5, rel=0.05) and abs(draws.mean()) < 0.1
    state, _ = step(start, nobody, KEY)
    later, _ = step(state, nobody, KEY)
    first, second = state.server["w"] - start.server["w"], later.server["w"] - state.server["w"]
    assert np.abs(first - second).min() > 1e-4


def test_one_client_moves_the_sum_by_no_more_than_the_clip():
    everyone = moved(noised())[0]
    for j in range(4):
        without = moved(noised(), DATA.round({"all": np.where(np.arange(4) == j, 4, np.arange(4))}))[0]
        assert np.linalg.norm(4 * (everyone - without)) <= 2.0 + 1e-5


def test_the_clip_follows_the_quantile_of_the_norms():
    """Norms of changes are those of CHANGES in every round: the clip settles between the second and the third."""
    method = noised(clip=50.0, adaptive=uploads.Adaptive(quantile=0.5, rate=0.3))
    step, state, clips = jax.jit(method.round), method.init(KEY), []
    for _ in range(60):
        state, metrics = step(state, EVERYONE, KEY)
        clips.append(float(metrics["server"]["clip_norm"]))
    norms = np.sort(np.linalg.norm(CHANGES, axis=1))
    assert clips[0] == 50 and norms[1] * 0.9 < clips[-1] < norms[2] * 1.1
    assert method.evaluate(state, {}) == {"times": 240.0}


def test_split_noise_is_as_private_as_the_noise_alone():
    """The count's noise on bits of size 1/2 and the changes' noise: together one Gaussian of the multiplier z."""
    from fedjax_mm.uploads.central import _split_noise

    z = 1.3
    changes = _split_noise(z, 2.0)
    assert 1 / changes**2 + 1 / (2 * 2.0) ** 2 == pytest.approx(1 / z**2) and changes > z
    with pytest.raises(ValueError, match=r"adaptive.count_noise .* above 0.65"):
        noised(noise_multiplier=1.3, adaptive=uploads.Adaptive(count_noise=0.1))


@pytest.mark.parametrize("adaptive", [None, uploads.Adaptive(count_noise=0.5)])
def test_laws_of_a_round_hold_with_central_noise(adaptive):
    method = noised(noise_multiplier=1.0, adaptive=adaptive)
    # Noise moves the server though nobody took part, and the stub of the last law sends other trees.
    skipped = ("cohort_in_which_nobody_takes_part_leaves_its_parts_untouched",)
    chosen = [law for law in laws.LAWS if law.__name__ not in skipped]
    report = laws.check(method, DATA, laws=chosen, rounding=1e-6)
    report.raise_if_failed()


def test_a_slot_that_the_server_sees_client_by_client_is_refused():
    def each(cohort):
        update = lambda *args: ({"w": Each(jnp.ones(3), 1.0), "v": Mean(jnp.ones(3), 1.0)}, args[1], {})
        return cohort._replace(update=update)

    method = toy()._replace(cohorts={"all": each(toy().cohorts["all"])})
    with pytest.raises(ValueError, match="the Each slots {'all': \\('w',\\)}"):
        uploads.central_noise(method, DATA, clip=1.0, noise_multiplier=1.0, denominator=2)
    with pytest.raises(ValueError, match="upload transform"):
        packed = toy()._replace(upload=uploads.quantise(8))
        uploads.central_noise(packed, DATA, clip=1.0, noise_multiplier=1.0, denominator=2)


def test_a_run_logs_what_it_spent():
    rows = []
    spent = Privacy(5.0, 1e-2, "local", every=2)
    run.train(
        noised(noise_multiplier=5.0), DATA, rounds=3, per_round=2, log=lambda line: None,
        watch=[spent, lambda done, row: rows.append(dict(row))],
    )  # fmt: skip
    assert "privacy/epsilon" not in rows[0]
    assert [row["privacy/epsilon"] for row in rows[1:]] == [spent.epsilon(2), spent.epsilon(3)]
    assert rows[2]["privacy/delta"] == 0.01 and 0 < rows[1]["privacy/epsilon"] < rows[2]["privacy/epsilon"]


def test_gaussian_epsilon_is_that_of_the_definition():
    """delta of mu at epsilon, by the integral of the densities' positive part."""
    for mu, delta in ((0.5, 1e-3), (2.0, 1e-5), (10.0, 1e-2)):
        epsilon = gaussian_epsilon(mu, delta)
        x = np.linspace(-15, mu + 15, 400_001)
        density = lambda at, x=x: np.exp(-((x - at) ** 2) / 2) / np.sqrt(2 * np.pi)
        gap = np.maximum(density(mu) - np.exp(epsilon) * density(0), 0)
        assert np.trapezoid(gap, x) == pytest.approx(delta, rel=1e-3)
    assert gaussian_epsilon(1e-6, 1e-2) == 0.0
    assert Privacy(4.0, 1e-3, "local").epsilon(9) == gaussian_epsilon(2 * 3 / 4, 1e-3)
    assert Privacy(4.0, 1e-3).epsilon(9) == gaussian_epsilon(3 / 4, 1e-3)
    assert Privacy(4.0, 1e-3).epsilon(0) == 0 and Privacy(0.0, 1e-3).epsilon(1) == np.inf


def test_epsilon_of_sampled_clients_lies_where_it_must():
    pytest.importorskip("dp_accounting", reason="the extra `privacy` is not installed")
    never, some = Privacy(2.0, 1e-3), Privacy(2.0, 1e-3, "independent", 0.2)
    assert 0 < some.epsilon(10) < some.epsilon(20) < never.epsilon(20)
    assert Privacy(2.0, 1e-3, "independent", 0.9999).epsilon(10) == pytest.approx(never.epsilon(10), rel=1e-2)
    fixed = Privacy(2.0, 1e-3, "fixed", 0.01)
    assert some.epsilon(10) < Privacy(2.0, 1e-3, "fixed", 0.2).epsilon(10) <= Privacy(2.0, 1e-3, "local").epsilon(10)
    assert fixed.epsilon(10) < Privacy(2.0, 1e-3, "fixed", 0.2).epsilon(10)
    z = noise_for(1.0, 1e-2, 20, "independent", 1 / 3)
    assert 0.98 < Privacy(z, 1e-2, "independent", 1 / 3).epsilon(20) <= 1.0
    assert z == pytest.approx(2.949, rel=2e-3)  # dp_accounting.calibrate_dp_mechanism with its own grid


def test_without_the_accountant_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    privacy._epsilon.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'fedjax_mm\[privacy\]'"):
        Privacy(1.0, 1e-2, "independent", 0.5).epsilon(1)
    assert Privacy(1.0, 1e-2, "local").epsilon(1) > 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"noise_multiplier": -1}, "noise_multiplier"),
        ({"delta": 0}, "delta"),
        ({"rate": 1.5}, "rate"),
        ({"sampling": "poisson"}, "sampling is 'poisson'; give one of independent, fixed, local"),
        ({"every": 0}, "every"),
    ],
)
def test_a_wrong_setting_is_named(change, named):
    with pytest.raises(ValueError, match=named):
        Privacy(**{"noise_multiplier": 1.0, "delta": 1e-2} | change)
    for wrong, said in (({"clip": 0}, "clip"), ({"denominator": {"B": 1}}, "denominator"), ({"weight_cap": 0}, "cap")):
        with pytest.raises(ValueError, match=said):
            noised.__wrapped__(**wrong)


def test_local_noise_is_another_for_every_client():
    method = toy()._replace(upload=uploads.add_noise(1.0))
    drawn = [moved(method, DATA.round({"all": [j]}))[0] - CHANGES[j] for j in range(3)]
    assert np.abs(drawn[0] - drawn[1]).min() > 1e-4 and np.abs(drawn[1] - drawn[2]).min() > 1e-4
    assert np.std(drawn) == pytest.approx(1, rel=0.2) and len(drawn[0]) == PARAMS
    chex.assert_tree_all_finite(drawn)
