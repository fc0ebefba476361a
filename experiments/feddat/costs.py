"""What each way of tuning ViLT-B/32 trains and sends, and what FedDAT's round over one trunk takes.

python -m experiments.feddat costs
"""

from typing import Any

import jax
import numpy as np

from experiments.feddat.modes import Mode, Widths, make, modes, size
from fedjax_mm import report, trees
from fedjax_mm.data import FederatedData
from fedjax_mm.methods.feddat import FedDATConfig
from fedjax_mm.methods.feddat.vqa_tuning import Training
from fedjax_mm.models import adapters, vilt
from fedjax_mm.types import PyTree


def main(answers: int = 100, clients: int = 32, batch_size: int = 2) -> None:
    """Prints what every mode trains and sends, and what FedDAT's round takes; traced and compiled, and never run.

    Args:
        answers: of each client.
        clients: that take part in the round.
        batch_size: of a client, images of 384x384 and questions of 40 words.
    """
    model, head, training = vilt.base(), adapters.answers(answers), Training(batch_size=batch_size)
    trunk = jax.eval_shape(model.init, jax.random.key(0), model.example)
    rows = []
    for name, mode in modes(training).items():
        counted = size(mode, Widths(), data(model, answers, 1, batch_size), model, trunk, head)
        rows.append({"mode": name, "trained": counted.trained, "MB each way": counted.mb})
    report.show(rows)
    dat = Mode(FedDATConfig(training))
    report.show([memory(dat, data(model, answers, n, batch_size), model, trunk, head) for n in (1, clients)])


def data(model: vilt.Vilt, answers: int, clients: int, batch_size: int) -> FederatedData:
    """Clients with one batch each."""
    examples = clients * batch_size
    arrays = {name: np.zeros((examples, *x.shape[1:]), x.dtype) for name, x in model.example.items()}
    arrays["target"] = np.zeros((examples, answers), np.float32)
    return FederatedData.from_arrays(arrays, np.repeat(np.arange(clients), batch_size))


def memory(mode: Mode, data: FederatedData, model: vilt.Vilt, trunk: PyTree, head) -> dict[str, float]:
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
