"""Data by name: images in [-1, 1], labels, class names, and a hash of every byte."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cfgdistill.data.meaning import Classes

SPLITS = ("train", "test")
ON_DEVICE = 2**31  # bytes of a data set that may stay in the memory of a GPU


@dataclass(frozen=True, eq=False)
class Data:
    """Labelled examples. `data.batch(indices)` gives x, [b, *d] float32, and labels, [b] int64.

    Images are stored as whole numbers 0 .. levels and given as values in [-1, 1]. Captioned images
    have a class for every caption. `Latents` are what text-to-image models are trained on.
    """

    name: str
    split: str
    stored: Tensor  # [n, *d]
    labels: Tensor  # [n]
    class_names: tuple[str, ...]
    levels: int | None  # None: stored as given
    mirror: bool = False  # whether a mirrored example is still one of its class
    made_of: str = ""  # what computed examples were computed from: they are known by that
    also: tuple[tuple[str, ...], ...] = ()  # further captions of each example, which fit others too
    left_out: tuple[str, ...] = ()  # files that could not be read, and why

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.stored.shape[1:])

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def null(self) -> int | Tensor:
        """The condition that means "no condition": one label more than there are classes."""
        return self.num_classes

    @property
    def meaning(self):
        """What travels with a model that is trained on these: see `data.meaning`."""
        return Classes(self.num_classes, tuple(self.class_names))

    @property
    def images(self) -> "Data":
        """What a judge looks at."""
        return self

    def decode(self, x: Tensor) -> Tensor:
        """From what a sampler makes to images in [-1, 1]."""
        return x.clamp(-1, 1)

    def prompts(self, n: int) -> tuple[Tensor, Tensor]:
        """n conditions for samples, and the classes they ask for: all in equal parts, or, where
        there are more classes than n, evenly from first to last."""
        k = self.num_classes
        labels = torch.arange(n) % k if n >= k else torch.arange(n) * k // n
        return labels, labels

    def batch(self, indices: Tensor, u: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Examples and labels at `indices`; u ~ U[0, 1], [b], mirrors half of them where legal.

        They come on the device of `indices`: the data set is moved there once and stays. Of a set
        of more than ON_DEVICE bytes only the batch is moved.
        """
        stored, labels = self._on(indices.device)
        x = stored[indices.to(stored.device)].to(indices.device)
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
            place = device if self.stored.nbytes <= ON_DEVICE else torch.device("cpu")
            self._copies[device] = self.stored.to(place), self.labels.to(device)
        return self._copies[device]

    def all(self) -> tuple[Tensor, Tensor]:
        return self.batch(torch.arange(len(self)))

    @cached_property
    def hash(self) -> str:
        """sha256 over all that these examples are: class names or captions, levels, whether they
        may be mirrored, the form of what is stored, then the bytes of labels and examples.

        Examples that were computed have other last bits on another CPU. Of those it is, in the
        place of bytes, over what they are `made_of`.
        """
        about = [self.class_names, self.levels, self.mirror, self.made_of]
        about += [str(self.stored.dtype), list(self.stored.shape)]
        about += [self.also] if self.also else []
        digest = hashlib.sha256(json.dumps(about).encode())
        for part in () if self.made_of else (self.labels, self.stored):
            digest.update(part.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def whole_levels(x: Tensor) -> Tensor:
    """Images in [-1, 1] as the nearest of the whole numbers 0 .. 255, uint8."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
