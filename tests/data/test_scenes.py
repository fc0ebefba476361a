import itertools
import re

import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import LogisticRegression

from fedjax_mm.data import scenes

FIELDS = ("shape", "colour", "size", "x", "y", "turn")
CANONICAL = {"disc": "circle", "box": "square", "plus": "cross", "crescent": "moon"}
CANONICAL |= {"crimson": "red", "violet": "purple", "dark": "black"}
CANONICAL |= {"little": "small", "tiny": "small", "mid-sized": "medium", "big": "large", "huge": "large"}


@pytest.fixture(scope="module")
def world():
    return scenes.make(1000, 3)


@pytest.fixture(scope="module")
def sharp():
    return scenes.make(150, 7, size=96)


def inside(scene_set, row):
    """The objects of one scene as dictionaries."""
    names = {"shape": scenes.SHAPES, "colour": scenes.COLOURS, "size": scenes.SIZES}
    for k in np.flatnonzero(scene_set.shape[row] >= 0):
        numbers = {field: int(getattr(scene_set, field)[row, k]) for field in FIELDS}
        yield {field: names[field][n] if field in names else n for field, n in numbers.items()}


def blobs(picture):
    """The boxes around everything that is not of the colour of the corner."""
    picture = picture.astype(int)
    return ndimage.find_objects(ndimage.label(np.abs(picture - picture[0, 0]).sum(-1) > 60, np.ones((3, 3)))[0])


def bag_of_words(tokens):
    counts = np.zeros((len(tokens), len(scenes.VOCABULARY)))
    np.add.at(counts, (np.arange(len(tokens))[:, None], tokens), 1)
    return counts[:, 1:]


def linear_accuracy(x, y, train):
    return LogisticRegression(C=0.1, max_iter=1000, tol=1e-2).fit(x[:train], y[:train]).score(x[train:], y[train:])


# ---- the world ----


def test_a_seed_is_a_world(world):
    again, other = scenes.make(1000, 3), scenes.make(1000, 4)
    for mine, same, different in zip(world, again, other, strict=True):
        assert mine.tobytes() == same.tobytes() and mine.tobytes() != different.tobytes()


@pytest.mark.parametrize("style", scenes.STYLES)
def test_a_style_changes_the_picture_and_nothing_else(style):
    flat, drawn = scenes.make(40, 5), scenes.make(40, 5, style)
    for field in (*FIELDS, "text", "tokens"):
        np.testing.assert_array_equal(getattr(flat, field), getattr(drawn, field))
    assert drawn.image.shape == (40, 32, 32, 3) and drawn.image.dtype == np.uint8
    assert drawn.image.tobytes() == scenes.make(40, 5, style).image.tobytes()
    per_scene = np.abs(flat.image.astype(int) - drawn.image).mean(axis=(1, 2, 3))
    assert (per_scene.min() > 1) == (style != "flat")


def test_objects_stay_apart_and_the_first_is_the_largest(world):
    radius = np.array((9, 13, 18))
    for row in range(len(world.shape)):
        count = (world.shape[row] >= 0).sum()
        assert all((getattr(world, field)[row, count:] == -1).all() for field in FIELDS)
        x, y, r = world.x[row, :count], world.y[row, :count], radius[world.size[row, :count]]
        assert (np.minimum(x, y) >= r).all() and (np.maximum(x, y) <= 100 - r).all()
        for a, b in itertools.combinations(range(count), 2):
            assert np.hypot(x[a] - x[b], y[a] - y[b]) >= r[a] + r[b]
        assert (r[1:] < r[0]).all()
        assert len({(o["shape"], o["colour"]) for o in inside(world, row)}) == count
    assert set(np.unique((world.shape >= 0).sum(1))) == {1, 2, 3, 4}


# ---- the pictures ----


