"""Whatever a loader is given that it cannot use is answered by a ValueError that names it, before any file is read."""

import pytest

from fedjax_mm.data import (
    advance,
    audio,
    av_digits,
    coco_captions,
    digits,
    flickr8k,
    flickr30k,
    mhealth,
    opportunity,
    scenes,
    ur_fall,
    utd_mhad,
    windows,
)
from fedjax_mm.data.scenes import tasks

NUMBERS = ("8", 2.5, None, True, -1, [1])
LOADERS = {
    "advance": (advance.load, ("image", "mels", "frames", "seed", "valid", "data_dir")),
    "av_digits": (av_digits.load, ("mels", "frames", "seed", "pairs", "data_dir")),
    "coco_captions": (coco_captions.load, ("image", "length", "splits", "data_dir")),
    "flickr8k": (flickr8k.load, ("image", "length", "public", "seed")),
    "flickr30k": (flickr30k.load, ("image", "length", "splits", "data_dir")),
    "digits": (lambda data_dir, **given: digits.load(**given), ("form", "seed", "proportions")),
    "mhealth": (mhealth.load, ("window", "stride")),
    "mhealth.load_windows": (lambda data_dir, **given: mhealth.load_windows(data_dir, **given), ("steps",)),
    "opportunity": (opportunity.load, ("window", "stride")),
    "ur_fall": (ur_fall.load, ("window", "stride")),
    "utd_mhad": (utd_mhad.load, ("window", "stride", "data_dir")),
    "scenes.make": (lambda data_dir, num=2, seed=0, **given: scenes.make(num, seed, **given), ("num", "size")),
    "tasks.domain": (lambda data_dir, **given: tasks.domain(**given), ("train", "test", "size", "seed")),
    "tasks.scene": (lambda data_dir, **given: tasks.scene(**given), ("places",)),
    "windows.cut": (lambda data_dir, length=2, stride=1: windows.cut([], length, stride), ("length", "stride")),
    "audio.resample": (
        lambda data_dir, from_rate=1, to_rate=2: audio.resample([], from_rate, to_rate),
        ("from_rate", "to_rate"),
    ),
}


@pytest.mark.parametrize(
    ("loader", "argument"), [(name, argument) for name, (_, arguments) in LOADERS.items() for argument in arguments]
)
def test_a_wrong_argument_is_named(tmp_path, loader, argument):
    load = LOADERS[loader][0]
    for wrong in NUMBERS:
        if argument == "data_dir" and wrong == "8":
            continue  # a folder may be called so
        with pytest.raises(ValueError, match=argument) as raised:
            load(**{"data_dir": tmp_path, argument: wrong})
        assert str(raised.value).count("\n") == 0 and repr(wrong) in str(raised.value)
