"""Made files in each official format say what was put into them, and what is wrong with them."""

import json

import pytest

from fedjax_mm.data import vqa
from fedjax_mm.data.vqa import Question, annotations, benchmarks, folders

TEN = ["Yes.", "yes", "no", "yes", "maybe", "no", "yes", "the dog", "yes", "no"]


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def vqa_files(folder, data_type="mscoco", subtype="train2014"):
    """Two questions; the annotations stand in another order."""
    asked = {
        "data_type": data_type,
        "data_subtype": subtype,
        "questions": [
            {"image_id": 9, "question": "Is it red?", "question_id": 90},
            {"image_id": 25, "question": "How many?", "question_id": 251},
        ],
    }
    given = [
        {
            "question_id": number,
            "image_id": image,
            "question_type": "x",
            "answer_type": kind,
            "multiple_choice_answer": texts[0],
            "answers": [{"answer": t, "answer_confidence": "yes", "answer_id": i + 1} for i, t in enumerate(texts)],
        }
        for number, image, kind, texts in ((251, 25, "number", ["2"] * 10), (90, 9, "yes/no", TEN))
    ]
    return write(folder / "q.json", asked), write(folder / "a.json", {"annotations": given})


def test_vqa_v2(tmp_path):
    assert annotations.vqa(*vqa_files(tmp_path), "/images") == [
        Question("/images/COCO_train2014_000000000009.jpg", "Is it red?", tuple(TEN), "yes/no"),
        Question("/images/COCO_train2014_000000000025.jpg", "How many?", ("2",) * 10, "number"),
    ]


def test_vqa_abstract(tmp_path):
    first, _ = annotations.vqa(*vqa_files(tmp_path, "abstract_v002", "val2015"), "/images")
    assert first.image == "/images/abstract_v002_val2015_000000000009.png"


def test_vizwiz(tmp_path):
    answers = [{"answer": text, "answer_confidence": "maybe"} for text in TEN]
    entry = {"image": "VizWiz_val_00000003.jpg", "question": "What?", "answers": answers, "answerable": 1}
    path = write(tmp_path / "val.json", [{**entry, "answer_type": "other"}, entry])
    first, second = annotations.vizwiz(path, "/images")
    assert first == Question("/images/VizWiz_val_00000003.jpg", "What?", tuple(TEN), "other")
    assert second.type == ""


def test_gqa(tmp_path):
    entry = {"imageId": "2405722", "question": "Is it?", "answer": "no", "fullAnswer": "No, it is not."}
    path = write(tmp_path / "train_balanced_questions.json", {"07333": {**entry, "types": {"semantic": "relation"}}})
    assert annotations.gqa(path, "/images") == [Question("/images/2405722.jpg", "Is it?", ("no",), "relation")]


def coco_qa_files(folder, types=("2", "1")):
    for name, lines in (
        ("questions", ["what is the color of the bus", "how many dogs"]),
        ("answers", ["red", "two"]),
        ("img_ids", ["458755", "7"]),
        ("types", types),
    ):
        write(folder / f"{name}.txt", "\n".join(lines) + "\n")


def test_coco_qa(tmp_path):
    coco_qa_files(tmp_path)
    bus, dogs = annotations.coco_qa(tmp_path, "/images")
    assert bus == Question("/images/COCO_train2014_000000458755.jpg", "what is the color of the bus", ("red",), "color")
    assert dogs.type == "number"
    assert annotations.coco_qa(tmp_path, "/images", "{:012d}.jpg")[1].image == "/images/000000000007.jpg"


def test_coco_qa_refuses_files_that_do_not_match(tmp_path):
    coco_qa_files(tmp_path, types=("2", "4"))
    with pytest.raises(ValueError, match="line 2 of img_ids.txt or types.txt"):
        annotations.coco_qa(tmp_path, "/images")
    write(tmp_path / "types.txt", "2\n")
    with pytest.raises(ValueError, match="as many lines each.*'types': 1"):
        annotations.coco_qa(tmp_path, "/images")
    (tmp_path / "types.txt").unlink()
    with pytest.raises(FileNotFoundError, match="types.txt; get it from"):
        annotations.coco_qa(tmp_path, "/images")


