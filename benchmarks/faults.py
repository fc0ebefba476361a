"""What a run survives: python -m benchmarks.faults

Runs are killed, cut off, damaged, started twice, signalled and left by their peers, each many times and at random
places, and then go on. A try ends well if the run ends bit for bit where an undisturbed one ends, with the same log, or
if it is refused in one sentence that names the file; anything else is a row's "wrong". Prints a table and writes
faults.json. It takes about ten minutes on two cores.
"""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import cli
from fedjax_mm import report, run
from fedjax_mm.data import FederatedData
from fedjax_mm.federate import federate
from fedjax_mm.run import digests, records
from fedjax_mm.stages import Stage
from fedjax_mm.types import Cohort, Download, Mean, Server

CLIENTS, WIDTH = 6, 40
PLACES = ("device", "host", "folder")
WAIT = 120.0
"""Seconds after which a process counts as hanging."""
ROOT = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the campaign."""

    only: tuple[str, ...] = ()
    """Faults that are tried, by a part of their names. Empty: all."""
    kills: int = 12
    """Kills at any time of runs with states at each place; a quarter as many in a save and as a stage begins."""
    truncations: int = 60
    """Files of a run that are cut off, emptied or removed, one at a time."""
    flips: int = 200
    """Bits that are flipped in the files of a checkpoint, one at a time."""
    small_flips: int = 40
    """Bits that are flipped in settings and log, one at a time."""
    full_disks: int = 6
    """Runs whose files cannot grow any more somewhere in between."""
    signals: int = 3
    """Tries for each of SIGINT, SIGTERM and SIGHUP."""
    starts: int = 6
    """Times that two processes start in one directory at once."""
    peers: int = 3
    """Times that one of two processes is killed, and times that one is stopped."""
    rounds: int = 24
    """Rounds of a run."""
    many_rounds: int = 2000
    """Rounds of the long run."""
    seed: int = 0
    """Seed of what happens when."""
    out: str = "runs/faults"
    """Folder that faults.json is written to."""


def stages(rounds: int) -> list[Stage]:
    """Two stages whose clients keep a state: the second one adds a layer. They run half of the rounds each."""

    def method(layers: int) -> Any:
        names = [f"w{i}" for i in range(layers)]

        def update(download, state, data, key):
            noise = jax.random.normal(key, (WIDTH, WIDTH))
            new = {
                name: jnp.tanh(0.9 * w + 0.1 * noise + data.arrays["x"][data.rows[0]])
                for name, w in download.sent.items()
            }
            return (
                {name: Mean(w + 0.01 * state, data.weight) for name, w in new.items()},
                state + 1,
                {"size": noise.sum()},
            )

        def server_update(server, uploads, public, key):
            return {name: uploads["all"][name].value for name in names}, {}

        init = lambda key: {
            name: jax.random.normal(jax.random.fold_in(key, i), (WIDTH, WIDTH)) for i, name in enumerate(names)
        }
        server = Server(init, lambda server, public: {"all": Download(server)}, server_update)
        return federate(server, {"all": Cohort(CLIENTS, lambda key: jnp.zeros(WIDTH), update)})

    return [Stage("one", method(1), rounds // 2), Stage("two", method(2), rounds - rounds // 2)]


def trained(
    directory: str,
    place: str = "device",
    rounds: int = 24,
    pause: float = 0.0,
    processes: int = 1,
    index: int = 0,
    port: int = 0,
) -> str:
    """Runs, or goes on with, the run of a directory, and gives the digest of its last state."""
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, index)
    data = FederatedData.from_arrays({"x": np.linspace(-1, 1, 18).astype(np.float32)}, np.repeat(np.arange(CLIENTS), 3))
    where = f"{directory}.states" if place == "folder" else place
    state = run.train(
        stages(rounds),
        data,
        per_round=4,
        directory=directory,
        client_state=where,
        checkpoint_every=max(1, rounds // 50),
        devices=processes if processes > 1 else None,
        peer_timeout=5.0,
        watch=[lambda done, row: time.sleep(pause)],
        log=lambda line: print(line, flush=True),
    )
    return digests.of_state(jax.device_get(state) if processes == 1 else state)


def started(directory: pathlib.Path, **given: Any) -> subprocess.Popen:
    """A process that calls `trained` and prints the digest."""
    # What is started in the background or under nohup ignores some signals, which are then none to try.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    code += "import sys; from benchmarks import faults; print('digest', faults.trained(**eval(sys.argv[1])))"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(directory.parent / "compiled"),
    }
    environment |= {
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    return subprocess.Popen(
        [sys.executable, "-c", code, repr({"directory": str(directory), **given})],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


class World:
    """A folder for the tries, and what an undisturbed run ends with."""

    def __init__(self, settings: Settings, folder: pathlib.Path):
        self.settings, self.folder, self.draw = settings, folder, random.Random(settings.seed)
        self.whole = {
            rounds: self.finished(folder / f"whole{rounds}", rounds)
            for rounds in {settings.rounds, settings.many_rounds}
        }

    def finished(self, directory: pathlib.Path, rounds: int, place: str = "device") -> tuple[str, list[dict]]:
        """(digest, rows of the log without seconds) of a run that goes on to its end in this process."""
        with contextlib.redirect_stdout(io.StringIO()):
            digest = trained(str(directory), place, rounds)
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in records.read_metrics(directory)]
        return digest, rows

    def outcome(
        self, directory: pathlib.Path, rounds: int | None = None, place: str = "device", refusable: bool = False
    ) -> str:
        """How it ends when the run goes on: "as undisturbed", "refused", or what is wrong."""
        expected = self.whole[rounds or self.settings.rounds]
        try:
            digest, rows = self.finished(directory, rounds or self.settings.rounds, place)
        except (ValueError, OSError) as error:
            clear = refusable and directory.name in str(error) and "\n" not in str(error)
            return "refused" if clear else f"wrong: {error!r}"
        except Exception as error:
            return f"wrong: {error!r}"
        if digest != expected[0]:
            return "wrong: another state"
        same = all(row in expected[1] for row in rows) if refusable else rows == expected[1]
        return "as undisturbed" if same else "wrong: another log"

    def copy(self, name: str) -> pathlib.Path:
        """A run that stands in the middle of its second stage."""
        half, copy = self.folder / "half", self.folder / name
        if not half.exists():
            process = started(half, rounds=self.settings.rounds, pause=0.05)
            wait_for(lambda: len(rows_of(half)) > 0.75 * self.settings.rounds, process)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=WAIT)
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(half, copy)
        return copy


def rows_of(directory: pathlib.Path) -> list[dict]:
    return records.read_metrics(directory) if (directory / "metrics.jsonl").exists() else []


def wait_for(condition: Callable[[], Any], process: subprocess.Popen) -> None:
    """Returns when the condition holds or the process has ended."""
    while not condition() and process.poll() is None:
        time.sleep(0.005)


def kills(world: World, place: str, when: str) -> Iterator[str]:
    """One run that is killed again and again, and at last goes on to its end."""
    tries = world.settings.kills if when == "any time" else max(1, world.settings.kills // 4)
    directory = world.folder / f"killed {when} {place}"
    for _ in range(tries):
        process = started(directory, place=place, rounds=world.settings.rounds, pause=0.1)
        if when == "any time":
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(world.draw.uniform(0.5, 9))
        elif when == "in a save":
            wait_for(lambda: any((directory / "checkpoints").glob("*orbax-checkpoint-tmp*")), process)
        else:
            wait_for(lambda: len(rows_of(directory)) >= world.settings.rounds // 2, process)
            time.sleep(world.draw.uniform(0, 0.3))
        process.kill()
        process.communicate()
        if len(rows_of(directory)) >= world.settings.rounds or when == "as a stage begins":
            yield world.outcome(directory, place=place)
            shutil.rmtree(directory)
        else:
            yield (
                "as undisturbed"
                if all(row["round"] == i for i, row in enumerate(rows_of(directory), 1))
                else "wrong: a gap"
            )
    yield world.outcome(directory, place=place)


def truncations(world: World) -> Iterator[str]:
    """Every file of a run in turn, cut off anywhere, emptied or removed."""
    for i in range(world.settings.truncations):
        directory = world.copy("cut")
        files = sorted(file for file in directory.rglob("*") if file.is_file() and file.name != "lock")
        file, how = files[i % len(files)], i % 3
        content = file.read_bytes()
        file.unlink()
        if how < 2:
            file.write_bytes(content[: world.draw.randrange(max(1, len(content))) * how])
        yield world.outcome(directory, refusable=True)


def flips(world: World, small: bool) -> Iterator[str]:
    """A bit of a checkpoint's files, or of the small files, flipped."""
    for _ in range(world.settings.small_flips if small else world.settings.flips):
        directory = world.copy("flipped")
        last = max(int(path.name) for path in (directory / "checkpoints").iterdir() if path.name.isdigit())
        files = [*directory.glob("*.json*")] if small else [*(directory / "checkpoints" / str(last)).rglob("*")]
        files = sorted(file for file in files if file.is_file() and file.stat().st_size)
        file = world.draw.choices(files, [file.stat().st_size for file in files])[0]
        content = bytearray(file.read_bytes())
        content[world.draw.randrange(len(content))] ^= 1 << world.draw.randrange(8)
        file.write_bytes(content)
        yield world.outcome(directory, refusable=True)


