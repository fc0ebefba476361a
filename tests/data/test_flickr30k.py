import json

import numpy as np
import pytest
from PIL import Image

from fedjax_mm import streamed
from fedjax_mm.data import flickr30k


def listed(folder, **changed):
    """Two photographs of train and one of val, whose captions say their numbers."""
    (folder / "flickr30k-images").mkdir(exist_ok=True)
    entries = []
    for i, split in enumerate(("train", "val", "train")):
        Image.new("RGB", (12, 8), (60 * i,) * 3).save(folder / "flickr30k-images" / f"{i}.png")
        said = [{"raw": f" photo {i} said {nth}\n"} for nth in range(6)]
        entries.append({"filename": f"{i}.png", "split": split, "sentences": said} | changed)
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": entries}))


def test_photographs_and_their_first_five_captions_as_they_are_listed(tmp_path):
    listed(tmp_path)
    data = flickr30k.load(tmp_path, ("train", "valid"), image=6, length=30, vocabulary=60, centre=True)
    assert data.captions["train"].tolist() == [[f"photo {i} said {nth}" for nth in range(5)] for i in (0, 2)]
    image = data.splits["train"]["image"]
    assert streamed.is_streamed(image) and image.shape == (2, 6, 6, 3) and image[:].mean((1, 2, 3)).tolist() == [0, 120]
    assert data.splits["valid"]["text"].shape == (1, 5, 30) and data.splits["valid"]["text"].dtype == np.int32


def test_what_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*dataset_flickr30k.json; get it from https://cs.stanford"):
        flickr30k.load(tmp_path)
    listed(tmp_path, sentences=[{"raw": "one"}])
    with pytest.raises(ValueError, match=r"dataset_flickr30k.json is no list of photos .*0.png with 1 captions"):
        flickr30k.load(tmp_path)
    listed(tmp_path)
    with pytest.raises(ValueError, match="has no photo of the split 'test'"):
        flickr30k.load(tmp_path, vocabulary=60)
    with pytest.raises(ValueError, match=r"splits has \['val'\]; there are train, valid, test"):
        flickr30k.load(tmp_path, ("val",))
    (tmp_path / "flickr30k-images" / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no picture .*2.png \(1 of 2 are missing\)"):
        flickr30k.load(tmp_path, ("train",), vocabulary=60)