PAINTING = {"image": "1-a.jpg", "question": "who sit", "answer": "woman", "need_external_knowledge": False}
CLOVE = {"image_source": "vg", "image_id": "440", "question": "What place?", "answers": ["kiosk"] * 10}


def test_aqua(tmp_path):
    path = write(tmp_path / "train.json", [PAINTING, {**PAINTING, "need_external_knowledge": True}])
    first, second = annotations.aqua(path, "/images")
    assert first == Question("/images/1-a.jpg", "who sit", ("woman",), "visual")
    assert second.type == "knowledge"


def test_clove(tmp_path):
    path = write(tmp_path / "functional_object_train.json", [CLOVE])
    assert annotations.clove(path, "/clove") == [Question("/clove/vg/440.jpg", "What place?", ("kiosk",) * 10, "vg")]
    with pytest.raises(ValueError, match="not CLOVE's questions.*answers is 'kiosk'"):
        annotations.clove(write(path, [{**CLOVE, "answers": "kiosk"}]), "/clove")


@pytest.fixture
def published(tmp_path):
    """All files of FedDAT's benchmarks, a question or two in each."""
    for name in ("aqua", "vizwiz", "gqa", "abstract", "coco_qa/train", "coco_qa/test", "clove/function", "clove/scene"):
        (tmp_path / name).mkdir(parents=True)
    for split in ("train", "test"):
        write(tmp_path / "aqua" / f"{split}.json", [PAINTING])
        coco_qa_files(tmp_path / "coco_qa" / split)
    seen = {"image": "VizWiz.jpg", "question": "What?", "answers": [{"answer": "x"}]}
    asked = {"imageId": "24", "question": "Is it?", "answer": "no"}
    for split in ("train", "val"):
        write(tmp_path / "vizwiz" / f"{split}.json", [seen])
        write(tmp_path / "gqa" / f"{split}_balanced_questions.json", {"07": asked})
        questions, answers = vqa_files(tmp_path, "abstract_v002", f"{split}2015")
        questions.rename(tmp_path / "abstract" / f"OpenEnded_abstract_v002_{split}2015_questions.json")
        answers.rename(tmp_path / "abstract" / f"abstract_v002_{split}2015_annotations.json")
        for part in benchmarks.FUNCTIONS:
            write(tmp_path / "clove" / "function" / f"functional_{part}_{split}.json", [CLOVE])
        for part in benchmarks.SCENES:
            write(tmp_path / "clove" / "scene" / f"scene_{part}_{split}.json", [{**CLOVE, "image_source": part}])
    return tmp_path


def test_the_benchmarks_of_feddat(published):
    domain = vqa.official(published, "domain")
    first = {name: client["test"][0].image for name, client in domain.items()}
    assert {name: image.removeprefix(f"{published}/") for name, image in first.items()} == {
        "aqua": "aqua/images/1-a.jpg",
        "abstract": "abstract/images/abstract_v002_val2015_000000000009.png",
        "vizwiz": "vizwiz/images/VizWiz.jpg",
        "coco_qa": "coco_qa/images/COCO_val2014_000000458755.jpg",
        "gqa": "gqa/images/24.jpg",
    }
    assert domain["coco_qa"]["train"][0].image.endswith("COCO_train2014_000000458755.jpg")
    assert list(vqa.official(published, "function")) == list(benchmarks.FUNCTIONS)
    scene = vqa.official(published, "scene")
    assert list(scene) == "ShopAndDining Workplace HomeOrHotel Transportation SportAndLeisure Outdoors".split()
    assert scene["Outdoors"]["test"][0].type == "f#Outdoors"