def full_disks(world: World) -> Iterator[str]:
    """Files cannot grow beyond some size, as if the disk were full there."""
    for i in range(world.settings.full_disks):
        directory = world.folder / f"full {i}"
        limit = int(200 * 4.5 ** world.draw.uniform(1, 3.5))
        soft = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, soft[1]))
        try:
            said = world.outcome(directory, refusable=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, soft)
        yield said if said.startswith("wrong") else world.outcome(directory)


def signals(world: World, number: signal.Signals) -> Iterator[str]:
    """A signal while rounds run: the last round is saved, the exit status is as usual, and the run goes on."""
    for i in range(world.settings.signals):
        directory = world.folder / f"{number.name} {i}"
        process = started(directory, rounds=world.settings.rounds, pause=0.1)
        first = world.draw.randrange(1, world.settings.rounds - 4)
        wait_for(lambda first=first, directory=directory: len(rows_of(directory)) >= first, process)
        process.send_signal(number)
        said = process.communicate(timeout=WAIT)[0]
        saved = max((int(p.name) for p in (directory / "checkpoints").iterdir() if p.name.isdigit()), default=0)
        if process.returncode != -number or saved != len(rows_of(directory)) or "run again to go on" not in said:
            yield f"wrong: status {process.returncode}, saved {saved} of {len(rows_of(directory))}: {said[-300:]}"
        else:
            yield world.outcome(directory)