def test_lone_shapes_cover_the_area_geometry_says(sharp):
    areas = {  # of radius 1: circle of 0.96, square of half side 0.78, triangle of inradius 0.54, bars, pentagram
        "circle": np.pi * 0.96**2,
        "square": (2 * 0.78) ** 2,
        "triangle": 3 * np.sqrt(3) * 0.54**2,
        "cross": 8 * 0.34 - 4 * 0.34**2,
        "star": 5 * 1.08 * 0.48 * np.sin(np.pi / 5),
    }
    seen = set()
    for row in np.flatnonzero(sharp.shape[:, 1] < 0):
        (thing,) = inside(sharp, row)
        if thing["shape"] in areas:
            picture = sharp.image[row].astype(float)
            ground, ink = picture[0, 0], picture.reshape(-1, 3)[np.abs(picture - picture[0, 0]).sum(-1).argmax()]
            cover = ((picture - ground) @ (ink - ground)).sum() / ((ink - ground) ** 2).sum()
            radius = {"small": 9, "medium": 13, "large": 18}[thing["size"]] * 0.96
            assert cover == pytest.approx(areas[thing["shape"]] * radius**2, rel=0.04), thing
            seen.add(thing["shape"])
    assert seen == set(areas)


def test_the_picture_shows_as_many_objects_as_there_are_with_the_first_the_widest(sharp):
    for row in range(len(sharp.shape)):
        boxes = blobs(sharp.image[row])
        assert len(boxes) == (sharp.shape[row] >= 0).sum()
        down, along = max(boxes, key=lambda box: max(side.stop - side.start for side in box))
        centre = np.array([along.start + along.stop, down.start + down.stop]) * 50 / 96
        assert np.abs(centre - (sharp.x[row, 0], sharp.y[row, 0])).max() < 8