def test_a_benchmark_names_the_file_that_is_missing(published):
    with pytest.raises(ValueError, match="benchmark is 'domains'; there are domain, function, scene"):
        vqa.official(published, "domains")
    (published / "clove" / "scene" / "scene_f#Outdoors_val.json").unlink()
    with pytest.raises(
        FileNotFoundError, match="scene_f#Outdoors_val.json; get it from https://github.com/showlab/CLVQA"
    ):
        vqa.official(published, "scene")


def test_official_files_that_are_missing_cut_off_or_without_answers(tmp_path):
    questions, answers = vqa_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="none.json; get it from https://visualqa.org"):
        annotations.vqa(questions, tmp_path / "none.json", "/images")
    short = write(tmp_path / "short.json", answers.read_text()[:-20])
    with pytest.raises(ValueError, match="short.json is cut off or no JSON"):
        annotations.vqa(questions, short, "/images")
    other = write(tmp_path / "other.json", {"annotations": []})
    with pytest.raises(ValueError, match="not VQA's questions with answers.*KeyError"):
        annotations.vqa(questions, other, "/images")
    test = write(tmp_path / "test.json", [{"image": "a.jpg", "question": "What?"}])
    with pytest.raises(ValueError, match="test.json: not VizWiz's questions.*test files have no answers"):
        annotations.vizwiz(test, "/images")
    with pytest.raises(ValueError, match="not GQA's questions"):
        annotations.gqa(test, "/images")
    with pytest.raises(ValueError, match="no questions"):
        annotations.gqa(write(tmp_path / "empty.json", {}), "/images")


@pytest.fixture
def folder(tmp_path):
    lines = {
        "train": [
            {"file_name": "../images/a.jpg", "question": "What?", "answer": "a cat"},
            {"file_name": "b.jpg", "question": "Is it?", "answers": TEN, "type": "yes/no"},
        ],
        "test": [{"file_name": "../images/c.jpg", "question": "Why?", "answer": "no reason"}],
    }
    for split, entries in lines.items():
        (tmp_path / "own" / split).mkdir(parents=True)
        write(tmp_path / "own" / split / "metadata.jsonl", "\n".join(map(json.dumps, entries)) + "\n\n")
    (tmp_path / "something else").mkdir()
    return tmp_path


