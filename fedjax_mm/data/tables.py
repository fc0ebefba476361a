"""Tables of examples, such as Hugging Face `datasets`, as arrays: pictures, texts, labels, numbers, and whose they are.

    table = data.tables.read("folder", {"image": "img", "text": "caption", "label": "species"}, client="photographer")
    federated = FederatedData.from_arrays(table.arrays, table.client, num_classes=len(table.classes))

It needs pyarrow, which comes with `pip install 'fedjax_mm[arrow]'`, and not the package `datasets`; pictures and texts
need `fedjax_mm[text]`.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedjax_mm import _lazy
from fedjax_mm.checks import check_array, check_mapping, say
from fedjax_mm.data import arguments, images, wordpiece
from fedjax_mm.data.arrays import as_int32
from fedjax_mm.data.arrow_files import EXTRA, open_table
from fedjax_mm.readers import NOBODY
from fedjax_mm.streamed import Streamed, of_rows

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Tokenize = Callable[[list[str]], Any]  # E texts -> whole numbers [E, L], 0 for padding


class Table(NamedTuple):
    """The examples of a table, as `FederatedData.from_arrays` takes them."""

    arrays: dict[str, np.ndarray | Streamed]
    """Leaves [E, ...]; `has_<name>` [E] bool where an example lacks its picture or text."""
    client: np.ndarray | None
    """[E] int32: the number of each example's client. None where no column names it."""
    clients: tuple[str, ...]
    """The names of the clients, in the order of their numbers."""
    classes: tuple[str, ...]
    """The names of the classes of `label`, in the order of their numbers. () where there is no label [E]."""
    tokenizers: "dict[str, Tokenizer | Tokenize]"
    """Array of tokens -> what made them, for test texts."""


def read(
    source: Any,
    columns: Mapping[str, str],
    *,
    client: str | None = None,
    split: str | None = None,
    size: int | None = None,
    tokenizer: "Tokenizer | str | os.PathLike | Tokenize | None" = None,
    vocabulary: int = 8000,
    length: int = 64,
    stream: bool = False,
) -> Table:
    """The examples of a table as arrays, in the order of its rows.

    source: a folder that `save_to_disk` wrote or that holds Parquet files, as those of the Hub do; a .parquet or .arrow
        file; a `datasets.Dataset` or `DatasetDict`; or a `pyarrow.Table`. split: which one, where there are several.
    columns: array -> the column it is made of. Pictures become uint8 [E, size, size, 3] (see `images.decode`), texts
        int32 tokens [E, length], lists of one length and numbers float32, int32 or bool. The array "label" numbers the
        classes: those of a ClassLabel in their order, texts in that of the alphabet, and whole numbers as they are.
    client: the column that names each example's client; clients are numbered in the order of their names.
    size: the side of the pictures, which has to be said. stream: whether they stay where they are, encoded, and are
        decoded as steps need them (see data.streams).
    tokenizer: a `tokenizers.Tokenizer`, the path of its vocab.txt or tokenizer.json, or a function from texts to tokens
        [E, L]. None: at most `vocabulary` word pieces are fitted to the texts. length: tokens of a text.

    Where a picture or a text is null, its values are 0 and `has_<array>` [E] is False.

    Raises FileNotFoundError and ValueError, naming the argument, column or file, for what is missing, damaged, null
    elsewhere, ragged, of another type, or more than 32 bits hold.

    >>> import pyarrow
    >>> x = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    >>> table = pyarrow.table({"x": x, "y": ["dog", "cat", "dog"], "by": ["u", "v", "u"]})
    >>> found = read(table, {"x": "x", "label": "y"}, client="by")
    >>> found.arrays["x"].shape, found.arrays["label"].tolist(), found.classes
    ((3, 2), [1, 0, 1], ('cat', 'dog'))
    >>> found.client.tolist(), found.clients
    ([0, 1, 0], ('u', 'v'))
    """
    _check(columns, client)
    arguments.check_limit(size=size)
    arguments.check_whole(1, vocabulary=vocabulary)
    table, folder = _opened(source, split, [*columns.values(), *([client] if client else [])])
    arrays, classes, tokenizers = {}, (), {}
    for array, name in columns.items():
        column = _Column(table, name)
        if array == "label" and column.kind in ("text", "number", "flag"):
            arrays[array], classes = _label(column)
            continue
        if column.kind == "text":
            values, tokenizers[array] = _tokens(column, tokenizer, vocabulary, length)
        else:
            values = _pictures(column, size, folder, stream) if column.kind == "picture" else _numbers(column)
        arrays[array] = values
        if column.nulls.any():
            arrays[f"has_{array}"] = ~column.nulls
    owner, clients = (None, ()) if client is None else _named(_Column(table, client))
    return Table(arrays, owner, clients, classes, tokenizers)


def _opened(source: Any, split: str | None, wanted: list[str]) -> tuple[Any, pathlib.Path | None]:
    table, folder = open_table(source, split)
    if missing := [name for name in wanted if name not in table.column_names]:
        raise ValueError(f"columns or client names {missing[0]!r}; the table has {', '.join(table.column_names)}")
    return table, folder


