"""Tasks from made pictures: splits by picture, scores by leaving annotators out, unknown answers counted and kept."""

import functools
import itertools

import chex
import numpy as np
import pytest
from PIL import Image

from fedjax_mm import streamed
from fedjax_mm.data import vqa, wordpiece
from fedjax_mm.data.vqa import Question, Source, pictures
from fedjax_mm.models import vilt


def colour(number):
    return 40 + 20 * (number % 10), 200 - 15 * (number % 10), 90


@pytest.fixture
def sources(tmp_path):
    """Two clients: "many" has 3 questions about each of 12 pictures, "few" 1 about each of 4; test 6 and 2 pictures.

    A picture's colour says its number; answer i of "many" is given 12 - i times or so in train.
    """
    made = {}
    for name, train, test, per, wide in (("many", 12, 6, 3, 40), ("few", 4, 2, 1, 20)):
        splits = {}
        for split, number, start in (("train", train, 0), ("test", test, train)):
            splits[split] = []
            for i in range(start, start + number):
                path = tmp_path / f"{name}{i}.png"
                Image.new("RGB", (wide, 20), colour(i)).save(path)
                splits[split] += [
                    Question(str(path), f"question {j} about {i}", (f"answer{(i * j) % 7}",)) for j in range(per)
                ]
        made[name] = splits
    return made


def load(sources, **arguments):
    return vqa.load(sources, **{"image": (32, 32), "patch": 8, "length": 12, **arguments})


def test_normalise():
    for raw, clean in {
        "The Dog.": "dog",
        "two  cats": "2 cats",
        "T-Shirt": "t shirt",
        "1,000": "1000",
        "chair, table": "chair table",
        "3.5": "3.5",
        "don't know?": "don't know",
        "none": "0",
        "A": "a",
        "yes/no": "yes no",
        "theatre": "theatre",
        "U.S.A.": "usa",
        "11 a.m.": "11 am",
        "5 p.m.": "5 pm",
        "1,000-2,000": "10002000",  # a comma between digits: every mark goes without a space
        "1,000 - 2,000": "1000 2000",
        "10-20": "10 20",
        "red/white, blue/green": "red white blue green",  # only the comma stands beside a space
        "red / white/blue": "red whiteblue",  # this mark stands beside one somewhere
        "-5": "5",
        "left -\nright-hand": "left righthand",
        "st. john's": "st john's",
        "v1.5.": "v1.5",
        ".5": ".5",
        "No.5": "no.5",
        "a.b": "ab",
        "the": "the",
    }.items():
        assert vqa.normalise(raw) == clean
        assert vqa.normalise(clean) == clean


def test_soft_scores_are_the_mean_over_nine_of_ten_annotators():
    answers = ["red"] * 4 + ["blue"] * 3 + ["Green.", "green", "pink"]
    expected = {}
    for said in ("red", "blue", "green", "pink"):
        nines = itertools.combinations([vqa.normalise(answer) for answer in answers], 9)
        expected[said] = np.mean([min(1, nine.count(said) / 3) for nine in nines])
    assert vqa.soft_scores(answers) == pytest.approx(expected)
    assert vqa.soft_scores(["The Dog"]) == {"dog": 1.0}


def test_pictures_keep_their_shape_and_show_nothing_beside():
    for (height, width), size in {
        (20, 20): (32, 32),  # enlarged
        (64, 32): (32, 16),
        (50, 100): (16, 32),
        (60, 100): (16, 32),  # 19.2 floored to patches of 8
        (10, 400): (8, 32),  # one patch at least
        (33, 7): (32, 8),
    }.items():
        picture, got = pictures.fit(Image.new("RGB", (width, height), (200, 100, 50)), (32, 32), 8)
        assert got == size
        expected = np.zeros((32, 32, 3), np.uint8)
        expected[: size[0], : size[1]] = (200, 100, 50)
        np.testing.assert_array_equal(picture, expected)
    for side in range(8, 200, 8):  # a picture as large as its bucket loses no patch to rounding
        blank = Image.new("RGB", (side, 3 * side))
        assert pictures.fit(blank, (3 * side, side), 8)[1] == (3 * side, side)
        assert pictures.fit(Image.new("RGB", (7 * side, 7 * side)), (side, side), 8)[1] == (side, side)


