"""Flickr8k: photos of people and animals, five captions each."""

import os
from typing import TYPE_CHECKING

import numpy as np

from fedjax_mm.data import arguments, captions, images, prepared
from fedjax_mm.data.captions import Captioned

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load(
    data_dir: str | os.PathLike | None = None,
    prepared_dir: str | os.PathLike | None = None,
    image: int = 96,
    length: int = 40,
    tokenizer: "Tokenizer | str | os.PathLike | None" = None,
    vocabulary: int = 8000,
    public: int = 0,
    seed: int = 0,
) -> Captioned:
    """Returns Flickr8k in its official splits train, valid, test: 6,000, 1,000 and 1,000 photos.

    data_dir: the folder with Flicker8k_Dataset and Flickr8k_text; None takes what is prepared. prepared_dir: where the
    dataset is prepared, once (None: the user's cache). image: pixels of a side; photos are squashed to a square.
    length, tokenizer, vocabulary: as in `captions.tokenized`; without a tokenizer one is fitted to the captions of the
    official train photos. public: how many photos, drawn from train by the seed, make a split `public` instead.

    Every split has `image` [I, image, image, 3] uint8 and `text` [I, 5, length] int32, in the official order.
    Raises FileNotFoundError or ValueError naming the raw file that is missing or cut off.
    """
    arguments.check_whole(1, image=image)
    arguments.check_whole(3, length=length)
    arguments.check_whole(0, public=public, seed=seed)
    import tensorflow_datasets as tfds

    from fedjax_mm.data.flickr8k import flickr8k_dataset_builder as builder

    files = None if data_dir is None else builder.raw_files(arguments.check_folder("data_dir", data_dir))
    try:
        folder = prepared.prepare(builder.Builder, files, data_dir, prepared_dir)
    except AssertionError as error:  # TFDS's word for: nothing lies prepared, and there is no data_dir
        if data_dir is not None:
            raise
        raise FileNotFoundError(
            f"Flickr8k is not prepared in {prepared_dir or prepared.cache_dir()}; get it from {builder.SOURCE} and "
            "give its folder as data_dir"
        ) from error
    pictures, texts, names = {}, {}, {}
    for split in builder.SPLITS:
        rows = prepared.examples("flickr8k", folder, split, ("file", "number", "captions"))
        order = np.argsort([row["number"] for row in rows])
        texts[split] = np.array([[caption.decode() for caption in row["captions"]] for row in rows])[order]
        names[split] = np.array([row["file"].decode() for row in rows])[order]
        encoded = builder.Builder(data_dir=folder, file_format="array_record")
        source = prepared.source(encoded, split, decoders={"image": tfds.decode.SkipDecoding()})
        pictures[split] = np.empty((len(rows), image, image, 3), np.uint8)
        for place, row in zip(np.argsort(order), source, strict=True):
            pictures[split][place] = images.decode(row["image"], image, row["file"].decode())
    fit_on = texts["train"].reshape(-1).tolist()
    if public:
        if not 0 < public < len(names["train"]):
            raise ValueError(f"public is {public}; train has {len(names['train'])} photos and must keep some")
        order = np.random.default_rng(seed).permutation(len(names["train"]))
        for field in (pictures, texts, names):
            field["public"] = field["train"][np.sort(order[:public])]
            field["train"] = field["train"][np.sort(order[public:])]
    return captions.tokenized("flickr8k", pictures, texts, names, tokenizer, fit_on, vocabulary, length)
