"""What a compiled program does, read off its optimised HLO: its operations, each with the trips of the loops around it.

`cost_analysis()` counts a loop's body once. The TPU compiler writes an estimate of cycles beside most operations; some
(many copies, some gathers) have none and count 0, so that a sum of cycles is a lower bound.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
OPCODE = re.compile(r"(?<![\w%.\-])([a-z][a-z0-9\-]*)\(")
CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
ARRAY = re.compile(rf"({'|'.join(BYTES)})\[([\d,]*)\]")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
MOVES_NOTHING = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call"}
MOVES_NOTHING |= {"after-all", "partition-id", "replica-id", "opt-barrier", "optimization-barrier", "iota"}
MOVES_NOTHING |= {
    f"custom-call {target}" for target in ("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast")
}
NO_ESTIMATE = 10**15  # what overflows in the compiler's own sum is beyond it


class Instruction(NamedTuple):
    """A line of a computation: its name, result type, operation, and the whole line after the name."""

    name: str
    type: str
    op: str
    text: str


class Program(NamedTuple):
    """The computations of a module by name, and the name of its entry."""

    computations: Mapping[str, Sequence[Instruction]]
    entry: str


class Operation(NamedTuple):
    """An operation that the program runs.

    op: its kind; that of a custom call has its target. type: what it writes. cycles: the compiler's estimate of one
    time, None where it has none. times: the trips of all loops around it. depth: the number of these loops. trips: of
    the operation itself, where it is a loop; `known` is False where the program does not say them.
    """

    op: str
    type: str
    op_name: str
    name: str
    cycles: float | None
    times: float
    depth: int
    trips: float | None = None
    known: bool = True


def parse(text: str) -> Program:
    """The module that `Compiled.as_text()` prints. Raises ValueError for a text without an entry."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        if begun := COMPUTATION.match(line):
            current = computations[begun[2]] = []
            entry = begun[2] if begun[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := INSTRUCTION.match(line)):
            current.append(Instruction(found[1], *_typed(found[2]), found[2]))
    if entry is None:
        raise ValueError("the text has no ENTRY computation; give what Compiled.as_text() returns")
    return Program(computations, entry)


def _typed(text: str) -> tuple[str, str]:
    """(result type, operation) of a line after its name; the type may be a tuple, whose layouts have brackets too."""
    type = _first(text) if text.startswith("(") else text.partition(" ")[0]
    found = OPCODE.search(text, len(type))
    return type, found[1] if found else "?"


def _first(text: str) -> str:
    """The part in brackets with which a text begins."""
    depth = 0
    depths = ((depth := depth + (letter == "(") - (letter == ")")) for letter in text)
    return text[: next((i + 1 for i, now in enumerate(depths) if not now), len(text))]


def arrays_of(type: str) -> list[tuple[str, tuple[int, ...]]]:
    """The arrays of a type, (dtype, shape) each.

    >>> arrays_of("(s32[]{:T(128)}, bf16[20,200]{1,0:T(8,128)S(1)})")
    [('s32', ()), ('bf16', (20, 200))]
    """
    return [(kind, tuple(int(d) for d in shape.split(",") if d)) for kind, shape in ARRAY.findall(type)]


def bytes_of(type: str) -> int:
    """The bytes of a type, without the padding of its layout."""
    return sum(BYTES[kind] * math.prod(shape) for kind, shape in arrays_of(type))


def operations(program: Program, unknown_trips: float = 1.0) -> list[Operation]:
    """Everything the program runs; of a conditional's branches the one that takes most.

    unknown_trips: of a loop whose length the program does not say, because it depends on data.
    """
    return _operations(program, program.entry, 1.0, 0, unknown_trips)


def _operations(program: Program, computation: str, times: float, depth: int, unknown: float) -> list[Operation]:
    found = []
    for line in program.computations[computation]:
        inside = lambda name, more=1.0, deeper=0: _operations(program, name, times * more, depth + deeper, unknown)
        one = Operation(_kind(line), _written(line), _op_name(line.text), line.name, _cycles(line.text), times, depth)
        if line.op == "while":
            said = _trips(program, line)
            trips = unknown if said is None else said
            one = one._replace(cycles=None, trips=trips, known=said is not None)
            found += [one, *inside(_called(line.text, "body")[0], trips, 1)]
        elif line.op == "conditional":
            branches = [inside(name) for name in _branches(line.text)]
            found += [one._replace(cycles=None), *max(branches, key=cycles, default=[])]
        else:
            found.append(one)
            called = [name for name in _called(line.text, "to_apply", "calls") if name in program.computations]
            if line.op in ("call", "async-start"):
                found += [more for name in called for more in inside(name)]
            elif line.op == "fusion":  # whose estimate is its own
                found += [more._replace(cycles=None) for name in called for more in inside(name) if is_collective(more)]
    return found


