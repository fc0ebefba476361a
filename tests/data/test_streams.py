"""Rows that are read as they are asked for: from files, TFDS's records, tables and memory, in threads, ahead, once."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_coco_captions import load, official, prepared_folder  # noqa: F401 (fixtures)

from fedjax_mm import streamed
from fedjax_mm.data import FederatedData, images, prepared, streams, tables
from fedjax_mm.local import local_steps
from fedjax_mm.readers import AHEAD, Reader
from fedjax_mm.run import digests

TAKE = jax.jit(lambda x, rows: x.rows(rows), static_argnums=0)


@pytest.fixture
def photos(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        Image.new("RGB", (8, 6), (10 * i, 20 * i, 30 * i)).save(path)
    return paths


def test_files_are_the_pictures_that_are_read_at_once(photos):
    whole = np.stack([images.read(path, 4) for path in photos])
    found = streams.files(photos, 4)
    assert found.shape == whole.shape and found.nbytes == whole.nbytes and found.dtype == whole.dtype
    np.testing.assert_array_equal(found[:], whole)
    rows = jnp.array([[3, -7], [99, 0]])  # as of an array on the device, beyond its ends
    np.testing.assert_array_equal(TAKE(found, rows), whole[[[3, 0], [4, 0]]])
    np.testing.assert_array_equal(jax.vmap(found.rows)(jnp.array([[1, 2], [4, 4]])), whole[[[1, 2], [4, 4]]])
    asked = streams.files(photos, 4, index=[4, 4, 0, 4])
    np.testing.assert_array_equal(asked[:], whole[[4, 4, 0, 4]])
    np.testing.assert_array_equal(asked.view([2, 0])[:], whole[[0, 4]])


@pytest.mark.parametrize("source", ["official", "prepared_folder"])
def test_coco_streamed_is_coco_decoded_before(source, request, tmp_path):
    folder = request.getfixturevalue(source)
    kept, streaming = load(folder, tmp_path), load(folder, tmp_path, stream=True)
    for split in ("train", "valid"):
        assert streamed.is_streamed(streaming.splits[split]["image"])
        np.testing.assert_array_equal(streaming.splits[split]["image"][:], kept.splits[split]["image"])
        np.testing.assert_array_equal(streaming.splits[split]["text"], kept.splits[split]["text"])


def test_records_that_tfds_prepared(prepared_folder):  # noqa: F811
    found = streams.records("coco_captions/2014/1.1.0", prepared_folder, "train", 30)
    whole = prepared.load("coco_captions/2014/1.1.0", prepared_folder, "train", ["image"])["image"]
    assert found.shape == (7, 30, 30, 3)
    np.testing.assert_array_equal(found[:].mean((1, 2)).round(), whole.mean((1, 2)).round())
    with pytest.raises(KeyError, match="has no pictures 'image/id'; it has"):
        streams.records("coco_captions/2014/1.1.0", prepared_folder, "train", 30, column="image/id")
    with pytest.raises(KeyError, match="has no split 'test'"):
        streams.records("coco_captions/2014/1.1.0", prepared_folder, "test", 30)


def test_a_table_of_paths_and_of_pictures(photos):
    pyarrow = pytest.importorskip("pyarrow")
    pictures = [{"bytes": photos[0].read_bytes(), "path": None}, None, {"bytes": None, "path": str(photos[2])}]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table({"img": pyarrow.array(pictures, kind), "y": ["a", "b", "a"]})
    columns = {"image": "img", "label": "y"}
    kept, found = (tables.read(table, columns, size=4, stream=stream) for stream in (False, True))
    assert streamed.is_streamed(found.arrays["image"]) and not kept.arrays["image"][1].any()
    np.testing.assert_array_equal(found.arrays["image"][:], kept.arrays["image"])
    np.testing.assert_array_equal(found.arrays["has_image"], kept.arrays["has_image"])


def steps(x, owner=((0, 1, 2, 3, 4, 5, 6, 7, 8, 9),)):
    """The sums of the batches that a client of four batches of 3 sees in two epochs."""
    data = FederatedData.from_arrays({"x": x}, [list(rows) for rows in owner]).client("all", 0)
    step = lambda carry, batch, key: (carry + batch["x"].sum(), {})
    return jax.jit(lambda key: local_steps(step, jnp.float32(0), data, key, batch_size=3, epochs=2)[0])


def test_batches_are_read_ahead_and_no_row_twice_in_a_batch():
    """The rows of the first batch are held back until those of the next ones are asked for."""
    asked, gate = [], threading.Event()

    def read(number):
        asked.append(number)
        if len(asked) == 3 * (1 + AHEAD):
            gate.set()
        assert gate.wait(20)
        return np.full(1, number, np.float32)

    x = streamed.of_rows(read, 10, (1,), np.float32, threads=16, kept_bytes=0)
    assert float(steps(x)(jax.random.key(0))) == 2 * sum(range(10))  # row 0, which is padding too, is 0
    assert len(asked) <= 2 * (10 + 1)  # of the two padding rows of an epoch one is read


def test_kept_rows_are_read_once():
    asked = []
    read = lambda number: asked.append(number) or np.full(2, number, np.float32)
    x = streamed.of_rows(read, 10, (2,), np.float32, threads=1, kept_bytes=4 * 8)  # four rows
    step = steps(x)
    step(jax.random.key(0)).block_until_ready()
    first = len(asked)
    step(jax.random.key(0)).block_until_ready()
    kept = set(asked) - set(asked[first:])
    assert set(asked) == set(range(10)) and len(kept) == 4


def test_what_cannot_be_read_is_named(photos):
    found = streams.files(photos, 4)
    photos[3].write_bytes(photos[3].read_bytes()[:40])
    with pytest.raises(ValueError, match="3.png is cut off"):
        found[3:]
    with pytest.raises(jax.errors.JaxRuntimeError, match="3.png is cut off"):
        jax.block_until_ready(TAKE(found, jnp.array([3])))
    photos[3].unlink()
    with pytest.raises(FileNotFoundError, match=r"no picture .*3.png \(1 of 5 are missing\)"):
        streams.files(photos, 4)
    ragged = Reader(lambda number: np.zeros(number), (2,), np.float32)
    with pytest.raises(ValueError, match=r"row 3 was read with the shape \(3,\); all rows must have \(2,\)"):
        ragged.batch(np.array([2, 3]), 2)


def test_wrong_arguments_are_refused(photos):
    for wrong in ({"size": 0}, {"size": 4, "index": [5]}, {"size": 4, "index": [[0]]}, {"size": 4, "kept_bytes": -1}):
        with pytest.raises(ValueError, match="size is 0|index must be|kept_bytes is -1"):
            streams.files(photos, **wrong)
    for values, said in (
        (np.full((2, 2), np.nan), "NaN"),
        (np.zeros(3), "in memory"),
        (np.full((1, 1), 2**40), "hold"),
    ):
        with pytest.raises(ValueError, match=said):
            streams.array(values)


def test_the_digest_follows_the_files_and_who_asks(photos):
    one = digests.of_array(streams.files(photos, 4))
    assert one == digests.of_array(streams.files(photos, 4))
    others = [streams.files(photos, 5), streams.files(photos, 4, index=[0, 1, 2, 3, 3]), streams.files(photos[::-1], 4)]
    Image.new("RGB", (9, 9)).save(photos[1])
    assert len({one, *map(digests.of_array, others), digests.of_array(streams.files(photos, 4))}) == 5
    values = np.arange(6.0, dtype=np.float32).reshape(3, 2)
    assert digests.of_array(streams.array(values)) == digests.of_array(values)
