"""A stage's round, compiled as the stage is entered, or ahead of that in a thread while the stage before trains."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_mm import stages
from fedjax_mm.run import client_state
from fedjax_mm.run.records import Folder, RunDirectory
from fedjax_mm.run.tune import chosen_chunks
from fedjax_mm.stages import Stage
from fedjax_mm.types import FedState, OverClients, RoundData

Inputs = tuple[FedState, RoundData, jax.Array]  # of Method.round; shapes of the state are enough


def compiled(
    stage: Stage,
    inputs: Inputs,
    chunk: int | Mapping[str, int] | str,
    mesh: Mesh | None,
    files: RunDirectory | Folder | None,
    begun: Future | None,
    log: Callable[[str], None],
) -> jax.stages.Compiled:
    """The stage's round for these inputs. files: remember how "auto" maps clients. begun: what `ahead` gave for it."""
    if begun is None:
        if chunk == "auto":
            chunk = chosen_chunks(stage.method, *inputs, mesh, files, log)
        step, seconds = _compile(stage, inputs, OverClients(chunk, mesh))
        waited = ""
    else:
        since = time.perf_counter()
        step, seconds = begun.result()
        waited = f" beside the stage before, waited {time.perf_counter() - since:.1f} s for it"
    log(f"compiled the round{f' of {stage.name}' if stage.name else ''} in {seconds:.1f} s{waited}")
    return step


def ahead(
    stage: Stage,
    before: Inputs,
    init_key: jax.Array,
    chunk: int | Mapping[str, int],
    mesh: Mesh | None,
    streamed: bool,
) -> Future:
    """The stage's round that a thread is compiling, an argument of `compiled`.

    before: inputs of the stage that trains meanwhile; the shapes of a round's data are the same in all stages.
    streamed: the state has the states of the participants alone.
    """
    state, data, key = before
    state = jax.eval_shape(lambda state: state, state)  # its arrays are given away while the thread runs

    def compile_it():
        fresh = jax.eval_shape(stage.method.init, init_key)
        if streamed:
            fresh = dataclasses.replace(fresh, clients=client_state.shapes(fresh.clients, data))
        entered = jax.eval_shape(stages.enter, state, fresh)
        if mesh is not None:
            everywhere = NamedSharding(mesh, PartitionSpec())
            entered = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), entered)
        return _compile(stage, (entered, data, key), OverClients(chunk, mesh))

    thread = ThreadPoolExecutor(1)
    step = thread.submit(compile_it)
    thread.shutdown(wait=False)  # it ends with its work
    return step


def _compile(stage: Stage, inputs: Inputs, over: OverClients) -> tuple[jax.stages.Compiled, float]:
    """(the compiled round, the seconds that took)."""
    begun = time.perf_counter()
    step = jax.jit(stage.method._replace(over=over).round, donate_argnums=0).lower(*inputs).compile()
    return step, time.perf_counter() - begun
