"""Tables of Arrow and Hugging Face's folders as arrays, written here with pyarrow alone."""

import io
import json

import numpy as np
import pytest

from fedjax_mm.data import FederatedData, tables

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")

USERS, TEXTS = ["v", "u", "v", "w"], ["a red dog", "a cat", "a dog", "red"]


def png(value):
    content = io.BytesIO()
    Image.fromarray(np.full((5, 7, 3), value, np.uint8)).save(content, "png")
    return content.getvalue()


def hub(table, **features):
    """The table with the metadata that `datasets` writes."""
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def example(**more):
    columns = {
        "img": [{"bytes": png(10 * i), "path": None} for i in range(4)],
        "txt": TEXTS,
        "y": [1, 0, 1, 2],
        "user": USERS,
        "vector": [[float(i), 0.5] for i in range(4)],
        "matrix": [[[i, 1], [2, 3]] for i in range(4)],
        **more,
    }
    return hub(pa.table(columns), y={"_type": "ClassLabel", "names": ["bird", "cat", "dog"]}, img={"_type": "Image"})


ALL = {"image": "img", "text": "txt", "label": "y", "x": "vector", "m": "matrix"}
SETTINGS = {"client": "user", "size": 3, "length": 6, "vocabulary": 40}


def save_to_disk(folder, table, pieces=2):
    """What `datasets.Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    names = [f"data-0000{i}-of-0000{pieces}.arrow" for i in range(pieces)]
    step = -(-len(table) // pieces)
    for i, name in enumerate(names):
        part = table.slice(i * step, step)
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, part.schema) as stream:
            stream.write_table(part)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return folder


def check(found):
    arrays = found.arrays
    assert arrays["image"].shape == (4, 3, 3, 3) and arrays["image"][:, 1, 1, 0].tolist() == [0, 10, 20, 30]
    assert arrays["text"].shape == (4, 6) and arrays["text"].dtype == np.int32 and (arrays["text"][3] != 0).sum() == 3
    assert arrays["label"].tolist() == [1, 0, 1, 2] and found.classes == ("bird", "cat", "dog")
    assert arrays["x"].dtype == np.float32 and arrays["x"][2].tolist() == [2.0, 0.5]
    assert arrays["m"].dtype == np.int32 and arrays["m"].shape == (4, 2, 2)
    assert found.client.tolist() == [1, 0, 1, 2] and found.clients == ("u", "v", "w")
    assert "has_image" not in arrays


def test_a_table_is_a_federation():
    found = tables.read(example(), ALL, **SETTINGS)
    check(found)
    data = FederatedData.from_arrays(found.arrays, found.client, num_classes=len(found.classes))
    assert data.split()["all"]["examples"] == [1, 2, 1]


def test_folders_and_files_hold_the_same(tmp_path):
    check(tables.read(save_to_disk(tmp_path / "one", example()), ALL, **SETTINGS))
    parquet.write_table(example(), tmp_path / "x.parquet")
    check(tables.read(str(tmp_path / "x.parquet"), ALL, **SETTINGS))
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file, pa.ipc.new_file(file, example().schema) as out:
        out.write_table(example())
    check(tables.read(tmp_path / "x.arrow", ALL, **SETTINGS))


def test_one_of_several_splits_is_read(tmp_path):
    short = example().slice(0, 1)
    for name, table in (("train", example()), ("test", short)):
        save_to_disk(tmp_path / "dict" / name, table)
    (tmp_path / "dict" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    parquet.write_table(example().slice(0, 3), tmp_path / "hub" / "data" / "train-00000-of-00002.parquet")
    parquet.write_table(example().slice(3), tmp_path / "hub" / "data" / "train-00001-of-00002.parquet")
    parquet.write_table(short, tmp_path / "hub" / "data" / "test-00000-of-00001.parquet")
    for source in (tmp_path / "dict", tmp_path / "hub", {"train": example(), "test": short}):
        check(tables.read(source, ALL, split="train", **SETTINGS))
        assert len(tables.read(source, {"label": "y"}, split="test").arrays["label"]) == 1
        for split in (None, "valid"):
            with pytest.raises(ValueError, match=r"split is .*; the source has the splits '"):
                tables.read(source, ALL, split=split, **SETTINGS)


class Dataset:
    """What this library uses of a datasets.Dataset."""

    features = {}

    def __len__(self):
        return 4

    def with_format(self, name):
        assert name == "arrow"
        return self

    def __getitem__(self, rows):
        assert rows == slice(None)
        return example()


def test_a_dataset_in_memory_is_read_by_its_own_arrow_format():
    check(tables.read(Dataset(), ALL, **SETTINGS))


def test_pictures_may_be_bytes_or_files_beside_the_table(tmp_path):
    (tmp_path / "a.png").write_bytes(png(50))
    beside = pa.table({"img": [{"bytes": None, "path": "a.png"}, {"bytes": png(7), "path": "none.png"}]})
    parquet.write_table(beside, tmp_path / "x.parquet")
    found = tables.read(tmp_path / "x.parquet", {"image": "img"}, size=2)
    assert found.arrays["image"][:, 0, 0, 0].tolist() == [50, 7]
    plain = tables.read(pa.table({"img": [png(9)]}), {"image": "img"}, size=2)
    assert plain.arrays["image"][0, 0, 0].tolist() == [9, 9, 9] and plain.client is None and plain.classes == ()


def test_what_lacks_a_picture_or_text_says_so():
    table = pa.table({"img": [None, {"bytes": png(9), "path": None}], "txt": ["dog", None]})
    arrays = tables.read(table, {"image": "img", "text": "txt"}, size=2, vocabulary=40, length=4).arrays
    assert arrays["has_image"].tolist() == [False, True] and arrays["has_text"].tolist() == [True, False]
    assert not arrays["image"][0].any() and not arrays["text"][1].any() and arrays["text"][0].any()


def test_labels_and_clients_are_numbered_by_their_names():
    table = pa.table({"y": ["b", "a", "b"], "who": [30, 7, 30], "flag": [True, False, True], "n": [0, 4, 2]})
    found = tables.read(table, {"label": "y"}, client="who")
    assert found.arrays["label"].tolist() == [1, 0, 1] and found.classes == ("a", "b")
    assert found.client.tolist() == [1, 0, 1] and found.clients == ("7", "30")
    assert tables.read(table, {"label": "flag"}).classes == ("False", "True")
    assert tables.read(table, {"label": "n"}).classes == ("0", "1", "2", "3", "4")
    assert tables.read(table, {"flag": "flag"}).arrays["flag"].dtype == bool
    coded = pa.table({"y": pa.array(["b", "a", "b"]).dictionary_encode()})
    assert tables.read(coded, {"label": "y"}).arrays["label"].tolist() == [1, 0, 1]


def test_a_tokenizer_may_be_a_function_and_is_given_back():
    own = lambda texts: [[len(text), 0] for text in texts]
    found = tables.read(example(), {"text": "txt"}, tokenizer=own)
    assert found.arrays["text"].tolist() == [[len(text), 0] for text in TEXTS] and found.tokenizers["text"] is own
    fitted = tables.read(example(), {"text": "txt"}, vocabulary=40, length=6)
    again = tables.read(example(), {"text": "txt"}, tokenizer=fitted.tokenizers["text"], length=6)
    np.testing.assert_array_equal(again.arrays["text"], fitted.arrays["text"])


@pytest.mark.parametrize(
    "columns, settings, said",
    [
        ({"image": "pic"}, {}, "columns or client names 'pic'; the table has img, txt"),
        ({"label": "y"}, {"client": "who"}, "columns or client names 'who'"),
        ({"image": "img"}, {}, "size is None, and column 'img' holds pictures"),
        ({"image": "img"}, {"size": 0}, "size is 0; give a whole number"),
        ({"label": "y"}, {"split": "train"}, "split is 'train', and the source has no splits"),
        ({"label": "y"}, {"client": "img"}, "column 'img' holds pictures; give texts or whole numbers"),
        ({"label": "y"}, {"client": 3}, "client is 3; give the name of a column"),
        ({}, {}, "columns is {}; give one or more"),
        (["y"], {}, "columns is .*; give a mapping from array to column"),
        ({"label": 3}, {}, "columns has 3 for 'label'; give the name of a column"),
        ({"x": "ragged"}, {}, "column 'ragged' holds lists of different lengths"),
        ({"x": "holes"}, {}, "column 'holes' is null in 1 rows, first in row 2; fill or drop them"),
        ({"label": "words"}, {}, "column 'words' is null in 1 rows"),
        ({"x": "lists of texts"}, {}, "holds lists of what is no number"),
        ({"x": "dates"}, {}, "column 'dates' is of type date32"),
        ({"label": "negative"}, {}, "column 'negative' is no label"),
        ({"x": "large"}, {}, "column 'large'"),
        ({"text": "nothing"}, {}, "column 'nothing' is null in every row"),
        ({"text": "txt"}, {"tokenizer": lambda texts: [[1]]}, "tokenizer gives 1 rows of 4 texts"),
        ({"text": "txt"}, {"tokenizer": lambda texts: texts}, "what tokenizer gives of 'txt'"),
        ({"text": "txt"}, {"tokenizer": 3}, "tokenizer is 3"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns, settings, said):
    odd = {
        "ragged": [[1], [1, 2], [1], [1]],
        "holes": [1, 2, None, 3],
        "words": ["a", None, "b", "a"],
        "lists of texts": [["a"]] * 4,
        "dates": pa.array([0, 1, 2, 3], pa.date32()),
        "negative": [-1, 0, 1, 0],
        "large": [2**40, 0, 0, 0],
        "nothing": pa.array([None] * 4, pa.string()),
    }
    with pytest.raises(ValueError, match=said):
        tables.read(example(**odd), columns, **settings)


def test_labels_beyond_the_classes_are_refused():
    wrong = hub(pa.table({"y": [0, 3]}), y={"_type": "ClassLabel", "names": ["a", "b"]})
    with pytest.raises(ValueError, match=r"column 'y' holds 0\.\.3, and has 2 classes"):
        tables.read(wrong, {"label": "y"})


def test_sources_that_are_no_tables_are_refused(tmp_path):
    read = lambda source: tables.read(source, {"label": "y"})
    with pytest.raises(ValueError, match="source is 3; give a folder"):
        read(3)
    with pytest.raises(FileNotFoundError, match="there is nothing at"):
        read(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="has neither state.json nor Parquet files"):
        read(tmp_path)
    with pytest.raises(ValueError, match="source has no rows"):
        read(pa.table({"y": pa.array([], pa.int64())}))
    folder = save_to_disk(tmp_path / "one", example())
    file = next(folder.glob("*.arrow"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"\.arrow is cut off, damaged or no table"):
        read(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="there is no file .*; copy the folder again"):
        read(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(ValueError, match="state.json is damaged"):
        read(folder)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(ValueError, match=r"x\.parquet is cut off, damaged or no table"):
        read(tmp_path / "x.parquet")
