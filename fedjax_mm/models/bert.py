"""BERT (Devlin et al. 2019) and DistilBERT (Sanh et al. 2019) on token ids, with 0 for padding."""

import pathlib

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_mm.checks import check_flag
from fedjax_mm.models import configs
from fedjax_mm.models.checks import check_number, check_sizes
from fedjax_mm.models.pretrained import Checkpoint, Names, layers, linear, load, norm, tensor
from fedjax_mm.models.transformer import Layer, Pool, Transformer, stack
from fedjax_mm.types import PyTree

# Beginnings of the names of tensors that belong to other heads.
BERT_HEADS = ("cls.", "pooler.", "classifier.", "qa_outputs.")
DISTILBERT_HEADS = (
    "vocab_transform.",
    "vocab_layer_norm.",
    "vocab_projector.",
    "pre_classifier.",
    "classifier.",
    "qa_outputs.",
)


BERT = configs.Config(
    "bert",
    {
        **configs.SIZES,
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
        "types": "type_vocab_size",
        "epsilon": "layer_norm_eps",
    },
    {"hidden_act": "gelu", "position_embedding_type": "absolute"},
)
DISTILBERT = configs.Config(
    "distilbert",
    {
        "vocabulary": "vocab_size",
        "dim": "dim",
        "depth": "n_layers",
        "heads": "n_heads",
        "mlp": "hidden_dim",
        "positions": "max_position_embeddings",
    },
    {"activation": "gelu"},
)


class Embeddings(nn.Module):
    """Token ids [B, T] -> [B, T, D]: norm(word + position + type 0); `vectors` [B, T, D] take the words' place.

    Parameters: word [vocabulary, D] unless vectors take its place, positions [positions, D], types [types, D] where
    there are any, and norm (scale, bias).
    """

    vocabulary: int
    dim: int
    positions: int
    types: int
    epsilon: float
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, vectors: jax.Array | None = None) -> jax.Array:
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer) or tokens.shape[1] > self.positions:
            wanted = f"integers [B, T] with T at most {self.positions}"
            raise ValueError(f"tokens must be {wanted}, got {tokens.dtype} {tokens.shape}")
        table = lambda name, rows: self.param(name, nn.initializers.normal(0.02), (rows, self.dim))
        x = vectors
        if x is None:  # ids outside the vocabulary give NaN, not another word's embedding
            x = jnp.take(table("word", self.vocabulary), tokens, axis=0, mode="fill", fill_value=jnp.nan)
        x += table("positions", self.positions)[None, : tokens.shape[1]]
        if self.types:
            x += table("types", self.types)[None, :1]
        return nn.LayerNorm(self.epsilon, use_fast_variance=False, dtype=self.dtype, name="norm")(x)


def encoder(
    vocabulary: int = 30522,
    dim: int = 768,
    depth: int = 6,
    heads: int = 12,
    mlp: int = 3072,
    positions: int = 512,
    types: int = 0,
    pooler: bool = False,
    dropout: float = 0.1,
    epsilon: float = 1e-12,
    std: float = 0.02,
    repository: str = "",
    dtype: jax.typing.DTypeLike = jnp.float32,
    pool: Pool = "first",
) -> Transformer:
    """An encoder of token ids [B, T] in 0..vocabulary-1 with T <= positions; 0 is [PAD] and takes part in nothing.

    types: number of token types. 0 is DistilBERT, which has neither token types nor a pooler, and no dropout on
        attention's output. With types, every token is of type 0, as in a single sentence.
    pool: what `apply` gives: token 0, or the mean of the real tokens, as encoders of sentences have it.
    dropout: rate on embeddings and in layers, where `tokens` and `apply` get a key.
    std: standard deviation of the layers' first kernels.
    repository: place of the weights on huggingface.co. dtype: type of arithmetic.

    Raises ValueError for a pooler without types, and for sizes that are none.

    >>> model = encoder(vocabulary=10, dim=6, depth=1, heads=2, mlp=12, positions=5)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), model.example)
    >>> jax.eval_shape(model.tokens, params, model.example).shape
    (1, 5, 6)
    """
    check_sizes(vocabulary=vocabulary, positions=positions)
    check_sizes(0, types=types, depth=depth)
    check_flag("pooler", pooler)
    check_number("std", std)
    if pooler and not types:
        raise ValueError("DistilBERT (types 0) has no pooler; BERT has types 2")
    family = BERT if types else DISTILBERT
    rates, prefix = (dropout, dropout if types else 0.0, dropout), f"{family.kind}."
    names, other = (layer_names(depth), BERT_HEADS) if types else (_distilbert_names(depth), DISTILBERT_HEADS)
    sizes = {"vocabulary": vocabulary, "dim": dim, "depth": depth, "heads": heads, "mlp": mlp, "positions": positions}
    of_bert = {"types": types, "epsilon": epsilon} if types else {}
    names |= embedding_names() | linear("pooler.dense", "pooler")
    return stack(
        Embeddings(vocabulary, dim, positions, types, epsilon, dtype),
        Layer(heads, mlp, pre_norm=False, epsilon=epsilon, dropout=rates, std=std, dtype=dtype),
        depth,
        dim,
        jax.ShapeDtypeStruct((1, positions), jnp.int32),
        Checkpoint(names, prefix, other, repository, ("pooler",), config=configs.stated(family, **sizes, **of_bert)),
        pooler,
        embeddings_dropout=dropout,
        mask=lambda tokens: tokens != 0,
        vocabulary=vocabulary,
        pool=pool,
    )