class _Column:
    """A column of a pyarrow.Table: its kind, its values, and what Hugging Face's metadata say of it."""

    def __init__(self, table: Any, name: str):
        arrow = _lazy.require("pyarrow", EXTRA)
        column = table.column(name)
        if isinstance(column.type, arrow.BaseExtensionType):
            column = arrow.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
        self.name, self.values, self.feature = name, column, _features(table).get(name, {})
        self.nulls = np.asarray(column.is_null().to_numpy(), bool)
        self.kind = _kind(arrow.types, column.type)
        if self.kind in ("picture", "text") and self.nulls.all():
            raise ValueError(f"column {name!r} is null in every row; leave it out")

    def need_all(self) -> None:
        if self.nulls.any():
            row = int(np.argmax(self.nulls))
            raise ValueError(
                f"column {self.name!r} is null in {self.nulls.sum()} rows, first in row {row}; fill or drop them"
            )


def _kind(types: Any, kind: Any) -> str:
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind):
        return "text"
    if types.is_boolean(kind):
        return "flag"
    if types.is_integer(kind) or types.is_floating(kind):
        return "number"
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "picture"
    if types.is_struct(kind) and {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}:
        return "picture"
    return "list" if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) else str(kind)


def _features(table: Any) -> dict[str, Any]:
    """What `datasets` says of each column; {} where it says nothing."""
    try:
        features = json.loads((table.schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (LookupError, ValueError, TypeError):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _label(column: _Column) -> tuple[np.ndarray, tuple[str, ...]]:
    """(label [E] int32, the names of the classes)."""
    names = column.feature.get("names")
    if isinstance(names, list) and column.kind == "number":
        label = _numbers(column)
        if label.min() < 0 or label.max() >= len(names):
            raise ValueError(f"column {column.name!r} holds {label.min()}..{label.max()}, and has {len(names)} classes")
        return label, tuple(map(str, names))
    if column.kind != "number":
        return _named(column)
    label = _numbers(column)
    if not np.issubdtype(label.dtype, np.integer) or label.min() < 0:
        raise ValueError(f"column {column.name!r} is no label; give whole numbers from 0 on, or texts")
    return label, tuple(map(str, range(label.max() + 1)))


def _named(column: _Column) -> tuple[np.ndarray, tuple[str, ...]]:
    """(a number for each row [E] int32, the names in the order of these numbers)."""
    column.need_all()
    if column.kind not in ("text", "number", "flag"):
        raise ValueError(
            f"column {column.name!r} holds {column.kind}s; give texts or whole numbers, which name something"
        )
    names, numbers = np.unique(np.asarray(column.values.to_pylist()), return_inverse=True)
    return numbers.astype(np.int32), tuple(str(name) for name in names.tolist())


def _tokens(column: _Column, tokenizer: Any, vocabulary: int, length: int) -> tuple[np.ndarray, Any]:
    texts = [text or "" for text in column.values.to_pylist()]
    if callable(tokenizer):
        tokens = as_int32(
            check_array(f"what tokenizer gives of {column.name!r}", tokenizer(texts), (np.integer,), "[E, L]"), "tokens"
        )
        if len(tokens) != len(texts):
            raise ValueError(f"tokenizer gives {len(tokens)} rows of {len(texts)} texts; it must give one for each")
    else:
        tokenizer = wordpiece.choose(tokenizer, texts, vocabulary)
        tokens = wordpiece.encode(tokenizer, texts, length)
    return np.where(column.nulls[:, None], 0, tokens), tokenizer


def _pictures(column: _Column, size: int | None, folder: pathlib.Path | None, stream: bool) -> Any:
    if size is None:
        raise ValueError(
            f"size is None, and column {column.name!r} holds pictures; give the side that they are to have"
        )

    def decoded(row: int) -> np.ndarray:
        value = column.values[row].as_py()
        value = value if isinstance(value, dict) else {"bytes": value, "path": None}
        name = f"the picture of column {column.name!r} in row {row}"
        if value["bytes"] is not None:
            return images.decode(value["bytes"], size, name)
        if value["path"]:
            return images.read((folder or pathlib.Path()) / value["path"], size)
        raise ValueError(f"{name} has neither bytes nor a path; drop the row")

    if stream:
        index = np.where(column.nulls, NOBODY, np.arange(len(column.nulls)))
        return of_rows(decoded, len(index), (size, size, 3), np.uint8, index=index)
    found = np.zeros((len(column.nulls), size, size, 3), np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(lambda row: found.__setitem__(row, decoded(row)), np.flatnonzero(~column.nulls).tolist()):
            pass
    return found


def _numbers(column: _Column) -> np.ndarray:
    """float32, int32 or bool [E, ...]."""
    column.need_all()
    if column.kind not in ("number", "flag", "list"):
        raise ValueError(
            f"column {column.name!r} is of type {column.kind}; give pictures, texts, numbers or lists of them"
        )
    try:
        values = column.values.to_numpy() if column.kind != "list" else np.array(column.values.to_pylist())
    except ValueError as error:
        raise ValueError(f"column {column.name!r} holds lists of different lengths; pad or cut them") from error
    if values.dtype.kind not in "iufb":
        raise ValueError(f"column {column.name!r} holds lists of what is no number, or null; fill or drop these rows")
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    return values if values.dtype.kind == "b" else as_int32(values, f"the values of column {column.name!r}")


def _check(columns: Any, client: Any) -> None:
    check_mapping("columns", columns, "array to column")
    for name, value in columns.items():
        if not isinstance(value, str) or not value:
            raise ValueError(f"columns has {say(value)} for {name!r}; give the name of a column")
    if not columns:
        raise ValueError("columns is {}; give one or more, {array: column}")
    if client is not None and (not isinstance(client, str) or not client):
        raise ValueError(f"client is {say(client)}; give the name of a column, or None")
