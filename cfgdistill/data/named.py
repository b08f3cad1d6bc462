"""Data sets that are known by name: toy, digits, cifar10, imagenet64."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cfgdistill.core.names import one_of
from cfgdistill.data.base import SPLITS, Data
from cfgdistill.data.folder import from_folder, from_hub
from cfgdistill.data.tables import column, hub_splits, pictures, read, square
from cfgdistill.data.toy import pinwheel

NAMES = ("toy", "digits", "cifar10", "imagenet64")


CIFAR10_CLASSES = (
    "airplane automobile bird cat deer dog frog horse ship truck".split()  # the official order
)


CIFAR10_ROWS = {"train": 50_000, "test": 10_000}


def load_data(name: str, split: str = "train", images: int | None = None) -> Data:
    """The data set `name`, its "train" or "test" split, or only the first `images` of it.

    toy      2-D points of `toy.pinwheel`: 3 classes, 8,000 train, 2,000 test
    digits   1,797 real handwritten digits, 8 x 8, that come with scikit-learn; every fifth is test
    cifar10  50,000 + 10,000 photographs, 32 x 32: from $CFGDISTILL_DATA/cifar10/plain_text/
             (parquet, as on the hub), else the hub's uoft-cs/cifar10
    imagenet64  1.28 million photographs, 64 x 64, of 1,000 classes, and 50,000 for test: from
             $CFGDISTILL_DATA/imagenet64/ (what `from_folder` takes), else the hub's
             benjamin-paine/imagenet-1k-64x64
    """
    one_of("data set", name, NAMES)
    one_of("split", split, SPLITS)
    named = {"toy": _toy, "digits": _digits, "cifar10": _cifar10, "imagenet64": _imagenet64}
    return named[name](split, images)


def _toy(split, images):
    generator = torch.Generator().manual_seed(SPLITS.index(split))
    x, labels = pinwheel().sample({"train": 8000, "test": 2000}[split], generator)
    names, made_of = ("first", "second", "third"), f"toy.pinwheel, {split}"
    return Data("toy", split, x[:images], labels[:images], names, None, made_of=made_of)


def _digits(split, images):
    from sklearn.datasets import load_digits

    digits = load_digits()
    test = torch.arange(len(digits.target)) % 5 == 4  # mixes the writers, who come in order
    rows = (test if split == "test" else ~test).nonzero().flatten()[:images]
    pixels = torch.from_numpy(digits.images).to(torch.uint8)[rows, None]
    labels = torch.from_numpy(digits.target).long()[rows]
    return Data("digits", split, pixels, labels, tuple("0123456789"), levels=16)


def _cifar10(split, images):
    folder, files = _cifar10_files(split)
    if files:
        what = f"CIFAR-10 in {folder}"
        table = read(files, what)
    else:
        what = "CIFAR-10 on the hub"
        where = f"no {split}-*.parquet in {folder}" if folder else "CFGDISTILL_DATA is not set"
        advice = (
            f"{where}: connect to the network, or set CFGDISTILL_DATA to a folder that holds "
            "cifar10/plain_text/*.parquet from huggingface.co/datasets/uoft-cs/cifar10."
        )
        table = hub_splits("uoft-cs/cifar10", "CIFAR-10", advice)[split]
    named = f"{what}, split {split!r},"
    image, label = (column(table, pair, named) for pair in (("img", "image"), ("label", "labels")))
    names = getattr(table.features[label], "names", CIFAR10_CLASSES)  # none where it is a number
    each = CIFAR10_ROWS[split] // 10
    if names != CIFAR10_CLASSES or Counter(table[label]) != dict.fromkeys(range(10), each):
        raise ValueError(
            f"{named} is not CIFAR-10, which has {each:,} images of each of its classes "
            f"{', '.join(CIFAR10_CLASSES)}, but has {len(table):,} rows of {', '.join(names)}: "
            "fetch huggingface.co/datasets/uoft-cs/cifar10."
        )
    table = table if images is None else table.select(range(min(images, len(table))))
    pixels = pictures(table, image, named, _of_cifar10)
    labels = torch.tensor(table[label])
    names = tuple(CIFAR10_CLASSES)
    return Data("cifar10", split, pixels, labels, names, levels=255, mirror=True)


def _cifar10_files(split: str) -> tuple[Path | None, list[Path]]:
    """The folder below $CFGDISTILL_DATA, and what it holds of a split."""
    root = os.environ.get("CFGDISTILL_DATA")
    folder = Path(root).expanduser() / "cifar10" / "plain_text" if root else None
    return folder, sorted(folder.glob(f"{split}-*.parquet")) if folder else []


def has_cifar10() -> bool:
    """Whether CIFAR-10 is on this disk, below $CFGDISTILL_DATA or fetched by `datasets` before."""
    from datasets import config

    fetched = Path(config.HF_DATASETS_CACHE) / "uoft-cs___cifar10"
    return fetched.is_dir() or all(_cifar10_files(split)[1] for split in SPLITS)


def _of_cifar10(image) -> Tensor:
    if image.size != (32, 32):
        raise ValueError(f"it is {image.width} x {image.height}, not 32 x 32")
    return square(image, 32)


def _imagenet64(split, images):
    root = os.environ.get("CFGDISTILL_DATA")
    folder = Path(root).expanduser() / "imagenet64" if root else None
    # What it calls test has no labels.
    how = {"split": "validation" if split == "test" else split, "images": images, "mirror": True}
    if folder and folder.is_dir():
        found = from_folder(folder, 64, **how)
    else:
        try:
            found = from_hub("benjamin-paine/imagenet-1k-64x64", 64, **how)
        except OSError as error:
            said = str(error).rstrip(".")
            raise OSError(
                f"{said}; or set CFGDISTILL_DATA to a folder that holds imagenet64/, with parquet "
                "files as there, or folders of classes in train/ and val/."
            ) from error
    if found.num_classes != 1000:
        raise ValueError(
            f"ImageNet has 1,000 classes, and {found.num_classes} are there: train on other images "
            "as your own, with --data."
        )
    return replace(found, name="imagenet64", split=split)
