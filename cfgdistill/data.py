"""Data by name: images in [-1, 1], labels, class names, and a hash of every byte."""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
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
        """sha256 over all that these examples are: class names or captions, levels, whether they
        may be mirrored, the form of what is stored, then the bytes of labels and examples.

        Examples that were computed have other last bits on another CPU. Of those it is, in the
        place of bytes, over what they are `made_of`.
        """
        about = [self.class_names, self.levels, self.mirror, self.made_of]
        about += [str(self.stored.dtype), list(self.stored.shape)]
        digest = hashlib.sha256(json.dumps(about).encode())
        for part in () if self.made_of else (self.labels, self.stored):
            digest.update(part.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


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


def load_captioned(
    source: str, split: str = "train", *, size: int = 64, images: int | None = None
) -> Data:
    """Captioned images, scaled to size x size on white; `class_names` are the captions.

    emoji        1,716 + 182 Noto emoji with their English names, without skin tones; they come
                 with the package. "emoji-skin-tones": all 3,456 + 332
    a folder     with parquet files in the hub's layout, {split}-*.parquet or others
    owner/name   of a data set on the hub
    a .txt file  with a caption in every line, and no images: then each example is empty, [0]

    Columns: `image`, and `text` or `caption`. A source without the split "test" keeps every tenth
    row for it.
    """
    one_of("split", split, SPLITS)
    if source.endswith(".txt"):
        return _captions_alone(source, split, images)
    table = _captioned_table(source)
    if "test" in table:
        table = table[split]
    else:
        every = table["train"]
        table = every.select(_rows_of(split, len(every)))
    if source == "emoji":
        table = table.filter(lambda tone: not tone, input_columns="skin_tone")
    if images is not None:
        table = table.select(range(min(images, len(table))))
    text = next((name for name in ("text", "caption") if name in table.column_names), None)
    if "image" not in table.column_names or text is None:
        raise ValueError(
            f"{source} has the columns {', '.join(table.column_names)}: a captioned data set needs "
            "`image`, and `text` or `caption`."
        )
    pixels = torch.stack([_square(image, size) for image in table["image"]])
    captions = tuple(table[text])
    return Data(source, split, pixels, torch.arange(len(captions)), captions, levels=255)


def _rows_of(split: str, n: int) -> list[int]:
    """Every tenth of n rows is "test", the others are "train"."""
    return [i for i in range(n) if (i % 10 == 9) == (split == "test")]


def _captions_alone(source: str, split: str, images: int | None) -> Data:
    try:
        lines = [line.strip() for line in Path(source).read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise OSError(f"The captions {source!r} could not be read: name another file.") from error
    lines = [line for line in lines if line]
    captions = tuple(lines[i] for i in _rows_of(split, len(lines))[:images])
    if not captions:
        raise ValueError(f"{source} has no caption for the split {split!r}: write one per line.")
    n = len(captions)
    return Data(source, split, torch.empty(n, 0), torch.arange(n), captions, levels=None)


def _captioned_table(source: str):
    from datasets import load_dataset

    ours = source in ("emoji", "emoji-skin-tones")
    folder = Path(str(files("cfgdistill_emoji"))) if ours else Path(source)
    try:
        if folder.is_dir():
            found = sorted(folder.rglob("*.parquet"))
            splits = {
                split: [str(f) for f in found if f.name.startswith(split)] for split in SPLITS
            }
            splits = {split: names for split, names in splits.items() if names}
            return load_dataset("parquet", data_files=splits or {"train": list(map(str, found))})
        return load_dataset(source)
    except Exception as error:  # datasets raises a dozen kinds, down to those of pyarrow
        raise OSError(
            f"The captioned images {source!r} could not be had ({type(error).__name__}): name "
            "'emoji', a folder with parquet files, or a data set of the hub that can be reached."
        ) from error


def _square(image, size: int) -> Tensor:
    """uint8 [3, size, size]: transparency on white, the middle square, scaled."""
    import numpy as np
    from PIL import Image

    if image.mode != "RGB":
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