def cycles(operations: Sequence[Operation]) -> float:
    """The sum over operations, each as often as it runs."""
    return sum((one.cycles or 0.0) * one.times for one in operations)


def is_collective(operation: Operation) -> bool:
    """Whether devices talk; an asynchronous one counts where it starts."""
    return operation.op.removesuffix("-start") in COLLECTIVES


def moved(operation: Operation) -> int:
    """The bytes of an operation's result. One that starts a copy or a gather also lists what it reads."""
    if operation.op in ("all-gather-start", "copy-start", "collective-permute-start"):
        return max((BYTES[kind] * math.prod(shape) for kind, shape in arrays_of(operation.type)), default=0)
    return bytes_of(operation.type)


def copies(operations: Sequence[Operation], examples: Sequence[tuple[str, tuple[int, ...]]]) -> list[Operation]:
    """The operations that write a whole array of examples again, whatever its layout and type there.

    examples: (dtype, [E, ...]) of every array of examples.
    """
    wholes = {(shape[0], math.prod(shape)) for _, shape in examples}
    is_whole = lambda shape: any(math.prod(shape) == total and number in shape for number, total in wholes)
    written = [one for one in operations if one.op not in MOVES_NOTHING and not one.op.endswith("-done")]
    return [one for one in written if any(is_whole(shape) for _, shape in arrays_of(one.type))]


def without_estimate(operations: Sequence[Operation]) -> list[Operation]:
    """The operations that write something and have no estimate, so that their time is missing from the sum."""
    skipped = lambda one: one.op in MOVES_NOTHING or one.op.endswith("-done") or one.cycles is not None
    return [one for one in operations if not skipped(one)]


def largest(operations: Sequence[Operation], number: int) -> list[tuple[float, float, Operation]]:
    """(cycles, times, one of them) of the operations that take most, those of one source and kind together."""
    groups: dict[tuple[str, str], list[Operation]] = {}
    for one in operations:
        if one.cycles:
            groups.setdefault((one.op, one.op_name or one.name), []).append(one)
    rows = [(cycles(same), sum(one.times for one in same), same[0]) for same in groups.values()]
    return sorted(rows, key=lambda row: -row[0])[:number]


def _trips(program: Program, loop: Instruction) -> float | None:
    """How often a loop runs: as the compiler notes it, or the constant its counter, from 0 by 1, is compared with."""
    if noted := re.search(r'"known_trip_count":\{"n":"?(\d+)', loop.text):
        return float(noted[1])
    constants = list(_constants(program, _called(loop.text, "condition")[0]))
    return float(max(constants)) if constants else None


def _constants(program: Program, computation: str) -> Iterator[int]:
    for line in program.computations.get(computation, ()):
        if line.op == "constant" and (found := re.match(r"[su]32\[\](?:\{[^}]*\})? constant\((\d+)\)", line.text)):
            yield int(found[1])
        for name in _called(line.text, "calls"):
            yield from _constants(program, name)


def _called(text: str, *roles: str) -> list[str]:
    return re.findall(rf"(?:{'|'.join(roles)})=%?([\w.\-]+)", text)


def _branches(text: str) -> list[str]:
    if listed := re.search(r"branch_computations=\{([^}]*)\}", text):
        return [name.strip().lstrip("%") for name in listed[1].split(",")]
    return _called(text, "true_computation", "false_computation")


def _written(line: Instruction) -> str:
    """The type of a result; what only starts an operation has ((what it reads), what it writes, ...)."""
    started = line.op.endswith("-start") and line.type.startswith("((")
    return line.type[len(_first(line.type[1:])) + 1 :] if started else line.type


def _kind(line: Instruction) -> str:
    target = re.search(r'custom_call_target="([^"]*)"', line.text) if line.op == "custom-call" else None
    return f"{line.op} {target[1]}" if target else line.op


def _op_name(text: str) -> str:
    found = re.search(r'op_name="([^"]*)"', text)
    return found[1] if found else ""


def _cycles(text: str) -> float | None:
    found = CYCLES.search(text)
    return float(found[1]) if found and 0 < int(found[1]) < NO_ESTIMATE else None
