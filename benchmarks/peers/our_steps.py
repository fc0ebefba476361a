"""A client's update as the engine runs it, compiled; see benchmarks/steps.py."""

import json
import pathlib

import jax
import numpy as np
import protocol

from benchmarks import steps


def make(folder):
    about = json.loads((pathlib.Path(folder) / "about.json").read_text())
    settings = steps.Settings(**about["settings"])
    update, arguments = steps.update_of(steps.TASKS[about["name"]](settings), settings)
    update, metrics = jax.jit(update), {}

    def run(rounds):
        nonlocal metrics
        for _ in range(rounds):
            _, _, metrics = jax.block_until_ready(update(*arguments))

    def save(path):
        parts = [metrics[name] for name in ("loss", "loss_shared", "loss_dat") if name in metrics]
        np.savez(path, loss=float(sum(parts)))

    return protocol.timed(run), save


if __name__ == "__main__":
    protocol.serve(make)
