"""What FedMEKT and MMFL share: who owns which modality, the losses of split autoencoders, and a client's step.

Shapes: B windows of a batch, T steps, F features of a modality, D width of an embedding z, H width of a state h.
Numbers in parentheses are sections of docs/specs/fedmekt.md.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from fedjax_mm import losses
from fedjax_mm.local import Step, masked_mean
from fedjax_mm.models.autoencoder import AutoEncoder
from fedjax_mm.types import Arrays, Population, PyTree

Objective = Literal["split", "dcc"]
Variant = Literal["C", "S"]
Modalities = tuple[str, ...]
Owners = Mapping[str, Modalities]  # cohort -> the modalities that its clients own


def modalities_of(ae: AutoEncoder, arrays: Iterable[str]) -> Modalities:
    """The modalities among the names of `arrays`, in the order of the autoencoder.

    >>> from fedjax_mm.models import autoencoder
    >>> modalities_of(autoencoder.linear({"a": 3, "b": 2}), {"label": 0, "b": 0})
    ('b',)
    """
    return tuple(m for m in ae.modalities if m in arrays)


def find_owners(ae: AutoEncoder, population: Population) -> dict[str, Modalities]:
    """{cohort: the modalities that its clients own}: those that its arrays have."""
    return {name: modalities_of(ae, cohort.arrays) for name, cohort in population.cohorts.items()}


def objective(
    kind: Objective,
    ae: AutoEncoder,
    params: PyTree,
    codes: Arrays,
    x: Arrays,
    mask: jax.Array,
    sources: Sequence[str],
) -> jax.Array:
    """The loss of a batch without distillation, [].

    codes {m: [B, D]} are the embeddings at the last step; x {m: [B, T, F]}; mask [B] is 1 for a real window; sources
    are the modalities that are decoded. "split" is the sum over sources m and all modalities n of rec(m -> n), the mean
    squared error to the window of n reversed in time (1.1). "dcc" is 0.01 sum rec(m -> m) minus the correlation of each
    pair of codes (3.3); with one modality it is rec(m -> m).

    >>> from fedjax_mm.models import autoencoder
    >>> ae = autoencoder.linear({"a": 3, "b": 2}, width=2)
    >>> silent = jax.tree.map(jnp.zeros_like, jax.eval_shape(ae.init, jax.random.key(0)))
    >>> x, codes = {"a": jnp.ones((4, 5, 3)), "b": 2 * jnp.ones((4, 5, 2))}, {m: jnp.ones((4, 2)) for m in "ab"}
    >>> float(objective("split", ae, silent, codes, x, jnp.ones(4), ("a", "b")))  # 2 sources, of each 1^2 + 2^2
    10.0
    """
    if kind == "split":
        code = jnp.concatenate([codes[m] for m in sources])  # one pass of each decoder for all sources
        errors = [_reconstruction(ae, params, n, code, x[n], mask, len(sources)) for n in x]
        return len(sources) * jnp.asarray(sum(errors))
    own = jnp.asarray(sum(_reconstruction(ae, params, m, codes[m], x[m], mask) for m in x))
    if len(x) == 1:
        return own
    names = list(x)
    pairs = [(m, n) for i, m in enumerate(names) for n in names[i + 1 :]]
    return 0.01 * own - sum(correlation(codes[m], codes[n], mask) for m, n in pairs)


def _reconstruction(ae, params, modality, code, x, mask, repeats=1):
    error = ae.decode(params, modality, code, x.shape[1]) - jnp.tile(x[:, ::-1], (repeats, 1, 1))
    return masked_mean(error**2, jnp.tile(mask, repeats))


def reconstruction_error(ae: AutoEncoder, params: PyTree, x: Arrays) -> jax.Array:
    """The error of each window decoded from its own code, [B]: the mean of the squared error over steps, features and
    modalities.

    x {m: [B, T, F]} of the modalities of which `params` has both halves. As in `objective`, the decoder gives the last
    step first.

    >>> from fedjax_mm.models import autoencoder
    >>> ae = autoencoder.linear({"a": 3}, width=2)
    >>> silent = jax.tree.map(jnp.zeros_like, jax.eval_shape(ae.init, jax.random.key(0)))
    >>> reconstruction_error(ae, silent, {"a": jnp.arange(3.0)[:, None, None] * jnp.ones((3, 5, 3))}).tolist()
    [0.0, 1.0, 4.0]
    """
    errors = []
    for m, windows in x.items():
        code = ae.encode(params, m, windows)[0][:, -1]
        error = ae.decode(params, m, code, windows.shape[1]) - windows[:, ::-1]
        errors.append((error**2).mean((1, 2)))
    return jnp.stack(errors).mean(0)


def correlation(a: jax.Array, b: jax.Array, mask: jax.Array | None = None, ridge: float = 1e-3) -> jax.Array:
    """The sum of the D canonical correlations c of two sets of codes, as the sum of sqrt(c^2 + ridge), [].

    a, b [B, D], mask [B]. `ridge` is added to both covariances too (Andrew et al. 2013; Zhao et al. 2022, MMFL's
    DCCLoss). The c are the singular values of L_a^-1 S_ab L_b^-T with Cholesky factors L in place of square roots of
    the covariances, which only rotates. The sum is a trace, whose gradient is finite where eigenvalues are equal.

    >>> a = jax.random.normal(jax.random.key(0), (64, 2))
    >>> round(float(correlation(a, a @ jnp.array([[2.0, 1.0], [0.0, 1.0]]))), 1)  # a linear map: both are 1
    2.0
    """
    mask = jnp.ones(len(a)) if mask is None else mask
    real = mask[:, None]
    centre = lambda x: (x - (x * real).sum(0, keepdims=True) / jnp.maximum(mask.sum(), 1.0)) * real
    a, b = centre(a), centre(b)
    product = lambda x, y: jnp.matmul(x.T, y, precision="highest")
    covariance = lambda x, y: product(x, y) / jnp.maximum(mask.sum() - 1, 1.0)
    whiten = lambda x, y: jax.scipy.linalg.solve_triangular(_cholesky(covariance(x, x), ridge), y, lower=True)
    t = whiten(a, whiten(b, covariance(b, a)).T)
    return _trace_sqrt(product(t, t) + ridge * jnp.eye(a.shape[1]))


def _cholesky(s, ridge):
    return jnp.linalg.cholesky(s + ridge * jnp.eye(len(s)))


@jax.custom_vjp
def _trace_sqrt(m: jax.Array) -> jax.Array:
    """trace(m^(1/2)) of a symmetric positive definite matrix; its gradient is m^(-1/2) / 2."""
    return jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(m), 0)).sum()


def _trace_sqrt_forward(m):
    values, vectors = jnp.linalg.eigh(m)
    root = jnp.sqrt(jnp.maximum(values, jnp.finfo(m.dtype).tiny))
    return root.sum(), jnp.matmul(vectors / root[None, :], vectors.T, precision="highest") / 2


_trace_sqrt.defvjp(_trace_sqrt_forward, lambda slope, g: (g * slope,))


def distill(
    teacher: jax.Array, student: jax.Array, mask: jax.Array, temperature: float, axis: Literal["feature", "time"]
) -> jax.Array:
    """T^2 KL(teacher || student) of softmaxes at temperature T, [], over the features or over the time of embeddings.

    teacher, student [B, D] or [B, T, D], mask [B]. It is the mean over windows. With "feature" it is the mean over
    steps too; with "time" it is the sum over features, as in FedMEKT's released code (1.1).

    >>> z = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> distill(z, z, jnp.ones(2), 3.0, "feature") < distill(z, 2 * z, jnp.ones(2), 3.0, "feature")
    Array(True, dtype=bool)
    """
    if axis == "time":
        teacher, student = jnp.swapaxes(teacher, 1, 2), jnp.swapaxes(student, 1, 2)
    rows = jnp.broadcast_to(mask.reshape(-1, *[1] * (student.ndim - 2)), student.shape[:-1])
    mean = losses.distill(teacher, student, temperature, mask=rows)
    return mean * student.shape[1] if axis == "time" else mean


def frozen_maps(key: jax.Array, widths: Mapping[str, int]) -> dict[str, dict[str, jax.Array]]:
    """A random linear map for each name: kernel [width, width] and bias [width], uniform in +-1/sqrt(width) as in
    PyTorch.

    >>> maps = frozen_maps(jax.random.key(0), {"z": 4})
    >>> maps["z"]["kernel"].shape, maps["z"]["bias"].shape, apply_map(maps["z"], jnp.ones((2, 5, 4))).shape
    ((4, 4), (4,), (2, 5, 4))
    """
    maps = {}
    for i, (name, width) in enumerate(widths.items()):
        draw = jax.random.uniform(jax.random.fold_in(key, i), (width + 1, width), minval=-1, maxval=1) * width**-0.5
        maps[name] = {"kernel": draw[:-1], "bias": draw[-1]}
    return maps


def apply_map(layer: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    """A map of `frozen_maps`: [..., width] -> [..., width]."""
    return x @ layer["kernel"] + layer["bias"].reshape((1,) * (x.ndim - 1) + (-1,))


def phases(variant: Variant, ae: AutoEncoder, modalities: Sequence[str]) -> list[tuple[Modalities, tuple[str, ...]]]:
    """What a step does in turn: (the modalities that are encoded, the parts that are trained).

    "C" encodes all modalities at once and trains all parts. "S" encodes one modality after the other, each time with
    the encoders of the others frozen (1.2).

    >>> from fedjax_mm.models import autoencoder
    >>> phases("S", autoencoder.linear({"a": 3, "b": 2}), ("a", "b"))[0]
    (('a',), ('encoder_a', 'decoder_a', 'decoder_b'))
    """
    everything = tuple(part for m in modalities for part in ae.parts(m))
    if variant == "C":
        return [(tuple(modalities), everything)]
    others = lambda m: {ae.parts(n)[0] for n in modalities if n != m}
    return [((m,), tuple(part for part in everything if part not in others(m))) for m in modalities]


def phased_step(
    loss: Callable, tx: optax.GradientTransformation, turns: Sequence[tuple[Modalities, tuple[str, ...]]]
) -> Step:
    """A step over the carry (params, optimiser states), both by part, for `loss(params, batch, key, sources)`.

    The loss gives (value [], metrics). `turns` are the `phases` of the step. Each metric is the mean over the phases.

    >>> from fedjax_mm.models import autoencoder
    >>> ae, tx = autoencoder.linear({"a": 3}, width=2), optax.sgd(0.5)
    >>> loss = lambda params, batch, key, sources: (optax.tree.norm(params, squared=True) / 2, {})
    >>> params = ae.init(jax.random.key(0))
    >>> (new, _), metrics = phased_step(loss, tx, phases("C", ae, "a"))((params, init_opt(tx, params)), {}, None)
    >>> bool((new["encoder_a"]["kernel"] == params["encoder_a"]["kernel"] / 2).all())
    True
    """

    def step(carry, batch, key):
        params, opt = carry
        by_phase = []
        for sources, parts in turns:
            train = {part: params[part] for part in parts}
            of = lambda train, params=params, sources=sources: loss({**params, **train}, batch, key, sources)
            (value, metrics), grads = jax.value_and_grad(of, has_aux=True)(train)
            for part in parts:
                updates, state = tx.update(grads[part], opt[part], params[part])
                params = {**params, part: optax.apply_updates(params[part], updates)}
                opt = {**opt, part: state}
            by_phase.append({"loss": value, **metrics})
        return (params, opt), jax.tree.map(lambda *x: sum(x) / len(x), *by_phase)

    return step


def adam(lr: float) -> optax.GradientTransformation:
    """Adam over one vector: the parts have many small leaves, and an operation for each costs more than its work."""
    return optax.flatten(optax.adam(lr))


def init_opt(tx: optax.GradientTransformation, params: PyTree) -> PyTree:
    """A state of the optimiser for each part."""
    return {part: tx.init(value) for part, value in params.items()}
