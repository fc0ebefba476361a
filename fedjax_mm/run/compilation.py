"""A stage's round, compiled as the stage is entered, or ahead of that in a thread while the stage before trains."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_mm import stages, trees
from fedjax_mm.federate import Method
from fedjax_mm.run import client_state, digests
from fedjax_mm.run.processes import agree, all_or_none
from fedjax_mm.run.records import Folder, RunDirectory
from fedjax_mm.run.rounds import Inputs
from fedjax_mm.run.tune import chosen_chunks
from fedjax_mm.stages import Stage
from fedjax_mm.types import FedState, Key, Metrics, OverClients, RoundData

Chunk = int | Mapping[str, int] | str | None


class Compiler(NamedTuple):
    """How the rounds of a run are compiled.

    chunk: of every stage's map over clients, or "auto"; None: as its method says. folder: where a stage's chunks are
    remembered. streamed: the state has the states of the participants alone. files: of the run, which belong to the
    stages' programs. claimed: the names of stages whose programs are compared.
    """

    chunk: Chunk
    mesh: Mesh | None
    init_key: Key
    streamed: bool
    folder: Callable[[Stage], RunDirectory | Folder | None]
    files: RunDirectory | None
    claimed: set[str]
    log: Callable[[str], None]

    def now(self, stage: Stage, inputs: Inputs, begun: Future | None) -> Callable:
        """The stage's round for these inputs. begun: what `ahead` gave for it."""
        if begun is None:
            if isinstance(self.chunk, str):
                self.claim(stage, inputs.data)  # before minutes are spent on measuring
                chunk = chosen_chunks(stage.method, *inputs, self.mesh, self.folder(stage), self.log)
            else:
                chunk = self.chunk
            step, seconds, digest = _compile(stage, inputs, over_clients(stage.method, chunk, self.mesh))
            waited = ""
        else:
            since = time.perf_counter()
            step, seconds, digest = begun.result()
            waited = f" beside the stage before, waited {time.perf_counter() - since:.1f} s for it"
        self.claim(stage, inputs.data, digest)
        self.log(f"compiled the round{f' of {stage.name}' if stage.name else ''} in {seconds:.1f} s{waited}")
        return step

    def claim(self, stage: Stage, data: RoundData, digest: str | None = None) -> None:
        """Compares the stage's program over all processes, and with the one that the run's directory belongs to.

        data: of any round of the run. digest: of the program, where it is known. Raises ValueError in every process
        where one of them differs.
        """
        if stage.name in self.claimed or self.files is None and jax.process_count() == 1:
            return
        self.claimed.add(stage.name)
        program = digest or _digest(stage.method, self.init_key, data)
        agree({"method": program})
        files = self.files
        if files is not None:
            all_or_none(lambda: files.claim_program(stage.name, program) if jax.process_index() == 0 else None)

    def ahead(self, later: Stage, inputs: Inputs) -> Future | None:
        """The round of a later stage, which a thread is compiling; None where its chunks are still to be measured."""
        if isinstance(self.chunk, str):
            return None
        over = over_clients(later.method, self.chunk, self.mesh)
        return ahead(later, inputs, self.init_key, over, self.streamed)


def over_clients(method: Method, chunk: int | Mapping[str, int] | None, mesh: Mesh | None) -> OverClients:
    """How a round maps over its clients: as the run says, and where it does not, as the method does."""
    return OverClients(method.over.chunk if chunk is None else chunk, mesh)


def ahead(stage: Stage, before: Inputs, init_key: Key, over: OverClients, streamed: bool) -> Future:
    """The stage's round that a thread is compiling: (the compiled round, seconds).

    before: inputs of the stage that trains meanwhile; the shapes of a round's data are the same in all stages.
    """
    state, data, key = before
    state = jax.eval_shape(lambda state: state, state)  # its arrays are given away while the thread runs

    def compile_it():
        fresh = jax.eval_shape(stage.method.init, init_key)
        if streamed:
            fresh = dataclasses.replace(fresh, clients=client_state.shapes(fresh.clients, data))
        entered = jax.eval_shape(stages.enter, state, fresh)
        if over.mesh is not None:
            everywhere = NamedSharding(over.mesh, PartitionSpec())
            entered = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), entered)
        return _compile(stage, Inputs(entered, data, key), over)

    thread = ThreadPoolExecutor(1)
    step = thread.submit(compile_it)
    thread.shutdown(wait=False)  # it ends with its work
    return step


def _digest(method: Method, init_key: Key, data: RoundData) -> str:
    """The digest of a method's round, however clients are mapped and wherever their states are kept."""
    state = jax.eval_shape(method.init, init_key)
    cohorts = {name: dataclasses.replace(taken, place=None) for name, taken in data.cohorts.items()}
    inputs = Inputs(state, data._replace(cohorts=cohorts), init_key)
    return digests.of_program(_lower(method._replace(over=OverClients()), _shapes(inputs)))


def _compile(stage: Stage, inputs: Inputs, over: OverClients) -> tuple[jax.stages.Compiled, float, str | None]:
    """(the compiled round, the seconds that took, its digest where this is the program that `_digest` means)."""
    begun = time.perf_counter()
    plain = over == OverClients() and all(taken.place is None for taken in inputs.data.cohorts.values())
    lowered = _lower(stage.method._replace(over=over), _shapes(inputs) if plain else inputs)
    digest = digests.of_program(lowered) if plain else None
    step = lowered.compile()
    return step, time.perf_counter() - begun, digest


def _lower(method: Method, inputs: Inputs) -> jax.stages.Lowered:
    """The round, which also says whether the server's new state is finite."""

    def round(state: FedState, data: RoundData, key: Key) -> tuple[FedState, Mapping[str, Metrics], jax.Array]:
        new, metrics = method.round(state, data, key)
        return new, metrics, trees.all_finite(new.server)

    return jax.jit(round, donate_argnums=0).lower(*inputs)


def _shapes(inputs: Inputs) -> Inputs:
    """Their shapes and types alone; a type that was weak is not, as it is not in a checkpoint."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
