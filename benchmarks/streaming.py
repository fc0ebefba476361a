"""What it costs that examples stay on the disk: memory against the size of the dataset, and time against that of steps.

The photos are made: JPEGs of 640 x 480 in the layout of COCO's official files, at shares of COCO's size, hard links to
a few different ones. Image and caption encoders are trained on them as COCO's are (LW-FedMML, end-to-end, ten clients).
Memory is that of whole runs with small encoders, each in a process of its own; times are those of one client's round
with the paper's ViT-Tiny, in turn with its examples on the device, in a memory map that is streamed, and in JPEGs.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np

from benchmarks.timing import in_own_process, median, ours, peak_rss_mb, rounds_of, start_of, timings
from fedjax_mm import run, streamed
from fedjax_mm.data import FederatedData, coco_captions, partition, streams
from fedjax_mm.federate import Method
from fedjax_mm.methods import layerwise
from fedjax_mm.models import bert, vit
from fedjax_mm.types import OverClients

Way = Literal["streamed", "laid out"]
DIFFERENT = 64  # photos; the others are links to them


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the measurement."""

    photos: int = 1183
    """Photos of the smallest dataset: a hundredth of COCO's."""
    scales: tuple[int, ...] = (1, 4, 16)
    """How many times as large the datasets are."""
    laid_out: tuple[int, ...] = (1, 4)
    """Scales at which the rows of a round are also brought to the device all at once (on_device=False)."""
    side: int = 224
    """Pixels of a side that photos are decoded at."""
    clients: int = 10
    """Clients, all of which take part in a round."""
    batch_size: int = 16
    """Examples of a batch."""
    rounds: int = 1
    """Rounds of the runs whose memory is measured."""
    timed_examples: int = 128
    """Examples of the client whose round is timed."""
    repetitions: int = 5
    """Timings of each way, of which the median counts."""
    folder: str = "runs/throughput/photos"
    """Folder of the photos, which are removed afterwards."""


