"""Losses between representations and between logits.

Every loss is computed in float32 or wider and takes an optional `mask`, with one number per row that is above 0 where
the row is real. A masked row is neither an anchor nor a candidate; its values may be anything (NaN too). Where no row
is real, the loss and its gradient are 0. Means are over the real rows.
"""

import jax
import jax.numpy as jnp
import optax

from fedjax_mm.checks import check_scalar, check_traced, say


def info_nce(a: jax.Array, b: jax.Array, temperature: jax.Array | float, *, mask: jax.Array | None = None) -> jax.Array:
    """The symmetric contrastive loss: the mean of the cross-entropies a -> b and b -> a over cosines / temperature.

    a, b [B, D], row k of one the positive of row k of the other; temperature []; mask [B]; -> []. The loss normalises
    the rows; a zero row has cosine 0 with everything and gradient 0. (van den Oord 2018; Radford 2021, figure 3)

    >>> a = jnp.eye(3)
    >>> round(float(info_nce(a, a, 0.1)), 3), round(float(info_nce(a, a[::-1], 0.1)), 3)  # two of three pairs swapped
    (0.0, 6.667)
    """
    _same_shape(a=a, b=b)
    _check_temperature(temperature)
    real = _real(mask, a.shape[:1])
    logits = unit(_clean(a, real)) @ unit(_clean(b, real)).T / temperature
    candidates = real[None, :]
    target = jnp.arange(len(real))
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
    both = cross_entropy(logits, target, where=candidates) + cross_entropy(logits.T, target, where=candidates)
    return _mean(both / 2, real)


def soft_contrastive(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array | float,
    shift: jax.Array | float,
    *,
    mask: jax.Array | None = None,
) -> jax.Array:
    """2 sum_ij log(1 + exp(-2 m_ij s_ij)), where s_ij = shift - scale sqrt(|image_i - text_j|^2 + 1e-6).

    m_ij is 1 where i = j, else -1. image, text [B, D], usually of unit length; scale, shift [] (learnable, both 15 at
    the start); mask [B]; -> [], a sum over the B^2 pairs. The factor 2 counts both directions, which are equal.
    (Chun 2021, PCME, without its variances; CreamFL's task loss of the server and of clients with both modalities)

    >>> image = jnp.eye(2)
    >>> round(float(soft_contrastive(image, image, 15.0, 15.0)))  # each image at its own text
    0
    >>> round(float(soft_contrastive(image, image[::-1], 15.0, 15.0)))  # each image at the other's text
    170
    """
    _same_shape(image=image, text=text)
    check_scalar("scale", scale)
    check_scalar("shift", shift)
    real = _real(mask, image.shape[:1])
    image, text = _clean(image, real), _clean(text, real)
    # One matmul instead of B^2 differences (13 times faster at B = 128, D = 512, and no [B, B, D] array); in full
    # float32, because the rounding of accelerators would drown the distance of a good pair.
    inner = jnp.matmul(image, text.T, precision="highest")
    squared = _square(image)[:, None] + _square(text)[None, :] - 2 * inner
    distance = jnp.sqrt(jnp.maximum(squared, 0) + 1e-6)
    score = shift - scale * distance
    pairs = optax.losses.sigmoid_binary_cross_entropy(2 * score, jnp.eye(len(real)))
    return 2 * jnp.sum(jnp.where(real[:, None] & real[None, :], pairs, 0))


def inter_modal(
    reps: jax.Array,
    anchors: jax.Array,
    index: jax.Array,
    temperature: jax.Array | float,
    *,
    mask: jax.Array | None = None,
) -> jax.Array:
    """The mean cross-entropy of reps . anchors / temperature over all P anchors, where `index` is the right anchor.

    reps [B, D], anchors [P, D] of the other modality, index [B] int in 0..P-1, temperature [], mask [B]; -> []. The
    loss normalises nothing. (Yu 2023, CreamFL, l_inter; the paper's temperature is 1, that of the authors' code 0.5)

    >>> anchors = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> round(float(inter_modal(jnp.array([[9.0, 0.0]]), anchors, jnp.array([0]), temperature=1.0)), 3)
    0.0
    """
    check_traced("index", index)
    check_traced("reps", reps)
    check_traced("anchors", anchors)
    if reps.ndim != 2 or anchors.ndim != 2 or reps.shape[1] != anchors.shape[1]:
        raise ValueError(
            f"reps {reps.shape} and anchors {anchors.shape} do not fit; they must be [B, D] and [P, D] with one D."
        )
    if index.shape != reps.shape[:1] or not jnp.issubdtype(index.dtype, jnp.integer):
        raise ValueError(
            f"index is {index.dtype} {index.shape}; it must hold one integer, its row of anchors, for each of "
            f"the {len(reps)} reps."
        )
    _check_temperature(temperature)
    real = _real(mask, index.shape)
    logits = _clean(reps, real) @ _float(anchors).T / temperature
    target = jnp.where(real, index, 0)
    return _mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, target), real)


