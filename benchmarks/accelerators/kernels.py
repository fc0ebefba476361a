"""The cycles of our own TPU kernels, of which XLA's text has no estimate: the instructions that are scheduled for them.

A TPU's core takes one bundle of instructions after another, in an order that its compiler has fixed, and waits where a
result is not there yet. The compiler's own evaluator of bundles (`xla_jf_dump_static_llo_profile_to`) breaks off at
products of fewer than 128 lanes. Where it can read these kernels, at 256 tokens without a mask, it says 1.15 cycles a
bundle of the gradient and 1.23 of the forward pass. So a kernel has as many here, for each of its bundles and steps.

The compiler writes its bundles down where it is told to before it is loaded: each kernel is compiled once more, alone
and in a process of its own.
"""

import functools
import json
import math
import os
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks.accelerators import chips, hlo
from benchmarks.timing import command

CYCLES = {"forward": 1.23, "backward": 1.15}  # of a bundle
ATTENTION = re.compile(r"attention_(forward|backward)_(\d+)(_masked)?(_dropped)?")


def with_cycles(operations: Sequence[hlo.Operation], chip_name: str) -> list[hlo.Operation]:
    """The operations, where those that call a kernel have its cycles."""
    return [_timed(one, chip_name) if one.op == "custom-call tpu_custom_call" else one for one in operations]


def _timed(one: hlo.Operation, chip_name: str) -> hlo.Operation:
    from fedjax_mm.models.attention_kernel import blocking  # after the environment is set

    found = ATTENTION.search(one.name) or ATTENTION.search(one.op_name)
    if found is None:
        return one
    features, ((_, shape), *_) = int(found[2]), hlo.arrays_of(one.type)
    *rows, tokens, width = shape
    sizes, told = (tokens, width // features, features), (found[3] is not None, found[4] is not None)
    step = blocking(*sizes, told[1])
    assert step is not None  # or the program would have no such kernel
    bundles = _bundles(chip_name, found[1], *sizes, *told)
    steps = math.prod(rows) * width // step[0]
    return one._replace(cycles=CYCLES[found[1]] * bundles * steps / chips.find(chip_name)[0].cores)


@functools.cache
def _bundles(*given: Any) -> int:
    done = subprocess.run(command(scheduled, *given), capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def scheduled(chip_name: str, which: str, tokens: int, heads: int, features: int, masked: bool, dropped: bool) -> int:
    """The bundles of one step of a kernel. To be called where libtpu is not loaded yet."""
    with tempfile.TemporaryDirectory() as folder:
        written = (
            f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles"
        )
        os.environ.update({**chips.WITHOUT_A_TPU, "LIBTPU_INIT_ARGS": written})
        import jax
        import jax.numpy as jnp

        from fedjax_mm.models.attention_kernel import attend

        (device, *_) = chips.devices(chip_name, chips.topology_for(chip_name, 1))
        at = jax.sharding.SingleDeviceSharding(device)
        x = jax.ShapeDtypeStruct((1, tokens, heads, features), jnp.bfloat16, sharding=at)
        mask = jax.ShapeDtypeStruct((1, tokens), bool, sharding=at) if masked else None
        keep = jax.ShapeDtypeStruct((1, heads, tokens, tokens), bool, sharding=at) if dropped else None

        def both(query, key, value, dy, mask, keep):
            y, pull_back = jax.vjp(lambda *arrays: attend(*arrays, mask, keep, 0.1 * dropped), query, key, value)
            return y, pull_back(dy)

        jax.jit(both).lower(x, x, x, x, mask, keep).compile()
        (said,) = pathlib.Path(folder).glob(f"*attention_{which}*schedule-analysis_final_bundles.txt")
        found = re.search(r"total scheduled bundles:\s*(\d+)", said.read_text())
        assert found is not None
        return int(found[1])