def test_a_large_jpeg_is_decoded_no_smaller_than_it_is_shown(tmp_path):
    ramp = np.linspace(0, 255, 400).astype(np.uint8)
    stripes = 255 * (np.arange(400) // 4 % 2).astype(np.uint8)
    for name, line in (("ramp", ramp), ("stripes", stripes)):
        Image.fromarray(np.stack([np.broadcast_to(line, (200, 400))] * 3, -1)).save(tmp_path / f"{name}.jpg")
    picture, size = pictures.read(tmp_path / "ramp.jpg", (104, 104), 8)
    assert size == (48, 104)
    assert np.abs(picture[:48, :, 0].astype(float) - np.linspace(1, 254, 104)[None]).max() < 6
    assert pictures.read(tmp_path / "stripes.jpg", (104, 104), 8)[0][:48].std() > 60  # at an eighth they are all grey


def test_arrays_say_what_the_sources_say(sources):
    tasks = load(sources)
    assert list(tasks.tasks) == ["many", "few"]
    width = max(len(task.answers) for task in tasks.tasks.values())
    for name, task in tasks.tasks.items():
        for split in ("train", "test"):
            questions = sources[name][split]
            assert task.text[split].tolist() == [question.text for question in questions]
            held = vqa.examples(tasks, name, split)
            number = len(questions)
            chex.assert_shape([held["question"], held["target"]], [(number, 12), (number, width)])
            np.testing.assert_array_equal(held["size"][0], (16, 32) if name == "many" else (32, 32))
            for row, question in enumerate(questions):
                at = int(question.text.split()[-1])
                np.testing.assert_array_equal(held["image"][row, 3, 3], colour(at))
                assert not held["image"][row, held["size"][row, 0] :].any()
                said = [task.answers[k] for k in np.flatnonzero(held["target"][row])]
                assert said == list(question.answers)
            np.testing.assert_array_equal(
                held["question"], wordpiece.encode(tasks.tokenizer, task.text[split].tolist(), 12)
            )
            assert (held["answers"] == len(task.answers)).all()
            assert not held["target"][:, len(task.answers) :].any()
    assert len(tasks.image) == 12 + 6 + 4 + 2  # one of each picture, however many questions


def test_answers_are_the_most_frequent_and_the_rest_is_counted(sources):
    said = [question.answers[0] for question in sources["many"]["train"]]
    tested = [question.answers[0] for question in sources["many"]["test"]]
    ranked = sorted(set(said), key=lambda answer: (-said.count(answer), answer))
    task = load(sources, answers=2).tasks["many"]
    assert task.answers == tuple(ranked[:2])
    assert task.unknown["train"] == sum(answer not in ranked[:2] for answer in said) > 0
    assert task.unknown["test"] == sum(answer not in ranked[:2] for answer in tested) > 0
    assert len(task.text["train"]) == len(said) - task.unknown["train"]
    assert (task.splits["train"]["target"].max(1) > 0).all()
    assert len(task.text["test"]) == len(tested)  # kept, and worth nothing
    assert (task.splits["test"]["target"].max(1) == 0).sum() == task.unknown["test"]
    dropped = load(sources, answers=2, drop_unknown=True).tasks["many"]
    assert len(dropped.text["test"]) == len(tested) - task.unknown["test"]
    assert dropped.unknown["test"] == 0


def test_answers_of_ten_annotators_are_worth_what_they_said(tmp_path):
    grey = np.zeros((2, 32, 32, 3), np.uint8)
    train = [Question(0, "what", ("red",) * 4 + ("blue",) * 3 + ("green",) * 2 + ("pink",))]
    tasks = load({"a": Source(train, [Question(1, "what", ("blue",))], grey)}, answers=3)
    assert tasks.tasks["a"].answers == ("red", "blue", "green")
    np.testing.assert_allclose(tasks.tasks["a"].splits["train"]["target"], [[1, 0.9, 0.6]], rtol=1e-6)


def test_no_picture_is_in_two_splits(sources):
    tasks = load(sources, valid=2)
    for name in sources:
        rows = [set(tasks.tasks[name].splits[split]["image_row"].tolist()) for split in ("train", "valid", "test")]
        assert all(rows)
        for one, other in itertools.combinations(rows, 2):
            assert not one & other
        assert len(tasks.tasks[name].text["valid"]) == 2
    # Whole pictures are held out, also those that no question was drawn for.
    assert len(tasks.tasks["many"].text["train"]) == 3 * 11


def test_numbers_are_drawn_by_the_seed_and_do_not_depend_on_other_clients(sources, caplog):
    drawn = dict(train=10, valid=3, test=5)
    first, again, other = (load(sources, seed=seed, **drawn) for seed in (0, 0, 1))
    alone = load({"many": sources["many"]}, **drawn)
    for split, number in drawn.items():
        text = first.tasks["many"].text[split].tolist()
        assert len(text) == number
        assert text == again.tasks["many"].text[split].tolist()
        assert text == alone.tasks["many"].text[split].tolist()
        assert text != other.tasks["many"].text[split].tolist()
        chex.assert_trees_all_equal(first.tasks["many"].splits[split], again.tasks["many"].splits[split])
    np.testing.assert_array_equal(first.image, again.image)
    assert len(first.tasks["few"].text["test"]) == 2  # all there are, which is said
    assert "test of few has 2, fewer than test=5 asks for" in caplog.text


def test_what_a_task_knows_does_not_depend_on_how_much_it_trains_on(sources):
    assert load(sources, train=3).tasks["many"].answers == load(sources).tasks["many"].answers


def test_in_the_clients_hands(sources):
    tasks = load(sources)
    data = vqa.federated(tasks)
    tested = vqa.all_examples(tasks, "test")
    assert data.sizes == {"all": 2}
    for number, name in enumerate(sources):
        theirs = {key: value[tested["client"] == number] for key, value in tested.items() if key != "client"}
        chex.assert_trees_all_equal(theirs, vqa.examples(tasks, name, "test"))
        held = vqa.examples(tasks, name, "train")
        own = data.client("all", number)
        rows = np.asarray(own.rows)[: int(own.count)]
        assert int(own.count) == len(held["image"])
        chex.assert_trees_all_equal({key: np.asarray(value)[rows] for key, value in own.arrays.items()}, held)


def test_a_given_tokenizer(sources, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*wordpiece.SPECIAL, "about", "question"]))
    task = load(sources, tokenizer=tmp_path / "vocab.txt", length=5).tasks["few"]
    np.testing.assert_array_equal(task.splits["train"]["question"][0], [2, 6, 1, 5, 3])


