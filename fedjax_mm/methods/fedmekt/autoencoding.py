"""What FedMEKT and MMFL share: the local objectives over split autoencoders, and a client's step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from fedjax_mm import losses
from fedjax_mm.local import Step, masked_mean
from fedjax_mm.models.autoencoder import AutoEncoder
from fedjax_mm.types import Arrays, PyTree

Objective = Literal["split", "dcc"]
Variant = Literal["C", "S"]


def objective(kind: Objective, ae: AutoEncoder, params: PyTree, codes: Arrays, x: Arrays, mask, sources) -> jax.Array:
    """The loss of a batch without distillation, [].

    codes {m: [B, D]}, the embeddings at the last step; x {m: [B, T, F]}; mask [B]; sources: modalities decoded.
    split: sum over sources m and all n of rec(m -> n), the mean squared error to the window reversed in time.
    dcc: 0.01 sum rec(m -> m) - correlation of each pair of codes; with one modality rec(m -> m).
    """
    if kind == "split":
        code = jnp.concatenate([codes[m] for m in sources])  # one pass of each decoder for all sources
        return len(sources) * sum(_reconstruction(ae, params, n, code, x[n], mask, len(sources)) for n in x)
    own = sum(_reconstruction(ae, params, m, codes[m], x[m], mask) for m in x)
    if len(x) == 1:
        return own
    names = list(x)
    pairs = [(m, n) for i, m in enumerate(names) for n in names[i + 1 :]]
    return 0.01 * own - sum(correlation(codes[m], codes[n], mask) for m, n in pairs)


def _reconstruction(ae, params, modality, code, x, mask, repeats=1):
    error = ae.decode(params, modality, code, x.shape[1]) - jnp.tile(x[:, ::-1], (repeats, 1, 1))
    return masked_mean(error**2, jnp.tile(mask, repeats))


def correlation(a: jax.Array, b: jax.Array, mask: jax.Array | None = None, ridge: float = 1e-3) -> jax.Array:
    """Sum of the D canonical correlations c of two sets of codes, as sum of sqrt(c^2 + ridge).

    a, b [B, D], mask [B]; -> []. ridge is added to both covariances too. (Andrew 2013; Zhao 2022, MMFL, DCCLoss)

    c are the singular values of L_a^-1 S_ab L_b^-T with Cholesky factors in place of the inverse square roots, which
    only rotates; and the sum is a trace, whose gradient no two equal eigenvalues can upset.
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


def distill(teacher, student, mask, temperature: float, axis: str) -> jax.Array:
    """T^2 KL(teacher || student), [], of embeddings [B, D] or [B, T, D] over their features or their time; mask [B].

    The mean over windows, and over steps with "feature"; the sum over features with "time", as FedMEKT's code has it.
    """
    if axis == "time":
        teacher, student = jnp.swapaxes(teacher, 1, 2), jnp.swapaxes(student, 1, 2)
    rows = jnp.broadcast_to(mask.reshape(-1, *[1] * (student.ndim - 2)), student.shape[:-1])
    mean = losses.distill(teacher, student, temperature, mask=rows)
    return mean * student.shape[1] if axis == "time" else mean


def frozen_maps(key: jax.Array, widths: Mapping[str, int]) -> PyTree:
    """A random linear map for each name, kernel [width, width] and bias uniform in +-1/sqrt(width) as PyTorch's."""
    maps = {}
    for i, (name, width) in enumerate(widths.items()):
        draw = jax.random.uniform(jax.random.fold_in(key, i), (width + 1, width), minval=-1, maxval=1) * width**-0.5
        maps[name] = {"kernel": draw[:-1], "bias": draw[-1]}
    return maps


def apply_map(layer: PyTree, x: jax.Array) -> jax.Array:
    """[..., width] -> [..., width]."""
    return x @ layer["kernel"] + layer["bias"].reshape((1,) * (x.ndim - 1) + (-1,))


def phases(variant: Variant, ae: AutoEncoder, held: Sequence[str]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """What a step does in turn: (modalities encoded, parts trained).

    C: all at once. S: one modality after the other, the other encoders frozen.
    """
    everything = tuple(part for m in held for part in ae.parts(m))
    if variant == "C":
        return [(tuple(held), everything)]
    others = lambda m: {ae.parts(n)[0] for n in held if n != m}
    return [((m,), tuple(part for part in everything if part not in others(m))) for m in held]


def phased_step(loss: Callable, tx: optax.GradientTransformation, turns) -> Step:
    """A step over the carry (params, optimiser states), both by part, for `loss(params, batch, key, sources)`."""

    def step(carry, batch, key):
        params, opt = carry
        collected = []
        for sources, parts in turns:
            train = {part: params[part] for part in parts}
            of = lambda train, params=params, sources=sources: loss({**params, **train}, batch, key, sources)
            (value, metrics), grads = jax.value_and_grad(of, has_aux=True)(train)
            for part in parts:
                updates, state = tx.update(grads[part], opt[part], params[part])
                params = {**params, part: optax.apply_updates(params[part], updates)}
                opt = {**opt, part: state}
            collected.append({"loss": value, **metrics})
        return (params, opt), jax.tree.map(lambda *x: sum(x) / len(x), *collected)

    return step


def adam(lr: float) -> optax.GradientTransformation:
    """Adam over one vector: the parts have many small leaves, and an operation for each costs more than its work."""
    return optax.flatten(optax.adam(lr))


def init_opt(tx: optax.GradientTransformation, params: PyTree) -> PyTree:
    """A state of the optimiser for each part."""
    return {part: tx.init(value) for part, value in params.items()}


def check_holders(ae: AutoEncoder, holds: Mapping[str, tuple[str, ...]]) -> None:
    """Raises ValueError where a modality has no holder or a cohort holds nothing."""
    for m in ae.modalities:
        if not any(m in held for held in holds.values()):
            raise ValueError(f"no client holds modality {m!r}: the cohorts have {dict(holds)}; drop it or add clients")
    for name, held in holds.items():
        if not held:
            raise ValueError(f"cohort {name} holds none of the modalities {list(ae.modalities)}; leave the cohort out")