def test_a_scene_looks_the_same_at_every_size(sharp):
    for size in (32, 48):
        coarse = scenes.make(150, 7, size=size).image
        folded = sharp.image.reshape(150, size, 96 // size, size, 96 // size, 3).mean(axis=(2, 4))
        assert np.abs(folded - coarse).mean() < 1.5


@pytest.mark.parametrize("style", [style for style in scenes.STYLES if style != "flat"])
def test_objects_stand_out_in_every_style(style):
    drawn = scenes.make(60, 9, style, size=64)
    away, near = [], []
    for row in range(60):
        down, along = np.mgrid[:64, :64] * 100 / 64
        nearest = np.min([np.hypot(along - o["x"], down - o["y"]) for o in inside(drawn, row)], axis=0)
        ground = np.median(drawn.image[row][nearest > 24], axis=0)
        difference = np.abs(drawn.image[row] - ground).sum(-1)
        away.append(difference[nearest > 24].mean())
        near.append(difference[nearest < 8].mean())
    assert np.mean(near) > 2 * np.mean(away)


# ---- the captions ----


def test_captions_name_only_what_is_there_and_place_it_rightly(world):
    related = 0
    text, tokens, row = scenes.captions(world, 2)
    assert (tokens != 1).all() and (tokens[:, -1] == 0).all()
    for sentence, scene in zip(text, row, strict=True):
        words = [CANONICAL.get(word, word) for word in sentence.split()]
        for field, values in (("shape", scenes.SHAPES), ("colour", scenes.COLOURS), ("size", scenes.SIZES)):
            assert set(words) & set(values) <= {thing[field] for thing in inside(world, scene)}, sentence
        objects = {(thing["colour"], thing["shape"]): thing for thing in inside(world, scene)}
        plain = " ".join(words).replace("to the ", "").replace("over", "above").replace("under", "below")
        pattern = r"(?=\b(\w+) (\w+) (left of|right of|above|below) an? (?:(?:small|medium|large) )?(\w+) (\w+))"
        for c1, s1, relation, c2, s2 in re.findall(pattern, plain):
            if (c1, s1) in objects and (c2, s2) in objects:
                a, b = objects[c1, s1], objects[c2, s2]
                axis, sign = ("x" if relation.endswith("of") else "y"), (1 if relation in ("left of", "above") else -1)
                assert sign * (b[axis] - a[axis]) > 0, sentence
                related += 1
    assert related > 100


def test_captions_are_nearly_unique():
    unique = len(set(scenes.make(500, 1).text)) / 500
    assert unique > 0.95, f"{unique:.1%} of 500 captions are unique"


def test_tokens_are_word_numbers():
    (tokens,) = scenes.tokenize(["A red circle, zebra!"], 6)
    assert [scenes.VOCABULARY[n] for n in tokens] == ["a", "red", "circle", "<unknown>", "<pad>", "<pad>"]
    assert tokens.dtype == np.int32 and scenes.tokenize(["a a a"], 2).tolist() == [[tokens[0]] * 2]
    assert len(set(scenes.VOCABULARY)) == len(scenes.VOCABULARY)


# ---- the questions ----


@pytest.fixture(scope="module")
def several():
    drawn = scenes.make(2000, 11, size=16)
    return {kind: scenes.questions(drawn, (kind,)) for kind in scenes.TYPES}


@pytest.mark.parametrize("kind", scenes.TYPES)
def test_neither_the_commonest_answer_nor_the_question_alone_gets_far(several, kind):
    asked = several[kind]
    assert (asked.type == scenes.TYPES.index(kind)).all()
    assert (asked.tokens != 1).all() and (asked.tokens[:, -1] == 0).all()
    majority = np.bincount(asked.answer).max() / len(asked.answer)
    blind = linear_accuracy(bag_of_words(asked.tokens), asked.answer, len(asked.answer) * 2 // 3)
    assert majority < 0.6 and blind < 0.6, f"{kind}: commonest answer {majority:.1%}, question alone {blind:.1%}"


PLURALS = {f"{shape}s": shape for shape in scenes.SHAPES} | {"crosses": "cross"}
EXTREMES = {
    "leftmost": lambda o: o["x"],
    "rightmost": lambda o: -o["x"],
    "topmost": lambda o: o["y"],
    "lowest": lambda o: -o["y"],
    "largest": lambda o: -scenes.SIZES.index(o["size"]),
}


def judge(text, objects):
    """The answer by reading the question anew, or None for the wordings this reader does not know."""
    text = text.rstrip("?.").replace("which colour does", "what colour is").removesuffix(" have")
    text = text.replace("do you see", "is there").replace("which shape", "what shape")

    def named(phrase):
        """All objects that a phrase such as "a small red object", "the star" or "crosses" fits."""
        words = phrase.removeprefix("the ").removeprefix("an ").removeprefix("a ").split()
        if words[0] in EXTREMES:
            first, second = sorted(objects, key=EXTREMES[words[0]])[:2]
            assert EXTREMES[words[0]](second) - EXTREMES[words[0]](first) >= (1 if words[0] == "largest" else 10)
            return [first]
        words = [PLURALS.get(word, word) for word in words if word not in ("object", "objects")]
        return [o for o in objects if all(w in (o["shape"], o["colour"], o["size"]) for w in words)]

    def read(pattern):
        found = re.fullmatch(pattern, text)
        return found and found.groups()

    def yes(true):
        return "yes" if true else "no"

    if groups := read(r"what (colour|shape) is (.+)"):
        (thing,) = named(groups[1])
        return thing[groups[0]]
    if groups := read(r"how many (.+) are there") or read(r"count the (.+)"):
        return str(len(named(groups[0])))
    if groups := read(r"is (.+) (left of|right of|above|below) (.+)"):
        (a,), (b,) = named(groups[0]), named(groups[2])
        return yes(
            {
                "left of": a["x"] < b["x"],
                "right of": a["x"] > b["x"],
                "above": a["y"] < b["y"],
                "below": a["y"] > b["y"],
            }[groups[1]]
        )
    if groups := read(r"is there (.+) that is not (.+)"):
        return yes(any(o["colour"] != groups[1] for o in named(groups[0])))
    if groups := read(r"is there (.+) (and|or) (.+)"):
        a, b = bool(named(groups[0])), bool(named(groups[2]))
        return yes(a and b if groups[1] == "and" else a or b)
    if groups := read(r"is there (.+)"):
        return yes(named(groups[0]))
    if groups := read(r"are there more (.+) than (.+)"):
        return yes(len(named(groups[0])) > len(named(groups[1])))
    if groups := read(r"is (.+) (larger|smaller) than (.+)"):
        (a,), (b,) = named(groups[0]), named(groups[2])
        larger = scenes.SIZES.index(a["size"]) > scenes.SIZES.index(b["size"])
        return yes(larger == (groups[1] == "larger"))
    if groups := read(r"are (.+) and (.+) of the same (colour|shape)"):
        (a,), (b,) = named(groups[0]), named(groups[1])
        return yes(a[groups[2]] == b[groups[2]])
    if groups := read(r"where is (.+) as seen from (.+)"):
        (a,), (b,) = named(groups[0]), named(groups[1])
    elif groups := read(r"on which side of (.+) is (.+)"):
        (b,), (a,) = named(groups[0]), named(groups[1])
    else:
        return None
    across, down = a["x"] - b["x"], a["y"] - b["y"]
    assert abs(abs(across) - abs(down)) >= 10
    if abs(across) > abs(down):
        return "left" if across < 0 else "right"
    return "above" if down < 0 else "below"


def test_every_answer_is_what_the_scene_shows(world):
    asked = scenes.questions(world, per_scene=4)
    assert len(set(zip(asked.image, asked.text, strict=True))) == len(asked.text) > 3900
    for row, text, answer in zip(asked.image, asked.text, asked.answer, strict=True):
        objects = list(inside(world, row))
        assert judge(text, objects) == scenes.ANSWERS[answer], f"{text} {objects}"


@pytest.mark.parametrize(
    ("kind", "wording"),
    [
        ("relation", "is .* (of|above|below) "),
        ("existence", "(is there|do you see) an? (small|medium|large) .* object"),
        ("comparison", "are there more .* than"),
        ("comparison", "is .* (larger|smaller) than"),
        ("comparison", "are .* same colour"),
        ("comparison", "are .* same shape"),
        ("logic", "is there .* and "),
        ("logic", "is there .* or "),
        ("logic", "is there .* not "),
    ],
)
def test_half_of_each_kind_of_question_is_answered_yes(several, kind, wording):
    asked = several[kind]
    answers = [scenes.ANSWERS[n] for text, n in zip(asked.text, asked.answer, strict=True) if re.match(wording, text)]
    assert len(answers) > 50 and set(answers) == {"yes", "no"}
    assert abs(answers.count("yes") / len(answers) - 0.5) < 2 / np.sqrt(len(answers))  # four deviations


def test_sides_are_asked_for_evenly(several):
    asked = several["relation"]
    where = [scenes.ANSWERS[n] for t, n in zip(asked.text, asked.answer, strict=True) if re.match("where|on which", t)]
    share = [where.count(side) / len(where) for side in ("left", "right", "above", "below")]
    assert len(where) > 300 and min(share) > 0.18


def test_all_types_are_asked_about_evenly_and_a_seed_is_an_interview(world):
    asked, again, other = (scenes.questions(world, seed=seed) for seed in (0, 0, 1))
    share = np.bincount(asked.type, minlength=len(scenes.TYPES)) / len(asked.type)
    assert share.min() > 0.09 and asked.image.tolist() == list(range(1000))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(asked, again, strict=True))
    assert asked.text.tobytes() != other.text.tobytes()


# ---- the datasets ----


def test_splits_are_different_scenes_and_the_label_is_the_largest_shape():
    sizes = {"valid": 100, "test": 50}  # valid as large as train: were the seeds the same, so would the scenes be
    data = scenes.load(num_train=100, styles=("flat", "noisy", "sketch"), others=sizes)
    assert {name: len(split["label"]) for name, split in data.splits.items()} == {"train": 100, **sizes}
    train = data.splits["train"]
    assert np.bincount(train["style"]).tolist() == [34, 33, 33] and train["style"][:4].tolist() == [0, 1, 2, 0]
    texts = [tuple(row) for split in data.splits.values() for row in split["text"]]
    images = [image.tobytes() for split in data.splits.values() for image in split["image"]]
    assert len(set(images)) == 250 and len(set(texts)) > 240
    flat = scenes.make(34, (0, 0, 0))
    np.testing.assert_array_equal(train["image"][train["style"] == 0], flat.image)
    np.testing.assert_array_equal(train["label"][train["style"] == 0], flat.shape[:, 0])
    assert data.classes == scenes.SHAPES and data.modalities == ("image", "text")


def test_a_linear_model_neither_sees_nor_reads_the_label():
    data = scenes.load(num_train=1500, others={"test": 500})
    parts = [data.splits[name] for name in ("train", "test")]
    both = {name: np.concatenate([part[name] for part in parts]) for name in ("image", "text", "label")}
    pixels = both["image"][:, ::2, ::2].reshape(2000, -1) / 255
    seen, read = (linear_accuracy(x, both["label"], 1500) for x in (pixels, bag_of_words(both["text"])))
    assert seen < 0.35, f"linear on pixels {seen:.1%}, chance 16.7 %"
    assert 0.4 < read < 0.75, f"bag of words {read:.1%}: a caption should help, not give the label away"


def test_questions_make_a_dataset_too():
    data = scenes.load("vqa", 60, ("flat", "inverted"), size=96, types=("relation",), others={"test": 20})
    assert data.classes == scenes.ANSWERS and len(data.splits["train"]["label"]) == 60
    said = {scenes.ANSWERS[n] for split in data.splits.values() for n in split["label"]}
    assert said <= {"yes", "no", "left", "right", "above", "below"}
    assert all(len(blobs(image)) > 1 for image in data.splits["train"]["image"])  # one object has no relations


def test_a_question_comes_with_its_own_picture_and_answer():
    data = scenes.load("vqa", num_train=150, size=96, types=("count",), others={})
    everything = scenes.tokenize(["count the objects.", "how many objects are there?"])
    counted = 0
    for image, text, label in zip(*(data.splits["train"][name] for name in ("image", "text", "label")), strict=True):
        if (text == everything).all(axis=1).any():
            assert str(len(blobs(image))) == scenes.ANSWERS[label]
            counted += 1
    assert counted > 20


def test_errors_list_what_is_known():
    with pytest.raises(ValueError, match="flat, outlined, noisy, inverted, textured, sketch"):
        scenes.make(2, 0, "cubist")
    with pytest.raises(ValueError, match="known styles flat"):
        scenes.load(styles=("flat", "cubist"))
    with pytest.raises(ValueError, match="known styles flat"):
        scenes.load(styles="flat")
    with pytest.raises(ValueError, match="below 16"):
        scenes.make(2, 0, size=8)
    with pytest.raises(ValueError, match="colour, shape, count, relation, existence, comparison, logic"):
        scenes.questions(scenes.make(2, 0), ("smell",))
    with pytest.raises(ValueError, match='"classify" or "vqa"'):
        scenes.load("segment")
    with pytest.raises(ValueError, match="list of texts"):
        scenes.tokenize("a red circle")


@pytest.mark.parametrize(
    "wrong",
    [{"num_train": n} for n in (0, -1, 2.5, "9", True)]
    + [{"seed": seed} for seed in ("1", -1, 1.5, None)]
    + [{"others": others} for others in ({"test": 0}, {"train": 5}, 3)]
    + [{"types": "count", "task": "vqa"}, {"types": (3,), "task": "vqa"}],
)
def test_a_wrong_argument_is_named(wrong):
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))}.* is .*(give|choose)"):
        scenes.load(**{"num_train": 4, "others": {}, **wrong})
