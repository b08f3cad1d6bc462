"""Data by name: images in [-1, 1], labels, class names, and a hash of every byte."""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from cfgdistill.config import one_of
from cfgdistill.toy import pinwheel

NAMES = ("toy", "digits", "cifar10")
SPLITS = ("train", "test")
CIFAR10_CLASSES = (
    "airplane automobile bird cat deer dog frog horse ship truck".split()  # the official order
)


@dataclass(frozen=True, eq=False)
class Data:
    """Labelled examples. `data.batch(indices)` gives x, [b, *d] float32, and labels, [b] int64.

    Images are stored as whole numbers 0 .. levels and given as values in [-1, 1].
    """

    name: str
    split: str
    stored: Tensor  # [n, *d]
    labels: Tensor  # [n]
    class_names: tuple[str, ...]
    levels: int | None  # None: stored as given
    mirror: bool = False  # whether a mirrored example is still one of its class

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.stored.shape[1:])

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def batch(self, indices: Tensor, u: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Examples and labels at `indices`; u ~ U[0, 1], [b], mirrors half of them where legal.

        They come on the device of `indices`: the data set is moved there once and stays.
        """
        stored, labels = self._on(indices.device)
        x = stored[indices]
        if self.levels is not None:
            x = 2 * x.float() / self.levels - 1
        if self.mirror and u is not None:
            u = u.to(x.device).reshape(-1, *(1,) * (x.ndim - 1))
            x = torch.where(u < 0.5, x.flip(-1), x)
        return x, labels[indices]

    @cached_property
    def _copies(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._copies:
            self._copies[device] = self.stored.to(device), self.labels.to(device)
        return self._copies[device]

    def all(self) -> tuple[Tensor, Tensor]:
        return self.batch(torch.arange(len(self)))

    @cached_property
    def hash(self) -> str:
        """sha256 over the rows in order: one byte of label, then the stored bytes."""
        rows = self.stored.flatten(1).contiguous().view(torch.uint8)
        labels = self.labels.to(torch.uint8)[:, None]
        return hashlib.sha256(torch.cat([labels, rows], 1).numpy().tobytes()).hexdigest()


def load_data(name: str, split: str = "train", images: int | None = None) -> Data:
    """The data set `name`, its "train" or "test" split, or only the first `images` of it.

    toy      2-D points of `toy.pinwheel`: 3 classes, 8,000 train, 2,000 test
    digits   1,797 real handwritten digits, 8 x 8, that come with scikit-learn; every fifth is test
    cifar10  50,000 + 10,000 photographs, 32 x 32: from $CFGDISTILL_DATA/cifar10/plain_text/
             (parquet, as on the hub), else the hub's uoft-cs/cifar10
    """
    one_of("data set", name, NAMES)
    one_of("split", split, SPLITS)
    return {"toy": _toy, "digits": _digits, "cifar10": _cifar10}[name](split, images)


def _toy(split, images):
    generator = torch.Generator().manual_seed(SPLITS.index(split))
    x, labels = pinwheel().sample({"train": 8000, "test": 2000}[split], generator)
    return Data("toy", split, x[:images], labels[:images], ("first", "second", "third"), None)


def _digits(split, images):
    from sklearn.datasets import load_digits

    digits = load_digits()
    test = torch.arange(len(digits.target)) % 5 == 4  # mixes the writers, who come in order
    rows = (test if split == "test" else ~test).nonzero().flatten()[:images]
    pixels = torch.from_numpy(digits.images).to(torch.uint8)[rows, None]
    labels = torch.from_numpy(digits.target).long()[rows]
    return Data("digits", split, pixels, labels, tuple("0123456789"), levels=16)


def _cifar10(split, images):
    import numpy as np
    from datasets import load_dataset

    rows = split if images is None else f"{split}[:{images}]"
    root = os.environ.get("CFGDISTILL_DATA")
    folder = Path(root, "cifar10", "plain_text") if root else None
    files = sorted(map(str, folder.glob(f"{split}-*.parquet"))) if folder else []
    try:
        if files:
            table = load_dataset("parquet", data_files={split: files}, split=rows)
        else:
            table = load_dataset("uoft-cs/cifar10", split=rows)
    except Exception as error:  # datasets raises a dozen kinds, down to those of pyarrow
        if files:
            message = (
                f"A parquet file of CIFAR-10 in {folder} is damaged or not in the hub's layout "
                f"({type(error).__name__}): copy {', '.join(Path(f).name for f in files)} again."
            )
        else:
            where = f"no {split}-*.parquet in {folder}" if root else "CFGDISTILL_DATA is not set"
            message = (
                f"CIFAR-10 could not be had from the hub ({type(error).__name__}), and {where}: "
                "connect to the network, or set CFGDISTILL_DATA to a folder that holds "
                "cifar10/plain_text/*.parquet from huggingface.co/datasets/uoft-cs/cifar10."
            )
        raise OSError(message) from error
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in table["img"]])
    labels = torch.tensor(table["label"])
    return Data(
        "cifar10",
        split,
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        labels,
        tuple(CIFAR10_CLASSES),
        levels=255,
        mirror=True,
    )
