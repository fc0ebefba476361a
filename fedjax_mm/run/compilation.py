"""A stage's round, compiled as the stage is entered, or ahead of that in a thread while the stage before trains."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_mm import stages
from fedjax_mm.federate import Method
from fedjax_mm.run import digests
from fedjax_mm.run.json_files import Folder
from fedjax_mm.run.placement import States, shaped
from fedjax_mm.run.processes import agree, all_or_none
from fedjax_mm.run.records import RunDirectory
from fedjax_mm.run.rounds import Inputs, participants, scan_rounds, with_finite, with_participants
from fedjax_mm.run.tune import chosen_chunks
from fedjax_mm.split_rows import is_split
from fedjax_mm.stages import Stage
from fedjax_mm.streamed import is_streamed, streams
from fedjax_mm.types import Key, OverClients, RoundData

Chunk = int | Mapping[str, int] | str | None


class Compiler(NamedTuple):
    """How the rounds of a run are compiled.

    chunk: of every stage's map over clients, or "auto"; None: as its method says. states: where those of the clients
    are kept. feed: the data of round r, not yet placed. folder: where a stage's chunks are remembered. files: of the
    run, which belong to the stages' programs. claimed: the names of stages whose programs are compared. lowered: the
    program that was compared last, by its stage, if it is still to be compiled.
    """

    chunk: Chunk
    mesh: Mesh | None
    init_key: Key
    states: States
    feed: Callable[[int], RoundData]
    folder: Callable[[Stage], RunDirectory | Folder | None]
    files: RunDirectory | None
    claimed: set[str]
    lowered: dict[str, jax.stages.Lowered]
    log: Callable[[str], None]

    def now(self, stage: Stage, inputs: Inputs, number: int, begun: Future | None) -> Callable:
        """`number` rounds of the stage for these inputs. begun: what `ahead` gave for them."""
        single = inputs._replace(data=_first(inputs.data, number))
        if begun is None:
            if isinstance(self.chunk, str):
                self.claim(stage)  # before minutes are spent on measuring
                chunk = chosen_chunks(stage.method, *single, self.mesh, self.folder(stage), self.log)
            else:
                chunk = self.chunk
            over, known = over_clients(stage.method, chunk, self.mesh), self.lowered.pop(stage.name, None)
            if known is not None and _is_plain(stage, inputs, over, number):
                since = time.perf_counter()
                step, seconds, digest = known.compile(), time.perf_counter() - since, None  # compared already
            else:
                step, seconds, digest = _compile(stage, inputs, over, number)
            waited = ""
        else:
            since = time.perf_counter()
            step, seconds, digest = begun.result()
            waited = f" beside the stage before, waited {time.perf_counter() - since:.1f} s for it"
        self.claim(stage, digest)
        what = "the round" if number == 1 else f"{number} rounds"
        self.log(f"compiled {what}{f' of {stage.name}' if stage.name else ''} in {seconds:.1f} s{waited}")
        return step

    def claim(self, stage: Stage, digest: str | None = None) -> None:
        """Compares the stage's program over all processes, and with the one that the run's directory belongs to.

        digest: of the program, where it is known. Raises ValueError in every process where one of them differs.
        """
        if stage.name in self.claimed or self.files is None and jax.process_count() == 1:
            return
        self.claimed.add(stage.name)
        program = digest
        if program is None:
            self.lowered.clear()
            self.lowered[stage.name] = lowered = _lower_plain(stage.method, self.init_key, self.feed(0))
            program = digests.of_program(lowered)
        agree({"method": program})
        files = self.files
        if files is not None:
            all_or_none(lambda: files.claim_program(stage.name, program) if jax.process_index() == 0 else None)

    def ahead(self, later: Stage, inputs: Inputs, number: int) -> Future | None:
        """`number` rounds of a later stage, which a thread is compiling; None where chunks are still to be measured."""
        if isinstance(self.chunk, str):
            return None
        over = over_clients(later.method, self.chunk, self.mesh)
        return ahead(later, inputs, number, self.init_key, over, self.states)


def over_clients(method: Method, chunk: int | Mapping[str, int] | None, mesh: Mesh | None) -> OverClients:
    """How a round maps over its clients: as the run says, and where it does not, as the method does."""
    return OverClients(method.over.chunk if chunk is None else chunk, mesh)


def ahead(stage: Stage, before: Inputs, number: int, init_key: Key, over: OverClients, states: States) -> Future:
    """`number` rounds of a stage that a thread is compiling: what `_compile` gives.

    before: inputs of a single round of the stage that trains meanwhile; a round's shapes are the same in all stages.
    """
    state, data, key = before
    state = jax.eval_shape(lambda state: state, state)  # its arrays are given away while the thread runs

    def compile_it():
        fresh = jax.eval_shape(stage.method.init, init_key)
        entered = jax.eval_shape(stages.enter, state, fresh)
        if over.mesh is not None:
            everywhere = NamedSharding(over.mesh, PartitionSpec())
            entered = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), entered)
        entered = dataclasses.replace(entered, clients=states.shapes(fresh.clients, data))
        kept = jax.eval_shape(functools.partial(stages.kept, stage), entered.server, data)
        kept = kept if over.mesh is None else shaped(kept, NamedSharding(over.mesh, PartitionSpec()))
        return _compile(stage, Inputs(entered, _shaped(stages.joined(data, kept), number), key), over, number)

    thread = ThreadPoolExecutor(1)
    step = thread.submit(compile_it)
    thread.shutdown(wait=False)  # it ends with its work
    return step


def _lower_plain(method: Method, init_key: Key, data: RoundData) -> jax.stages.Lowered:
    """A method's round that is compared, however clients are mapped and wherever their states are kept."""
    state = jax.eval_shape(method.init, init_key)
    cohorts = {name: dataclasses.replace(taken, place=None) for name, taken in data.cohorts.items()}
    inputs = Inputs(state, data._replace(cohorts=cohorts), init_key)
    return _lower(method._replace(over=OverClients()), _shapes(inputs))