def intra_modal(
    reps: jax.Array,
    current: jax.Array,
    previous: jax.Array,
    temperature: jax.Array | float,
    *,
    mask: jax.Array | None = None,
) -> jax.Array:
    """The mean of -log(e^{r.c/t} / (e^{r.c/t} + e^{r.p/t})): towards the server's rep c, away from the old model's p.

    reps, current, previous [B, D], the same examples in the same modality; temperature []; mask [B]; -> []. The loss
    normalises nothing. (Li 2021, MOON, eq. 3; Yu 2023, CreamFL, l_intra)

    >>> rep, other = jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 3.0]])
    >>> round(float(intra_modal(rep, current=rep, previous=other, temperature=1.0)), 3)
    0.0
    >>> round(float(intra_modal(rep, current=other, previous=rep, temperature=1.0)), 3)
    9.0
    """
    _same_shape(reps=reps, current=current, previous=previous)
    _check_temperature(temperature)
    real = _real(mask, reps.shape[:1])
    reps, current, previous = (_clean(x, real) for x in (reps, current, previous))
    away = jnp.sum(reps * previous, axis=-1) - jnp.sum(reps * current, axis=-1)
    return _mean(jax.nn.softplus(away / temperature), real)


def distill(
    teacher_logits: jax.Array,
    student_logits: jax.Array,
    temperature: jax.Array | float,
    *,
    mask: jax.Array | None = None,
) -> jax.Array:
    """temperature^2 KL(teacher || student) of the softened softmaxes, the mean over the leading axes.

    teacher_logits, student_logits [..., K], temperature [], mask [...]; -> []. (Hinton 2015)

    >>> teacher = jnp.array([[2.0, 0.0]])
    >>> float(distill(teacher, teacher, temperature=2.0)), bool(distill(teacher, -teacher, temperature=2.0) > 0)
    (0.0, True)
    """
    check_traced("teacher_logits", teacher_logits)
    check_traced("student_logits", student_logits)
    if teacher_logits.shape != student_logits.shape or teacher_logits.ndim == 0:
        raise ValueError(
            f"teacher_logits {teacher_logits.shape} and student_logits {student_logits.shape} differ; "
            "both must be [..., K]."
        )
    _check_temperature(temperature)
    real = _real(mask, teacher_logits.shape[:-1])
    teacher = jax.nn.log_softmax(_clean(teacher_logits, real) / temperature)
    student = jax.nn.log_softmax(_clean(student_logits, real) / temperature)
    return temperature**2 * _mean(optax.losses.kl_divergence_with_log_targets(student, teacher), real)


def _float(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _clean(x: jax.Array, real: jax.Array) -> jax.Array:
    return jnp.where(real[..., None], _float(x), 0)


def unit(x: jax.Array) -> jax.Array:
    """Rows [..., D] scaled to length 1; a zero row stays as it is, with gradient 0.

    >>> print(unit(jnp.array([[3.0, 4.0], [0.0, 0.0]])).round(1))
    [[0.6 0.8]
     [0.  0. ]]
    """
    check_traced("x", x)
    if x.ndim == 0:
        raise ValueError(f"x is {say(x)}; give rows [..., D]")
    return x * jax.lax.rsqrt(jnp.maximum(_square(x), 1e-12))[..., None]


def _square(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x), axis=-1)


def _real(mask: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
    if mask is None:
        return jnp.ones(shape, bool)
    check_traced("mask", mask)
    if mask.shape != shape:
        raise ValueError(f"mask is {mask.shape}; it must be {shape}, one number per row, > 0 where the row is real.")
    return mask > 0


def _mean(loss: jax.Array, real: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(real, loss, 0)) / jnp.maximum(jnp.sum(real), 1)


def _same_shape(**arrays: jax.Array) -> None:
    for name, x in arrays.items():
        check_traced(name, x)
    shapes = {name: x.shape for name, x in arrays.items()}
    if len(set(shapes.values())) != 1 or any(x.ndim != 2 for x in arrays.values()):
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{found}: all must have one shape [B, D], row k of each belonging to the same example.")


def _check_temperature(temperature: jax.Array | float) -> None:
    check_scalar("temperature", temperature, above=0)