def test_pictures_are_stored_once_however_often_they_are_asked_about(sources):
    kept, files = load(sources), load(sources, stream=True)
    assert streamed.is_streamed(files.image) and len(files.image) == len(kept.image)
    np.testing.assert_array_equal(files.size, kept.size)
    plain = vqa.federated(kept).cohorts["all"].arrays
    for arrays in (vqa.federated(files).cohorts["all"].arrays, vqa.federated(kept, stream=True).cohorts["all"].arrays):
        assert streamed.is_streamed(arrays["image"]) and set(arrays) == set(plain)
        np.testing.assert_array_equal(arrays["image"][:], plain["image"])
        np.testing.assert_array_equal(arrays["size"], plain["size"])
    assert len(plain["image"]) > len(np.unique(arrays["image"].index))  # several questions about a picture
    for name in kept.tasks:
        chex.assert_trees_all_equal(
            *({**one, "image": one["image"][:]} for one in (vqa.examples(t, name, "test") for t in (kept, files)))
        )


def test_pictures_may_have_the_sizes_of_vilts_own_processor(tmp_path):
    sides = {"wide": (48, 64), "tall": (64, 48), "long": (30, 90)}  # height, width
    for name, (height, width) in sides.items():
        Image.fromarray(np.full((height, width, 3), 200, np.uint8)).save(tmp_path / f"{name}.png")
    rule = functools.partial(vilt.resized_size, short=24, patch=4)
    paths = [str(tmp_path / f"{name}.png") for name in sides]
    for read in (pictures.read_all, pictures.stream):
        stack, sizes = read(paths, (40, 40), 4, rule)
        assert sizes.tolist() == [[24, 32], [32, 24], [12, 36]] == [[*rule(*side)] for side in sides.values()]
        for picture, (height, width) in zip(stack[:], sizes, strict=True):
            assert (picture[:height, :width] == 200).all() and picture.sum() == 3 * 200 * height * width
        with pytest.raises(
            ValueError, match=r"long.png .*picture of \[30, 90\] pixels is resized to \[12, 36\]; give a"
        ):
            read(paths, (32, 32), 4, rule)


