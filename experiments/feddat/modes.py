"""The ways to tune one trunk that experiments.feddat compares, and what each trains and sends."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

from fedjax_mm import trees
from fedjax_mm.data import FederatedData
from fedjax_mm.federate import Method
from fedjax_mm.methods import feddat
from fedjax_mm.methods.feddat import Answers, FedDATConfig, peft
from fedjax_mm.methods.feddat.peft import PEFTConfig
from fedjax_mm.methods.feddat.vqa_tuning import Training
from fedjax_mm.models import Albef, Model, Vilt, adapters, albef
from fedjax_mm.types import PyTree

Head = Model | Answers


class Widths(NamedTuple):
    """Widths of what is tuned besides the trunk."""

    adapter: int = 48
    """Hidden units of an adapter."""
    prompt: int = 192
    """Hidden units of the prompt's MLP."""
    rank: int = 16
    """Rank of LoRA."""


class Mode(NamedTuple):
    """A way to tune: the method's settings, and, for PEFT, what is added to the trunk and what of the trunk trains."""

    config: FedDATConfig | PEFTConfig
    adds: str = ""
    trains: Callable[[str], bool] = adapters.classifier


def modes(training: Training) -> dict[str, Mode]:
    """Every mode by name, all with the same training."""
    dat = lambda **changed: Mode(FedDATConfig(training, **changed))
    tuned = lambda adds="", trains=adapters.classifier, **changed: Mode(PEFTConfig(training, **changed), adds, trains)
    return {
        "classifier": tuned(),
        "standalone": tuned("adapter", travels=False),
        "bias": tuned(trains=adapters.bias),
        "norm": tuned(trains=adapters.norm),
        "prompt": tuned("prompt"),
        "lora": tuned("lora"),
        "full": tuned(trains=adapters.full),
        "adapter": tuned("adapter"),
        "adapter+prox": tuned("adapter", prox=0.01),
        "adapter+adam": tuned("adapter", server_optimizer="adam", server_lr=1e-3),
        "adapter+dyn": tuned("adapter", dyn=0.01),
        "dat": dat(),
        "dat, T 1": dat(temperature=1.0),
        "dat, no teacher": dat(alpha=0.0),
        "dat, no distillation": dat(alpha=0.0, beta=0.0),
        "mutual": dat(dual=False),
    }


def make(mode: Mode, widths: Widths, data: FederatedData, model: Vilt | Albef, trunk: PyTree, head: Head) -> Method:
    """The mode's method over one trunk. Raises ValueError for a mode that there is not over ALBEF."""
    if isinstance(model, Albef):
        if mode.adds not in ("", "adapter"):
            raise ValueError(f"over ALBEF there is no {mode.adds}; give --modes without it")
        adapter = functools.partial(albef.adapter, model=model, hidden=widths.adapter)
        starts = {"adapter": adapter}
    else:
        of_layers = {"depth": model.depth, "dim": model.width}
        adapter = functools.partial(adapters.adapter, **of_layers, hidden=widths.adapter)
        starts = {
            "adapter": adapter,
            "lora": functools.partial(adapters.lora, **of_layers, rank=widths.rank),
            "prompt": functools.partial(adapters.prompt, dim=model.width, hidden=widths.prompt),
        }
    if isinstance(mode.config, FedDATConfig):
        return feddat.build(mode.config, data, model, trunk, adapter, head)
    added = {mode.adds: starts[mode.adds]} if mode.adds else {}
    init = lambda key: {name: start(key) for name, start in added.items()}
    return peft.build(mode.config, data, model, trunk, head, tuning_init=init, trains=mode.trains)


class Size(NamedTuple):
    trained: int  # numbers that one client trains: what it tunes, alone or with others, and its head
    mb: float  # sent to it, and back, in every round


def size(mode: Mode, widths: Widths, data: FederatedData, model: Vilt | Albef, trunk: PyTree, head: Head) -> Size:
    """What a mode trains and sends. Shapes are enough: leaves of the trunk may be jax.ShapeDtypeStruct."""

    def shapes(trunk):
        method = make(mode, widths, data, model, trunk, head)
        state = method.init(jax.random.key(0))
        (download,) = method.server.download(state.server, None).values()
        return state, download.sent

    state, sent = jax.eval_shape(shapes, trunk)
    part = lambda tree: {name: tree[name] for name in ("adapter", "tuned", "head") if name in tree}
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    ((name, clients),) = state.clients.items()
    return Size(count(part(state.server)) + count(part(clients)) // data.sizes[name], trees.size_bytes(sent) / 1e6)