def test_imagefolder(folder):
    assert vqa.imagefolder(folder) == {
        "own": {
            "train": [
                Question(str(folder / "own/images/a.jpg"), "What?", ("a cat",)),
                Question(str(folder / "own/train/b.jpg"), "Is it?", tuple(TEN), "yes/no"),
            ],
            "test": [Question(str(folder / "own/images/c.jpg"), "Why?", ("no reason",))],
        }
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "b.jpg", "questi', "line 2 of .*metadata.jsonl is cut off or no JSON"),
        ('["b.jpg"]', "line 2 of .* is no JSON object"),
        ('{"file_name": "b.jpg", "answer": "x"}', r"line 2 of .* has no 'question'; it has \['answer', 'file_name'\]"),
        ('{"file_name": "b.jpg", "question": "x"}', "line 2 of .* has no 'answer'"),
        ('{"file_name": "b.jpg", "question": "x", "answer": 2}', "line 2 of .* write a number as text"),
        ('{"file_name": "b.jpg", "question": "x", "answers": []}', "line 2 of .* something empty"),
        ('{"file_name": "b.jpg", "question": " ", "answer": "x"}', "line 2 of .* something empty"),
    ],
)
def test_imagefolder_names_the_line(folder, line, message):
    path = folder / "own" / "train" / "metadata.jsonl"
    write(path, path.read_text().splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(ValueError, match=message):
        vqa.imagefolder(folder)


def test_imagefolder_names_what_is_missing(folder):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        vqa.imagefolder(folder / "nowhere")
    with pytest.raises(FileNotFoundError, match="other/train/metadata.jsonl"):
        vqa.imagefolder(folder, ("other",))
    with pytest.raises(ValueError, match=r"give a tuple of names; .* has \['own'\]"):
        vqa.imagefolder(folder, "own")
    path = folder / "own" / "test" / "metadata.jsonl"
    write(path, "")
    with pytest.raises(ValueError, match="metadata.jsonl is empty"):
        vqa.imagefolder(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="own/test/metadata.jsonl"):
        vqa.imagefolder(folder)


@pytest.mark.parametrize("end", ["\u2028", "\x85", "\x0c"])
def test_what_ends_no_line_stays_in_it(tmp_path, end):
    coco_qa_files(tmp_path)
    write(tmp_path / "questions.txt", f"what is{end} the color\nhow many dogs\n")
    bus, dogs = annotations.coco_qa(tmp_path, "/images")
    assert (bus.text, dogs.text) == (f"what is{end} the color", "how many dogs")


@pytest.mark.parametrize(("column", "value"), [("types", "-1"), ("img_ids", "1.5")])
def test_coco_qa_has_no_other_numbers(tmp_path, column, value):
    coco_qa_files(tmp_path)
    write(tmp_path / f"{column}.txt", f"{value}\n1\n")
    with pytest.raises(ValueError, match="line 1 of img_ids.txt or types.txt"):
        annotations.coco_qa(tmp_path, "/images")


@pytest.mark.parametrize("name", ["all.jpg", "{5}.jpg", "{x}.jpg", "{:q}.jpg", "{", None])
def test_coco_qa_names_a_wrong_image_name(tmp_path, name):
    coco_qa_files(tmp_path)
    with pytest.raises(ValueError, match="image_name is .*; give a name with one place for the number"):
        annotations.coco_qa(tmp_path, "/images", name)


@pytest.mark.parametrize("subtype", ["{5}", "{0.__class__}", "{0:d}{0", "a}b"])
def test_what_a_file_says_is_no_template(tmp_path, subtype):
    first, _ = annotations.vqa(*vqa_files(tmp_path, "mscoco", subtype), "/images")
    assert first.image == f"/images/COCO_{subtype}_000000000009.jpg"


def test_null_is_no_type_and_no_answer(tmp_path, folder):
    entry = {"image": "a.jpg", "question": "What?", "answers": [{"answer": "x"}], "answer_type": None}
    assert annotations.vizwiz(write(tmp_path / "val.json", [entry]), "/images")[0].type == ""
    entry["answers"] = [{"answer": None}]
    with pytest.raises(ValueError, match="not VizWiz's questions with answers"):
        annotations.vizwiz(write(tmp_path / "val.json", [entry]), "/images")
    path = folder / "own" / "train" / "metadata.jsonl"
    line = '{"file_name": "b.jpg", "question": "x", "answer": "y", "type": null}'
    write(path, line)
    assert folders.metadata(path)[0].type == ""
    write(path, line.replace("null", "3"))
    with pytest.raises(ValueError, match="line 1 of .* has a `type` that is no text"):
        folders.metadata(path)


def test_json_nested_without_end_is_named(tmp_path, folder):
    for deep in ("[" * 100_000, '{"a":' * 100_000):
        with pytest.raises(ValueError, match="deep.json is cut off or no JSON"):
            annotations.gqa(write(tmp_path / "deep.json", deep), "/images")
        path = folder / "own" / "train" / "metadata.jsonl"
        write(path, deep)
        with pytest.raises(ValueError, match="line 1 of .* is cut off or no JSON"):
            folders.metadata(path)


def test_a_csv_beside_the_pictures_is_not_passed_over(folder):
    (folder / "other" / "train").mkdir(parents=True)
    write(folder / "other" / "train" / "metadata.csv", "file_name,question,answer\n")
    for domains in (None, ("other",)):
        with pytest.raises(FileNotFoundError, match="write metadata.jsonl, .* from the metadata.csv beside it"):
            vqa.imagefolder(folder, domains)
