"""The accelerators that a round is compiled for: their topologies, their peaks, and how to reach their compilers."""

import dataclasses
import importlib.util
import math
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

H100 = pathlib.Path(__file__).with_name("h100.txtpb")  # what XLA wants to know of the card
WITHOUT_A_TPU = {  # libtpu then asks nobody for the machine's name, and takes no lock that keeps a second process out
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """What is known of one device of an accelerator, by its makers."""

    platform: Literal["tpu", "cuda"]
    topologies: tuple[str, ...]
    """Names of arrangements, the smallest first; `count` says how many devices one has."""
    tflops: float
    """Peak of bfloat16 matrix products. float32 products are compared with it too: a TPU rounds their factors."""
    gb: float
    """Memory."""
    ghz: float | None = None
    """Clock of the cycles that the compiler estimates. None: it estimates none."""
    devices_per_chip: int = 1
    cores: int = 1
    """Of a device, which share the steps of a kernel."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of the compiler."""


CHIPS = {  # cloud.google.com/tpu/docs/system-architecture-tpu-vm, and NVIDIA's data sheet without sparsity
    "v4": Chip("tpu", ("2x2x1", "2x2x2"), 137.5, 17.2, 1.05, devices_per_chip=2),  # a device is one of two cores
    "v5e": Chip("tpu", ("2x2", "2x4"), 197.0, 17.2, 1.5),
    "v5p": Chip("tpu", ("2x2x1", "2x2x2"), 459.0, 102.0, 1.75, cores=2),
    "v6e": Chip("tpu", ("2x2", "2x4"), 918.0, 34.4, 1.75),
    # Without a card nothing can be tried out, and some products that Triton would have to try fail.
    "h100": Chip("cuda", ("1x1x1", "1x1x4", "1x1x8"), 989.0, 85.0, options={"xla_gpu_enable_triton_gemm": False}),
}
COMPILERS = {"tpu": ("libtpu", "tpu-compiler"), "cuda": ("jax_cuda12_plugin", "cuda-compiler")}


def find(name: str) -> tuple[Chip, str | None]:
    """(the chip, its topology or None) of a name such as "v5e" or "v5e:2x2". Raises ValueError for an unknown chip."""
    chip, _, topology = name.partition(":")
    if chip not in CHIPS:
        raise ValueError(f"the chip {chip} is not known; there are {', '.join(CHIPS)}")
    return CHIPS[chip], topology or None


def count(chip: Chip, topology: str) -> int:
    """The devices of a topology.

    >>> count(CHIPS["v5e"], "2x4")
    8
    """
    sides = topology.split("x")
    if not all(side.isdigit() for side in sides):
        raise ValueError(f"the topology {topology} is not known; give sides such as {' or '.join(chip.topologies)}")
    return math.prod(map(int, sides)) * chip.devices_per_chip


def topology_for(name: str, devices: int) -> str:
    """The named topology, or where the name has none the smallest with so many devices. Raises ValueError if too small.

    >>> topology_for("v5e", 8), topology_for("v5e:2x4", 1)
    ('2x4', '2x4')
    """
    chip, given = find(name)
    known = (given,) if given else chip.topologies
    if fitting := [topology for topology in known if count(chip, topology) >= devices]:
        return fitting[0]
    raise ValueError(f"{name} has {max(count(chip, t) for t in known)} devices, not {devices}")


def missing(chip: Chip) -> str | None:
    """Why the chip's compiler cannot be reached; None where it can."""
    module, extra = COMPILERS[chip.platform]
    if importlib.util.find_spec(module):
        return None
    return f'{module} is not installed; pip install "fedjax_mm[{extra}]" brings the compiler'


def devices(name: str, topology: str) -> list:
    """The devices of a topology, which compile and do not run. The environment must be that of WITHOUT_A_TPU."""
    from jax.experimental import topologies  # after the environment is set

    chip, _ = find(name)
    if chip.platform == "tpu":
        kind = name.partition(":")[0]
        return list(topologies.get_topology_desc(f"{kind}:{topology}", "tpu").devices)
    described = topologies.get_topology_desc("h100", "cuda", target_config=H100.read_text(), topology=topology)
    return list(described.devices)