def starts(world: World) -> Iterator[str]:
    """Two processes start in one directory at once: one is refused, the other runs to its end."""
    for i in range(world.settings.starts):
        directory = world.folder / f"twice {i}"
        both = [started(directory, rounds=world.settings.rounds, pause=0.05) for _ in range(2)]
        said = [process.communicate(timeout=WAIT)[0] for process in both]
        refused = sum("a run is writing to" in text for text in said)
        yield world.outcome(directory) if refused == 1 else f"wrong: {refused} of 2 refused: {said[0][-200:]}"


def peers(world: World, number: signal.Signals) -> Iterator[str]:
    """One of two processes is killed or stopped: the other says so and ends, and both go on when they start again."""
    for i in range(world.settings.peers):
        directory = world.folder / f"peer {number.name} {i}"
        pair = pair_of(world, directory)
        first = world.draw.randrange(1, world.settings.rounds // 2)
        wait_for(lambda first=first, directory=directory: len(rows_of(directory)) >= first, pair[0])
        gone = world.draw.randrange(2)
        pair[gone].send_signal(number)
        said, begun = "", time.monotonic()
        try:
            said = pair[1 - gone].communicate(timeout=WAIT)[0]
        except subprocess.TimeoutExpired:
            said = "it hangs"
        seconds = time.monotonic() - begun
        for process in pair:
            process.kill()
            process.communicate()
        # JAX itself ends the others of a coordinator, process 0, that is killed.
        named = f"process {gone} of 2" in said or (gone == 0 and "the leader task was preempted/died" in said)
        if not named or seconds > 30:
            yield f"wrong: after {seconds:.0f} s: {said[-400:]}"
            continue
        again = pair_of(world, directory)
        texts = [process.communicate(timeout=WAIT)[0] for process in again]
        ended = [process.returncode for process in again] == [0, 0] and len(rows_of(directory)) == world.settings.rounds
        statuses = [process.returncode for process in again]
        yield "as undisturbed" if ended else f"wrong: {statuses} {texts[0][-300:]} | {texts[1][-600:]}"


def pair_of(world: World, directory: pathlib.Path) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"rounds": world.settings.rounds, "pause": 0.1, "processes": 2, "port": port}
    return [started(directory, index=i, **given) for i in range(2)]