def streaming(settings: Settings) -> list[dict[str, Any]]:
    """A row for each scale and way with its memory, and one for each place of the examples with its times."""
    rows, folder = [], pathlib.Path(settings.folder)
    try:
        for scale in settings.scales:
            make_photos(folder, settings.photos * scale)
            ways: tuple[Way, ...] = ("streamed", "laid out") if scale in settings.laid_out else ("streamed",)
            for way in ways:
                rows += in_own_process(memory, (settings, scale, way), devices=1)
        make_photos(folder, settings.timed_examples)
        return rows + in_own_process(times, settings, devices=1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_photos(folder: pathlib.Path, number: int, split: str = "train2017") -> None:
    """Writes a split of photos and its captions as COCO has them."""
    from PIL import Image

    photos, notes = folder / split, folder / "annotations"
    shutil.rmtree(photos, ignore_errors=True)
    photos.mkdir(parents=True)
    notes.mkdir(exist_ok=True)
    for i in range(number):
        path = photos / f"{i:012}.jpg"
        if i < DIFFERENT:
            coarse = np.random.default_rng(i).integers(0, 256, (30, 40, 3), np.uint8)
            Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
        else:
            os.link(photos / f"{i % DIFFERENT:012}.jpg", path)
    listed = {
        "images": [{"id": i, "file_name": f"{i:012}.jpg"} for i in range(number)],
        "annotations": [
            {"image_id": i, "caption": f"photo {i % DIFFERENT} in way {nth}"} for i in range(number) for nth in range(5)
        ],
    }
    (notes / f"captions_{split}.json").write_text(json.dumps(listed))


def memory(given: tuple[Settings, int, Way]) -> list[dict[str, Any]]:
    """The most that a whole run held, in this process."""
    settings, scale, way = given
    arrays = loaded(settings, settings.folder)
    photos, before = arrays["image"], peak_rss_mb()
    photos.reader.kept_bytes = 0
    owned = partition.iid(len(photos), settings.clients, seed=0)
    data = FederatedData.from_arrays(arrays, owned, on_device=way == "streamed")
    method, live, waited = small(settings, data), [], []
    look = lambda done, row: live.append(sum(x.nbytes for x in jax.live_arrays())) or waited.append(row)
    quiet = {"log": lambda line: None, "progress": False}
    begun = time.perf_counter()
    run.train(method, data, rounds=settings.rounds, per_round=settings.clients, watch=[look], **quiet)
    seconds = time.perf_counter() - begun
    row = {"examples": f"{scale}x, {way}", "photos": len(photos), "photos MB": photos.nbytes / 1e6}
    row |= {"before MB": before, "peak RSS MB": peak_rss_mb(), "device MB": max(live) / 1e6, "run s": seconds}
    return [row | {"waited s": sum(row.get("seconds_waited", 0.0) for row in waited)}]


def times(settings: Settings) -> list[dict[str, Any]]:
    """Milliseconds of one client's round and of reading its examples alone, by where these are."""
    arrays = loaded(settings, settings.folder)
    decoded = arrays["image"][:]
    photos = coco_captions.load(settings.folder, ("train",), settings.side, 24, stream=True).splits["train"]["image"]
    photos.reader.kept_bytes = 0
    places = {"on the device": decoded, "memory map, streamed": mapped(settings, decoded), "JPEG, streamed": photos}
    variants, method = {}, None
    for place, images in places.items():
        data = FederatedData.from_arrays({**arrays, "image": images}, [range(len(decoded))])
        method = method or of_the_paper(settings, data)
        inputs = rounds_of(data, 1, 1, seed=0)
        variants[place] = ours(method, OverClients(), start_of(method, 0), inputs, jax.random.key(0))[0]
    taken = {place: median(each) for place, each in timings(variants, settings.repetitions).items()}
    plain = taken["on the device"]
    alone = {place: reading_alone(settings, x) for place, x in places.items()}
    return [
        {"examples": place, "CPU ms": cpu, "ms": wall, "CPU ratio": cpu / plain[0], "ratio": wall / plain[1]}
        | {"examples per s": 1e3 * len(decoded) / wall, "read alone per s": alone[place]}
        for place, (cpu, wall) in taken.items()
    ]


def reading_alone(settings: Settings, images: Any) -> float | None:
    """Examples a second that come in where nothing else is done; None where they are there."""
    if not streamed.is_streamed(images):
        return None
    rates = []
    for _ in range(settings.repetitions):
        begun = time.perf_counter()
        for _ in streamed.blocks({"x": images}, settings.batch_size):
            pass
        rates.append(len(images) / (time.perf_counter() - begun))
    return float(np.median(rates))


def mapped(settings: Settings, decoded: np.ndarray) -> streamed.Streamed:
    """The pictures in a memory map, which is streamed."""
    path = pathlib.Path(settings.folder) / "decoded.npy"
    np.save(path, decoded)
    return streams.array(np.load(path, mmap_mode="r"))


def loaded(settings: Settings, folder: str) -> Mapping[str, Any]:
    """Images, streamed, and captions."""
    return coco_captions.load(folder, ("train",), settings.side, length=24, vocabulary=200, stream=True).splits["train"]


def small(settings: Settings, data: FederatedData) -> Method:
    """Encoders that are small beside the rows that they read."""
    shape = {"dim": 32, "depth": 1, "heads": 2, "mlp": 64}
    return built(settings, data, vit.encoder(settings.side, settings.side // 4, **shape), shape, 32)


def of_the_paper(settings: Settings, data: FederatedData) -> Method:
    """The image encoder of the paper; the text encoder is small, as the captions are short."""
    shape = {"dim": 192, "depth": 2, "heads": 3, "mlp": 768}
    return built(settings, data, vit.encoder(settings.side, 16, **{**shape, "depth": 12}), shape, 4096)


def built(settings: Settings, data: FederatedData, image: Any, text: Mapping[str, int], hidden: int) -> Method:
    """End-to-end training of both encoders."""
    encoders = {"image": image, "text": bert.encoder(200, positions=24, **text)}
    config = layerwise.LayerwiseConfig(
        plan="end-to-end",
        rounds=(settings.rounds,),
        encoder_lr={"image": (1e-3,), "text": (1e-3,)},
        batch_size=settings.batch_size,
        epochs=1,
        projection_hidden=hidden,
    )
    return layerwise.build(config, data, encoders)[0].method