def from_pretrained(
    folder: str | pathlib.Path,
    pooler: bool = False,
    dropout: float = 0.1,
    dtype: jax.typing.DTypeLike = jnp.float32,
    pool: Pool = "first",
) -> tuple[Transformer, PyTree]:
    """(the BERT or DistilBERT that a Hugging Face folder's config.json describes, its parameters).

    pooler, dropout, dtype, pool: as `encoder` takes them. Raises what `pretrained.load` raises, and FileNotFoundError
    or ValueError where config.json is missing, damaged, or describes another model.
    """
    sizes = configs.arguments_of(folder, BERT, DISTILBERT)
    model = encoder(**sizes, pooler=pooler, dropout=dropout, dtype=dtype, pool=pool)
    return model, load(model, folder)


def distilbert(dropout: float = 0.1, dtype: jax.typing.DTypeLike = jnp.float32) -> Transformer:
    """DistilBERT-base, uncased: 6 layers of width 768."""
    return encoder(dropout=dropout, repository="distilbert-base-uncased", dtype=dtype)


def base(dropout: float = 0.1, dtype: jax.typing.DTypeLike = jnp.float32) -> Transformer:
    """BERT-base, uncased: 12 layers of width 768, token types and a pooler."""
    return encoder(depth=12, types=2, pooler=True, dropout=dropout, repository="bert-base-uncased", dtype=dtype)


def minilm(dropout: float = 0.1, dtype: jax.typing.DTypeLike = jnp.float32) -> Transformer:
    """MiniLM-L6 (Wang 2020) tuned on pairs of sentences (Reimers 2019): 6 layers of width 384, the mean of its tokens.

    Similarities of its embeddings are cosines, and it takes lower-case word pieces in BERT's vocabulary.
    """
    repository = "sentence-transformers/all-MiniLM-L6-v2"
    sizes = {"dim": 384, "mlp": 1536, "types": 2, "pooler": True}
    return encoder(**sizes, pool="mean", dropout=dropout, repository=repository, dtype=dtype)


def _distilbert_names(depth: int) -> Names:
    linears = {"q_lin": "query", "k_lin": "key", "v_lin": "value", "out_lin": "out"}
    linears = {f"attention.{theirs}": ours for theirs, ours in linears.items()}
    linears |= {"ffn.lin1": "fc_1", "ffn.lin2": "fc_2"}
    return layers("transformer.layer", depth, linears, {"sa_layer_norm": "norm_1", "output_layer_norm": "norm_2"})


def embedding_names() -> Names:
    """The names of the embeddings' tensors in files of BERT, and in files of ALBEF, which took them over."""
    return (
        tensor("embeddings.word_embeddings.weight", "embeddings/word")
        | tensor("embeddings.position_embeddings.weight", "embeddings/positions")
        | tensor("embeddings.token_type_embeddings.weight", "embeddings/types")
        | norm("embeddings.LayerNorm", "embeddings/norm")
    )


def layer_names(depth: int) -> Names:
    """The names of the layers' tensors in files of BERT, and in files of ALBEF."""
    linears = {f"attention.self.{name}": name for name in ("query", "key", "value")}
    linears |= {"attention.output.dense": "out", "intermediate.dense": "fc_1", "output.dense": "fc_2"}
    norms = {"attention.output.LayerNorm": "norm_1", "output.LayerNorm": "norm_2"}
    return layers("encoder.layer", depth, linears, norms)