def _is_plain(stage: Stage, inputs: Inputs, over: OverClients, number: int) -> bool:
    """Whether these rounds are the program that `_lower_plain` gives, for which clients keep nothing."""
    return (
        stage.cache is None
        and number == 1
        and over == OverClients()
        and all(x.place is None for x in inputs.data.cohorts.values())
        and not streams(inputs.data)
    )


def _compile(
    stage: Stage, inputs: Inputs, over: OverClients, number: int
) -> tuple[jax.stages.Compiled, float, str | None]:
    """(the compiled round, the seconds that took, its digest where this is the program that is compared)."""
    begun = time.perf_counter()
    plain = _is_plain(stage, inputs, over, number)
    lowered = _lower(stage.method._replace(over=over), _shapes(inputs) if plain else inputs, number)
    digest = digests.of_program(lowered) if plain else None
    step = lowered.compile()
    return step, time.perf_counter() - begun, digest


def _lower(method: Method, inputs: Inputs, number: int = 1) -> jax.stages.Lowered:
    """`number` rounds, each of which also says whether the server's new state is finite."""
    round = with_finite(method)
    call = round if number == 1 else functools.partial(scan_rounds, round)
    return jax.jit(call, donate_argnums=0).lower(*inputs)


def _shapes(inputs: Inputs) -> Inputs:
    """Their shapes and types alone; a type that was weak is not, as it is not in a checkpoint."""
    whole = lambda x: is_split(x) or is_streamed(x)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs, is_leaf=whole)


def _first(data: RoundData, number: int) -> RoundData:
    """The first of the `number` rounds that `several` made one of."""
    return data if number == 1 else with_participants(data, jax.tree.map(lambda x: x[0], participants(data)))


def _shaped(data: RoundData, number: int) -> RoundData:
    """The shapes of `number` rounds like the one of `data`."""
    longer = lambda x: jax.ShapeDtypeStruct((number, *x.shape), x.dtype, sharding=getattr(x, "sharding", None))
    return data if number == 1 else with_participants(data, jax.tree.map(longer, participants(data)))
