"""What each way of tuning a published trunk trains and sends, and what FedDAT's round over it takes.

python -m experiments.feddat costs
python -m experiments.feddat costs --trunk albef
"""

from typing import Any, Literal

import jax
import numpy as np

from experiments.feddat import trunks
from experiments.feddat.modes import Head, Mode, Widths, make, modes, size
from fedjax_mm import costs, report, trees
from fedjax_mm.data import FederatedData
from fedjax_mm.methods.feddat import FedDATConfig
from fedjax_mm.methods.feddat.vqa_tuning import Training
from fedjax_mm.models import Albef, Vilt, albef, vault, vilt
from fedjax_mm.types import PyTree

BASE = {"vilt": vilt.base, "vault": vault.base, "albef": albef.base}


def main(
    answers: int = 100,
    clients: int = 32,
    batch_size: int = 2,
    trunk: Literal["vilt", "vault", "albef"] = "vilt",
    compiled: bool = True,
) -> None:
    """Prints what every mode trains and sends, and what FedDAT's round takes; traced and compiled, and never run.

    Args:
        answers: of each client.
        clients: that take part in the round.
        batch_size: of a client, images of 384x384 and questions of 40 words, or 30 with ALBEF.
        trunk: at its published size.
        compiled: whether the round is compiled, which takes minutes, to say what memory it needs.
    """
    model, training = BASE[trunk](), Training(batch_size=batch_size)
    head = trunks.head(model, answers)
    shapes = jax.eval_shape(model.init, jax.random.key(0), model.example)
    theta = {part: leaves for part, leaves in shapes.items() if not (part == "head" and isinstance(model, Albef))}
    print(f"{trunk}: {sum(leaf.size for leaf in jax.tree.leaves(theta)):,} parameters")
    one, rows = data(model, answers, 1, batch_size), []
    for name, mode in modes(training).items():
        if not isinstance(model, Albef) or mode.adds in ("", "adapter"):
            counted = size(mode, Widths(), one, model, theta, head)
            step = flops(mode, one, model, theta, head)
            rows.append(
                {"mode": name, "trained": counted.trained, "MB each way": counted.mb, "GFLOP a batch": step / 1e9}
            )
    report.show(rows)
    if compiled:
        dat = Mode(FedDATConfig(training))
        report.show([memory(dat, data(model, answers, n, batch_size), model, theta, head) for n in (1, clients)])


def data(model: Vilt | Albef, answers: int, clients: int, batch_size: int) -> FederatedData:
    """Clients with one batch each."""
    examples = clients * batch_size
    arrays = {name: np.zeros((examples, *x.shape[1:]), x.dtype) for name, x in model.example.items()}
    if "choices" in arrays:
        arrays["choices"] = np.repeat(arrays["choices"], answers, axis=1)
    arrays["target"] = np.zeros((examples, answers), np.float32)
    return FederatedData.from_arrays(arrays, np.repeat(np.arange(clients), batch_size))


def flops(mode: Mode, data: FederatedData, model: Vilt | Albef, trunk: PyTree, head: Head) -> float:
    """FLOPs of the matrix products in one client's update, whose data are one batch. Shapes of the trunk are enough."""

    def update(trunk: PyTree, seen: PyTree, key: jax.Array) -> PyTree:
        method = make(mode, Widths(), data, model, trunk, head)
        state = method.init(jax.random.key(0))
        ((name, clients),) = state.clients.items()
        download = method.server.download(state.server, None)[name]
        own = jax.tree.map(lambda x: x[0], clients)
        return method.cohorts[name].update(download, own, seen, key)[0]

    return costs.matmul_flops(update, trunk, data.client("all", 0), jax.random.key(0))


def memory(mode: Mode, data: FederatedData, model: Vilt | Albef, trunk: PyTree, head: Head) -> dict[str, float]:
    """A row: the compiled round of all clients of `data`, its arguments and temporaries, and what lies in them."""
    make_method = lambda trunk: make(mode, Widths(), data, model, trunk, head)
    state = jax.eval_shape(lambda trunk: make_method(trunk).init(jax.random.key(0)), trunk)
    ((name, number),) = data.sizes.items()
    taking_part = data.round({name: np.arange(number)})
    lowered = jax.jit(make_method(trunk).round, donate_argnums=0).lower(state, taking_part, jax.random.key(0))
    options: dict[str, Any] = {"xla_backend_optimization_level": 0}
    compiled = lowered.compile(compiler_options=options).memory_analysis()
    assert compiled, "the backend does not say what a program holds"
    parts = {"trunk": state.server["trunk"], "adapters and heads": state.clients, "questions": taking_part}
    row = {"clients": number} | {f"{key}, MB": trees.size_bytes(tree) / 1e6 for key, tree in parts.items()}
    return row | {"round, MB": (compiled.argument_size_in_bytes + compiled.temp_size_in_bytes) / 1e6}