def many_rounds(world: World) -> Iterator[str]:
    """A long run that is killed five times."""
    directory, rounds = world.folder / "long", world.settings.many_rounds
    for part in range(1, 6):
        process = started(directory, rounds=rounds)
        wait_for(lambda part=part: len(rows_of(directory)) > part * rounds / 6, process)
        process.kill()
        process.communicate()
    yield world.outcome(directory, rounds)


CAMPAIGN: dict[str, Callable[[World], Iterator[str]]] = {
    **{f"killed at any time, states on {p}": lambda world, p=p: kills(world, p, "any time") for p in PLACES},
    **{
        f"killed {when}": lambda world, when=when: kills(world, "device", when)
        for when in ("in a save", "as a stage begins")
    },
    "killed in a save, states in a folder": lambda world: kills(world, "folder", "in a save"),
    "a file cut off, emptied or removed": truncations,
    "a bit of a checkpoint flipped": lambda world: flips(world, small=False),
    "a bit of settings or log flipped": lambda world: flips(world, small=True),
    "no room for a file": full_disks,
    **{n.name: lambda world, n=n: signals(world, n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)},
    "two starts at once": starts,
    "a peer killed": lambda world: peers(world, signal.SIGKILL),
    "a peer stopped": lambda world: peers(world, signal.SIGSTOP),
    "many rounds, killed five times": many_rounds,
}


def campaign(settings: Settings) -> list[dict[str, Any]]:
    """A row per fault: how often it was tried, and how the tries ended."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        world = World(settings, pathlib.Path(folder))
        tried = {name: a for name, a in CAMPAIGN.items() if not settings.only or any(o in name for o in settings.only)}
        for fault, attempt in tried.items():
            begun, ends = time.monotonic(), list(attempt(world))
            count = Counter(end if not end.startswith("wrong") else "wrong" for end in ends)
            row = {"fault": fault, "tries": len(ends), **{k: count[k] for k in ("as undisturbed", "refused", "wrong")}}
            rows.append(
                {**row, "seconds": round(time.monotonic() - begun), "what": [e for e in ends if e.startswith("wrong")]}
            )
            print(rows[-1], flush=True)
    return rows


def main(arguments: Sequence[str]) -> None:
    settings = cli.call(Settings, arguments, description=__doc__)
    out = pathlib.Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = campaign(settings)
    report.show(rows, ("fault", "tries", "as undisturbed", "refused", "wrong", "seconds"))
    about = {"settings": dataclasses.asdict(settings), "versions": records.versions(), "device": records.device()}
    (out / "faults.json").write_text(json.dumps({**about, "rows": rows}, indent=1))


if __name__ == "__main__":
    cli.run(main)
