"""Peers' environments, installed once, and processes, pinned to the same cores and asked over stdin (protocol.py)."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import select
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from benchmarks.peers import workload

HERE = pathlib.Path(__file__).resolve().parent
TORCH = ("torch==2.13.0", "numpy==2.4.6")


class Peer(NamedTuple):
    """A script, and what it needs. Without requirements it runs in this environment."""

    script: pathlib.Path
    requirements: tuple[str, ...] = ()
    without: Mapping[str, str] = {}  # workload -> why this peer leaves it out
    repetitions: int | None = None  # at most, where a timing takes minutes
    python: str = ""  # "3.13", where it does not run with this Python


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where peers are installed and run."""

    cores: int = 1
    """Cores that all peers are pinned to."""
    device: Literal["cpu", "here"] = "cpu"
    """What peers compute on. "here" is the accelerator of this machine: they then run in this environment, which
    must have them, on all cores."""
    cache: str = "~/.cache/fedjax_mm/peers"
    """Folder of the peers' environments, which the first use makes (some minutes, 5 GB)."""
    torch_wheels: str = "https://download.pytorch.org/whl/cpu/torch/"
    """Page of PyTorch wheels without CUDA; where it cannot be reached, PyPI's are taken."""
    patience: float = 1200.0
    """Seconds to wait for an answer."""


class Running(NamedTuple):
    """A peer's process, and where it writes what goes wrong."""

    process: subprocess.Popen
    log: pathlib.Path
    patience: float


class PeerError(Exception):
    """A peer could not be installed or started, or died."""


def checked(peer: Peer, python: str, folder: pathlib.Path, name: str, settings: Settings) -> workload.Layers:
    """The weights after one round of the check, by a process that ends with it."""
    with started(peer, python, folder, name, settings) as running:
        ask(running, "run 1")
        return saved(running, folder / f"{name}.npz")


def saved(running: Running, path: pathlib.Path) -> workload.Layers:
    return workload.read_layers(ask(running, f"save {path.resolve()}")["saved"])


@contextlib.contextmanager
def started(peer: Peer, python: str, folder: pathlib.Path, name: str, settings: Settings) -> Iterator[Running]:
    """The peer's process, set up on the workload in `folder` and waiting; ended on leaving."""
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    here = settings.device == "here"
    around = {k: v for k, v in os.environ.items() if here or k not in ("XLA_FLAGS", "PYTHONPATH")}
    around |= dict.fromkeys(threads, str(settings.cores))
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # all peers' processes wait on one accelerator
    around |= shared if here else {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if here or not peer.requirements:
        around["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE.parents[1]), around.get("PYTHONPATH"))))
    log = folder / f"{name}.log"
    with log.open("w") as errors, contextlib.nullcontext() if here else _pinned(settings.cores):
        process = subprocess.Popen(
            [python, str(peer.script), str(folder.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=around,
        )
    assert process.stdin and process.stdout
    running = Running(process, log, settings.patience)
    try:
        _answer(running)  # ready
        yield running
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@contextlib.contextmanager
def _pinned(cores: int) -> Iterator[None]:
    """This thread is held to so many cores, and with it what it starts, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):  # Linux has it
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[-cores:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def ask(running: Running, request: str) -> dict:
    """The peer's answer; see peers/protocol.py. Raises PeerError if it dies or takes too long."""
    with contextlib.suppress(BrokenPipeError):
        print(request, file=running.process.stdin, flush=True)
    return _answer(running)


def _answer(running: Running) -> dict:
    stdout = running.process.stdout
    assert stdout
    if not select.select([stdout], [], [], running.patience)[0]:
        running.process.kill()
        raise PeerError(f"no answer in {running.patience:.0f} s; see {running.log}")
    line = stdout.readline()
    if not line:
        said = running.log.read_text().strip().splitlines() or ["it ended without a word"]
        errors = [line for line in said if re.match(r"[\w.]+(Error|Exception)\b", line)]
        raise PeerError(f"{(errors or said)[-1]}; see {running.log}")
    return json.loads(line)


def environment(name: str, peer: Peer, settings: Settings) -> str:
    """The Python of the peer's environment, made if it is not there; this one "here". Raises PeerError if it fails."""
    if settings.device == "here" or not peer.requirements:
        return sys.executable
    folder = pathlib.Path(settings.cache).expanduser() / name
    python, kept = folder / "bin" / "python", folder / "requirements.txt"
    wanted = "\n".join((*peer.requirements, *([f"# Python {peer.python}"] if peer.python else [])))
    if kept.exists() and kept.read_text() == wanted:
        return str(python)
    print(f"installing {', '.join(peer.requirements)} in {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    _make(folder, peer.python)
    pip = [python, "-m", "pip", "install", "--quiet", "--retries", "1"]
    if any(r.startswith("torch==") for r in peer.requirements) and settings.torch_wheels:
        pip += ["--find-links", settings.torch_wheels]
    done = subprocess.run([*pip, *peer.requirements], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        problems = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
        raise PeerError(f"cannot be installed: {problems[0]}")
    kept.write_text(wanted)
    return str(python)


def _make(folder: pathlib.Path, version: str) -> None:
    """An empty environment of this Python or of another version of it, where pyenv or the PATH has one."""
    if not version:
        venv.create(folder, with_pip=True)
        return
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"))
    found = [*sorted(pyenv.glob(f"versions/{version}.*/bin/python")), shutil.which(f"python{version}")]
    for python in (str(path) for path in found if path):
        if not subprocess.run([python, "-m", "venv", folder], capture_output=True).returncode:
            return
    raise PeerError(f"it needs Python {version}, which is not on this machine")