def test_a_model_that_writes_gets_the_words_of_answers_and_pictures_that_fill_the_bucket(sources):
    tasks = load(sources, resize=lambda height, width: (32, 32))
    assert (tasks.size == 32).all() and tasks.image[:, -1].any(axis=(1, 2)).all()
    arrays = vqa.all_examples(tasks, "test", words=5)
    for client, (name, task) in enumerate(tasks.tasks.items()):
        own = arrays["choices"][arrays["client"] == client]
        known = wordpiece.encode(tasks.tokenizer, task.answers, 5)
        assert (own[:, : len(known)] == known[None]).all() and not own[:, len(known) :].any()
        assert "choices" not in vqa.examples(tasks, name, "test")
    assert vqa.federated(tasks, words=5).cohorts["all"].arrays["choices"].shape[1:] == own.shape[1:]
    with pytest.raises(ValueError, match="words is 0"):
        vqa.federated(tasks, words=0)


def test_errors(sources, tmp_path):
    with pytest.raises(ValueError, match=r"image is \(32, 30\); give \(height, width\), multiples of patch, 8"):
        load(sources, image=(32, 30))
    for wrong in (
        *({"answers": 0}, {"train": 0}, {"test": -1}, {"valid": -1}, {"train": True}, {"test": "3"}, {"seed": "1"}),
        *({"patch": 0}, {"patch": 8.0}, {"image": 32}, {"image": "32"}, {"image": (32.0, 32)}, {"length": 2}),
    ):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*; "):
            load(sources, **wrong)
    for empty in ({}, [], None):
        with pytest.raises(ValueError, match="sources is empty"):
            load(empty)
    tasks = load(sources)
    with pytest.raises(ValueError, match="client is 'lots'; the tasks are of many, few"):
        vqa.examples(tasks, "lots", "train")
    with pytest.raises(ValueError, match="split is 'dev'; a task has train, valid, test"):
        vqa.examples(tasks, "many", "dev")
    with pytest.raises(ValueError, match="few has no test questions"):
        load({"few": {**sources["few"], "test": []}})
    with pytest.raises(ValueError, match="valid is 4, and few has 4 train questions; train must keep some"):
        load(sources, valid=4)
    both = {**sources["few"], "test": sources["few"]["train"][:1]}
    with pytest.raises(ValueError, match="few has 1 pictures in both train and test, one of them .*few0.png"):
        load({"few": both})
    path = tmp_path / "few0.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="few0.png is cut off or no picture"):
        load(sources)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no picture .*few0.png \(1 of 6 are missing\)"):
        load(sources)
