"""Each loss against its formula in float64 NumPy, at its closed-form points, and with padded rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax

from fedjax_mm import losses

B, P, D, K = 5, 7, 4, 3

info_nce, soft_contrastive, inter_modal, intra_modal, distill = map(
    jax.jit, (losses.info_nce, losses.soft_contrastive, losses.inter_modal, losses.intra_modal, losses.distill)
)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def as_jax(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def pairwise_distance(v, t):
    return np.sqrt(((v[:, None] - t[None]) ** 2).sum(-1) + 1e-6)


def value_and_grad(loss, arrays, **mask):
    return jax.jit(jax.value_and_grad(lambda xs, mask: loss(*xs, **mask)))(arrays, mask)


INDEX = np.array([3, 0, 6, 3, 1])

# name -> (the loss of arrays with leading axis B, those arrays)
LOSSES = {
    "info_nce": (lambda a, b, **k: info_nce(a, b, 0.2, **k), (draw(B, D), draw(B, D, seed=1))),
    "soft_contrastive": (
        lambda a, b, **k: soft_contrastive(a, b, 15.0, 15.0, **k),
        (unit(draw(B, D)), unit(draw(B, D, seed=1))),
    ),
    "inter_modal": (
        lambda r, **k: inter_modal(r, *as_jax(draw(P, D, seed=2)), jnp.asarray(INDEX)[: len(r)], 0.5, **k),
        (draw(B, D),),
    ),
    "intra_modal": (
        lambda r, c, p, **k: intra_modal(r, c, p, 0.5, **k),
        (draw(B, D), draw(B, D, seed=1), draw(B, D, seed=2)),
    ),
    "distill": (lambda t, s, **k: distill(t, s, 3.0, **k), (draw(B, K), draw(B, K, seed=1))),
}


def test_info_nce_is_the_mean_of_both_cross_entropies_of_cosines():
    a, b = draw(B, D), draw(B, D, seed=1)
    logits = unit(a) @ unit(b).T / 0.2
    want = -(np.diag(log_softmax(logits, 1)).mean() + np.diag(log_softmax(logits, 0)).mean()) / 2
    np.testing.assert_allclose(info_nce(*as_jax(a, b), 0.2), want, rtol=1e-5)
    np.testing.assert_allclose(info_nce(*as_jax(b, a), 0.2), want, rtol=1e-5)
    np.testing.assert_allclose(info_nce(*as_jax(9 * a, b / 9), 0.2), want, rtol=1e-5)


def test_info_nce_of_identical_rows_is_log_b_and_of_one_row_is_0():
    same = jnp.ones((B, D))
    np.testing.assert_allclose(info_nce(same, same, 0.1), np.log(B), rtol=1e-6)
    assert info_nce(same[:1], -same[:1], 0.1) == 0


def test_soft_contrastive_is_pcmes_sum_over_pairs():
    v, t = unit(draw(B, D)), unit(draw(B, D, seed=1))
    score = -12 * pairwise_distance(v, t) + 9
    sign = 2 * np.eye(B) - 1
    want = 2 * np.log1p(np.exp(-2 * sign * score)).sum()
    np.testing.assert_allclose(soft_contrastive(*as_jax(v, t), 12.0, 9.0), want, rtol=1e-5)
    np.testing.assert_allclose(soft_contrastive(*as_jax(t, v), 12.0, 9.0), want, rtol=1e-5)


def test_soft_contrastive_gradient_is_that_of_the_plain_differences():
    v, t = as_jax(unit(draw(B, D)), unit(draw(B, D, seed=1)))
    v = v.at[0].set(t[0])

    def plain(v, t, scale, shift):
        score = shift - scale * jnp.sqrt(jnp.sum((v[:, None] - t[None]) ** 2, -1) + 1e-6)
        return 2 * jnp.sum(jax.nn.softplus(2 * score * (1 - 2 * jnp.eye(B))))

    found = jax.grad(soft_contrastive, (0, 1, 2, 3))(v, t, 15.0, 15.0)
    for got, want in zip(found, jax.jit(jax.grad(plain, (0, 1, 2, 3)))(v, t, 15.0, 15.0), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-2)


def test_soft_contrastive_of_long_identical_rows_is_never_nan():
    # |v|^2 + |t|^2 - 2 v.t of these is rounded to both sides of 0
    (rows,) = as_jax(100 * draw(64, 32))
    found, grads = value_and_grad(lambda v, t: losses.soft_contrastive(v, t, 15.0, 15.0), [rows, rows])
    assert np.isfinite(found)
    assert all(np.isfinite(grad).all() for grad in grads)


def test_inter_modal_is_the_cross_entropy_over_all_anchors():
    reps, anchors = draw(B, D), draw(P, D, seed=2)
    logits = reps @ anchors.T / 0.5
    want = -np.mean([log_softmax(logits[k])[INDEX[k]] for k in range(B)])
    np.testing.assert_allclose(inter_modal(*as_jax(reps, anchors), INDEX, 0.5), want, rtol=1e-5)
    np.testing.assert_allclose(inter_modal(jnp.zeros((B, D)), *as_jax(anchors), INDEX, 0.5), np.log(P), rtol=1e-6)


def test_inter_modal_of_a_perfect_positive_among_orthogonal_negatives():
    # -1/t + ln(e^{1/t} + P - 1), the value worked out in the CreamFL specification
    want = -2 + np.log(np.exp(2) + P - 1)
    np.testing.assert_allclose(inter_modal(jnp.eye(P)[INDEX], jnp.eye(P), INDEX, 0.5), want, rtol=1e-6)


def test_intra_modal_is_the_two_way_cross_entropy_and_ln_2_where_both_are_alike():
    r, c, p = draw(B, D), draw(B, D, seed=1), draw(B, D, seed=2)
    both = np.stack([(r * c).sum(1), (r * p).sum(1)], 1) / 0.5
    want = np.mean(logsumexp(both, axis=1) - both[:, 0])
    np.testing.assert_allclose(intra_modal(*as_jax(r, c, p), 0.5), want, rtol=1e-5)
    np.testing.assert_allclose(intra_modal(*as_jax(r, c, c), 0.5), np.log(2), rtol=1e-6)


def test_distill_is_the_softened_kl():
    teacher, student = draw(2, B, K), draw(2, B, K, seed=1)
    p = softmax(teacher / 3, -1)
    want = 9 * np.mean(np.sum(p * (np.log(p) - log_softmax(student / 3, -1)), -1))
    np.testing.assert_allclose(distill(*as_jax(teacher, student), 3.0), want, rtol=1e-5)
    assert abs(distill(*as_jax(teacher, teacher), 3.0)) < 1e-6


def test_distill_at_high_temperature_is_half_the_squared_error_of_centred_logits():
    # Hinton 2015, eq. 4
    teacher, student = draw(B, K), draw(B, K, seed=1)
    gap = (teacher - teacher.mean(1, keepdims=True)) - (student - student.mean(1, keepdims=True))
    found = distill(*as_jax(teacher, student), 100.0)
    np.testing.assert_allclose(found, (gap**2).sum(1).mean() / (2 * K), rtol=5e-2)


@pytest.mark.parametrize("name", LOSSES)
def test_masked_rows_take_no_part(name):
    loss, arrays = LOSSES[name]
    mask = np.array([1.0, 0.0, 1.0, 1.0, 0.0], np.float32)
    if name == "inter_modal":  # the index of the real rows moves with them
        anchors = jnp.asarray(draw(P, D, seed=2), jnp.float32)
        want = inter_modal(*as_jax(arrays[0][mask > 0]), anchors, jnp.asarray(INDEX[mask > 0]), 0.5)
    else:
        want = loss(*as_jax(*(x[mask > 0] for x in arrays)))
    padded = as_jax(*(np.where(mask[:, None] > 0, x, np.nan) for x in arrays))
    found, grads = value_and_grad(loss, padded, mask=jnp.asarray(mask))
    np.testing.assert_allclose(found, want, rtol=1e-5)
    for grad in grads:
        np.testing.assert_array_equal(grad[mask == 0], 0)
        assert np.isfinite(grad).all()
        assert np.abs(grad[mask > 0]).max() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_without_real_rows_loss_and_gradient_are_0(name):
    loss, arrays = LOSSES[name]
    found, grads = value_and_grad(loss, as_jax(*arrays), mask=jnp.zeros(B))
    assert found == 0
    assert all((np.asarray(grad) == 0).all() for grad in grads)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("fill", ["zero", "same", "huge"])
def test_finite_with_finite_gradients_everywhere(name, fill):
    loss, arrays = LOSSES[name]
    if fill == "huge":  # in opposite directions, so that exponentials would overflow
        arrays = as_jax(*((-1) ** i * 1e3 * np.abs(x) for i, x in enumerate(arrays)))
    else:
        arrays = as_jax(*((0.0 if fill == "zero" else 1.0) * np.ones_like(x) for x in arrays))
    found, grads = value_and_grad(loss, arrays)
    assert np.isfinite(found)
    assert all(np.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_inputs_are_widened(name):
    loss, arrays = LOSSES[name]
    halves = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    found = loss(*halves)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, loss(*(x.astype(jnp.float32) for x in halves)), rtol=1e-6)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: losses.info_nce(jnp.ones((3, 2)), jnp.ones((4, 2)), 1.0), r"a \(3, 2\), b \(4, 2\)"),
        (lambda: losses.info_nce(jnp.ones((3, 2)), jnp.ones((3, 2)), 0.0), "temperature"),
        (lambda: losses.info_nce(jnp.ones((3, 2)), jnp.ones((3, 2)), 1.0, mask=jnp.ones(2)), "mask"),
        (lambda: losses.soft_contrastive(jnp.ones((3, 2)), jnp.ones((3, 3)), 1.0, 1.0), "image"),
        (lambda: losses.inter_modal(jnp.ones((3, 2)), jnp.ones((5, 3)), jnp.zeros(3, int), 1.0), "anchors"),
        (lambda: losses.inter_modal(jnp.ones((3, 2)), jnp.ones((5, 2)), jnp.zeros(2, int), 1.0), "index"),
        (lambda: losses.inter_modal(jnp.ones((3, 2)), jnp.ones((5, 2)), jnp.zeros(3), 1.0), "index is float32"),
        (lambda: losses.intra_modal(jnp.ones((3, 2)), jnp.ones((3, 2)), jnp.ones((1, 2)), 1.0), "previous"),
        (lambda: losses.distill(jnp.ones((3, 2)), jnp.ones((3, 4)), 1.0), "student_logits"),
        (lambda: losses.distill(jnp.ones((3, 2)), jnp.ones((3, 2)), -1.0), "temperature"),
    ],
)
def test_wrong_shapes_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_scales_and_temperatures_are_scalars():
    rows = jnp.eye(2)
    with pytest.raises(ValueError, match="rank"):
        losses.soft_contrastive(rows, rows, jnp.ones(2), 0.0)
    with pytest.raises(ValueError, match="rank"):
        losses.info_nce(rows, rows, jnp.ones((2, 1)))
