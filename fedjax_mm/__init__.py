"""fedjax_mm: federated multimodal learning in JAX, one compiled round for clients of every kind.

data = FederatedData.from_arrays(arrays, clients)          # who owns which examples
method = methods.fedavg.build(config, data, encoders, head)  # what a client and the server do
state = run.train(method, data, rounds=100, per_round=10, directory="runs/first")
"""

from typing import TYPE_CHECKING

from fedjax_mm import _lazy, aggregate, clients, costs, data, losses, participation, stages, trees
from fedjax_mm.data import Dataset, FederatedData
from fedjax_mm.federate import Method, federate
from fedjax_mm.local import gradient_step, local_steps
from fedjax_mm.stages import Stage
from fedjax_mm.transforms import on_change
from fedjax_mm.types import (
    ClientData,
    Cohort,
    CohortRound,
    Download,
    Each,
    FedState,
    Mean,
    OverClients,
    Population,
    RoundData,
    Server,
)

__version__ = "0.2.0"

if TYPE_CHECKING:
    from fedjax_mm import evaluate, laws, methods, models, report, run, uploads

__getattr__, __dir__ = _lazy.attach(__name__, ("evaluate", "laws", "methods", "models", "report", "run", "uploads"))
__all__ = [
    "ClientData",
    "Cohort",
    "CohortRound",
    "Dataset",
    "Download",
    "Each",
    "FedState",
    "FederatedData",
    "Mean",
    "Method",
    "OverClients",
    "Population",
    "RoundData",
    "Server",
    "Stage",
    "aggregate",
    "clients",
    "costs",
    "data",
    "evaluate",
    "federate",
    "gradient_step",
    "laws",
    "local_steps",
    "losses",
    "methods",
    "models",
    "on_change",
    "participation",
    "report",
    "run",
    "stages",
    "trees",
    "uploads",
]
