"""Data by name: images in [-1, 1], labels, class names, and a hash of every byte."""

import errno
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from cfgdistill.core.names import one_of
from cfgdistill.data.toy import pinwheel

NAMES = ("toy", "digits", "cifar10")
SPLITS = ("train", "test")
CIFAR10_CLASSES = (
    "airplane automobile bird cat deer dog frog horse ship truck".split()  # the official order
)
ON_DEVICE = 2**31  # bytes of a data set that may stay in the memory of a GPU
CIFAR10_ROWS = {"train": 50_000, "test": 10_000}


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
    root = os.environ.get("CFGDISTILL_DATA")
    folder = Path(root).expanduser() / "cifar10" / "plain_text" if root else None
    files = sorted(folder.glob(f"{split}-*.parquet")) if folder else []
    if files:
        what = f"CIFAR-10 in {folder}"
        table = _read(files, what)
    else:
        what = "CIFAR-10 on the hub"
        where = f"no {split}-*.parquet in {folder}" if root else "CFGDISTILL_DATA is not set"
        advice = (
            f"{where}: connect to the network, or set CFGDISTILL_DATA to a folder that holds "
            "cifar10/plain_text/*.parquet from huggingface.co/datasets/uoft-cs/cifar10."
        )
        table = _from_hub("uoft-cs/cifar10", "CIFAR-10", advice)[split]
    named = f"{what}, split {split!r},"
    image, label = (_column(table, pair, named) for pair in (("img", "image"), ("label", "labels")))
    names = getattr(table.features[label], "names", CIFAR10_CLASSES)  # none where it is a number
    each = CIFAR10_ROWS[split] // 10
    if names != CIFAR10_CLASSES or Counter(table[label]) != dict.fromkeys(range(10), each):
        raise ValueError(
            f"{named} is not CIFAR-10, which has {each:,} images of each of its classes "
            f"{', '.join(CIFAR10_CLASSES)}, but has {len(table):,} rows of {', '.join(names)}: "
            "fetch huggingface.co/datasets/uoft-cs/cifar10."
        )
    table = table if images is None else table.select(range(min(images, len(table))))
    pixels = _pictures(table, image, named, _of_cifar10)
    labels = torch.tensor(table[label])
    names = tuple(CIFAR10_CLASSES)
    return Data("cifar10", split, pixels, labels, names, levels=255, mirror=True)


def _of_cifar10(image) -> Tensor:
    if image.size != (32, 32):
        raise ValueError(f"it is {image.width} x {image.height}, not 32 x 32")
    return _square(image, 32)


def load_captioned(
    source: str,
    split: str = "train",
    *,
    size: int = 64,
    images: int | None = None,
    also: bool = False,
) -> Data:
    """Captioned images, scaled to size x size on white; `class_names` are the captions.

    With `also`, each has further captions, from the column of that name: lists of texts, such as
    "bird" and "red animal" for a parrot of emoji.

    emoji        1,716 + 182 Noto emoji with their English names, without skin tones; they come
                 with the package. "emoji-skin-tones": all 3,456 + 332
    a folder     with parquet files in the hub's layout: what is test says so in the name of a file
                 or folder, as for `datasets`
    owner/name   of a data set on the hub, or owner/name:configuration
    a .txt file  with a caption in every line, and no images: then each example is empty, [0]

    Columns: `image` or `img`, and `text` or `caption`. A source without the split "test" keeps
    every tenth row for it. OSError for what cannot be had or read, ValueError for rows that are no
    captioned images.
    """
    one_of("split", split, SPLITS)
    if source.endswith(".txt"):
        return _captions_alone(source, split, images)
    table, named = _captioned_table(source, split), f"{source}, split {split!r},"
    if source == "emoji":
        table = table.select([i for i, tone in enumerate(table["skin_tone"]) if not tone])
    if images is not None:
        table = table.select(range(min(images, len(table))))
    image, text = (_column(table, pair, named) for pair in (("image", "img"), ("text", "caption")))
    captions = tuple(table[text])
    for i, caption in enumerate(captions):
        if not isinstance(caption, str):
            found = (
                "no caption" if caption is None else f"a caption of type {type(caption).__name__}"
            )
            raise ValueError(
                f"{named} has {found} in row {i}: write one text in every row of {text!r}; of a "
                "list, pick one."
            )
    more = _further_captions(table, named) if also else ()
    pixels = _pictures(table, image, named, lambda image: _square(image, size))
    labels = torch.arange(len(captions))
    return Data(source, split, pixels, labels, captions, levels=255, also=more)


def _further_captions(table, named: str) -> tuple[tuple[str, ...], ...]:
    found = table[_column(table, ("also",), named)]
    for i, captions in enumerate(found):
        if not isinstance(captions, list) or not all(type(c) is str for c in captions):
            raise ValueError(
                f"{named} has no list of texts in row {i} of 'also': write one in every row, [] "
                "where there is nothing to say."
            )
    return tuple(map(tuple, found))


def _rows_of(split: str, n: int) -> list[int]:
    """Every tenth of n rows is "test", the others are "train"."""
    return [i for i in range(n) if (i % 10 == 9) == (split == "test")]


def _captions_alone(source: str, split: str, images: int | None) -> Data:
    try:
        raw = Path(source).read_bytes()
        text = raw.decode("utf-8-sig")
        if "\0" in text:
            raise UnicodeDecodeError("utf-8", raw, raw.index(b"\0"), len(raw), "a zero byte")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{source} is not in UTF-8 (line {line}: {error.reason}): save it as UTF-8."
        ) from error
    except OSError as error:
        raise OSError(
            f"The captions {source!r} could not be read ({error.strerror}): name another file."
        ) from error
    # Not splitlines, which also cuts at characters that may stand inside a caption.
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n")]
    lines = [line for line in lines if line]
    captions = tuple(lines[i] for i in _rows_of(split, len(lines))[:images])
    if not captions:
        raise ValueError(f"{source} has no caption for the split {split!r}: write one per line.")
    n = len(captions)
    return Data(source, split, torch.empty(n, 0), torch.arange(n), captions, levels=None)


def _captioned_table(source: str, split: str):
    """The rows of one split, those of "test" held out of "train" where the source does not."""
    ours = source in ("emoji", "emoji-skin-tones")
    folder = Path(str(files("cfgdistill_emoji"))) if ours else Path(source)
    if folder.is_dir():
        splits = _splits_of(folder)
    else:
        name, _, configuration = source.partition(":")
        what = f"The captioned images {source!r}"
        advice = "name 'emoji', a folder with parquet files, or a data set that can be reached."
        splits = _from_hub(name, what, advice, configuration or None)
    held_out = "train" in splits and "test" not in splits
    if split not in splits and not held_out:
        raise ValueError(f"{source} has no split {split!r}, only {', '.join(splits)}.")
    table = splits["train" if held_out else split]
    if isinstance(table, list):
        table = _read(table, source)
    return table.select(_rows_of(split, len(table))) if held_out else table


def _splits_of(folder: Path) -> dict[str, list[Path]]:
    """The parquet files of each split, whose word stands in the name of a file or of a folder.

    By the rules of `datasets` (whole words, hidden folders ignored), in any case; and stricter:
    files that match where others do not, or that belong to several sets, are refused.
    """
    from datasets.data_files import SPLIT_KEYWORDS

    words = {word: str(split) for split, own in SPLIT_KEYWORDS.items() for word in own}
    splits: dict[str, list[Path]] = {}
    sets = set()  # folders above those that name a split
    for file in sorted(folder.rglob("*.parquet")):
        parts = file.relative_to(folder).parts
        if any(part.startswith((".", "__")) for part in parts):
            continue
        said = [{words.get(w) for w in re.split("[^a-z]+", p.lower())} - {None} for p in parts]
        names = sorted(set().union(*said))
        if len(names) > 1:
            raise ValueError(
                f"{file} is of several splits by its name, {', '.join(names)}: rename it."
            )
        splits.setdefault("".join(names), []).append(file)
        if names:
            sets.add("/".join(parts[: next(i for i, own in enumerate(said) if own)]) or ".")
    if not splits:
        raise OSError(f"{folder} has no parquet files: name a folder that holds captioned images.")
    if len(sets) > 1:
        raise ValueError(
            f"{folder} holds several sets, {', '.join(sorted(sets))}: name one of them."
        )
    without = splits.pop("", [])
    if without and splits:
        raise ValueError(
            f"{folder} has files of a split ({', '.join(splits)}) and {without[0]}, which names "
            "none: rename it to train, validation or test, or move it away."
        )
    return splits or {"train": without}


def _read(files: Sequence[Path], what: str):
    """Rows of parquet files as they are now: the cache of `datasets` knows a file by its name and
    time only, and must be writable."""
    import pyarrow.parquet
    from datasets import Dataset, concatenate_datasets

    _parts_of(files, what)
    try:
        tables = [Dataset(pyarrow.parquet.ParquetFile(file).read()) for file in files]
        return concatenate_datasets(tables)
    except Exception as error:  # pyarrow and datasets raise a dozen kinds
        names = ", ".join(file.name for file in files)
        raise OSError(
            _about_disk(error, what)
            or f"{what} is damaged, or not parquet in the hub's layout ({last_line(error)}): copy "
            f"{names} again."
        ) from error


def _parts_of(files: Sequence[Path], what: str) -> None:
    """OSError where a file says that it is one of several, and they are not all there."""
    for file in files:
        part = re.fullmatch(r"(.*-)\d+(-of-(\d+)\.parquet)", file.name)
        if part and (n := len(list(file.parent.glob(f"{part[1]}*{part[2]}")))) != int(part[3]):
            raise OSError(
                f"{what} has {n} of the {int(part[3])} parts of {file.name}: copy them all."
            )


def _from_hub(name: str, what: str, advice: str, configuration: str | None = None):
    """All splits of a data set of the hub."""
    from datasets import load_dataset

    try:
        return load_dataset(name, configuration)
    except Exception as error:  # datasets raises a dozen kinds, down to those of pyarrow
        raise OSError(
            _about_disk(error, what)
            or f"{what} could not be had from the hub ({last_line(error)}): {advice}"
        ) from error


def _about_disk(error: BaseException | None, what: str) -> str:
    """A sentence where a disk is full, or closed to us; else nothing."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            return (
                f"{what} could not be had, as {error.filename} may not be used: change its "
                "permissions, or name another folder in HF_HOME for what the hub sends."
            )
        if number in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"{what} could not be had, as the disk is full: free some space, or name a folder "
                "on another one in HF_HOME for what the hub sends."
            )
        error = error.__cause__ or error.__context__
    return ""


def last_line(error: Exception) -> str:
    """The kind of an error, and what its own message ends with."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1].strip().rstrip('.')}".removesuffix(": ")


def _column(table, names: Sequence[str], what: str) -> str:
    """The first of these columns that is there."""
    found = [name for name in names if name in table.column_names]
    if not found:
        wanted = " or ".join(map(repr, names))
        raise ValueError(
            f"{what} has the columns {', '.join(table.column_names)}, and none of the name "
            f"{wanted}: rename one."
        )
    return found[0]


def _pictures(table, column: str, what: str, made: Callable) -> Tensor:
    """uint8 [n, 3, h, w]: each row's image, in whatever form parquet has it, as `made` makes it."""
    from datasets import Image

    found = []
    try:
        table = table.cast_column(column, Image())
        for i in range(len(table)):
            found.append(made(table[i][column]))
    except Exception as error:  # of Pillow, zlib, pyarrow and others
        raise ValueError(
            f"{what} has no image that can be read in row {len(found)} ({last_line(error)}): mend "
            "that row, or leave it out."
        ) from error
    if not found:
        raise ValueError(f"{what} has no rows: name a source that has some.")
    return torch.stack(found)


def _square(image, size: int) -> Tensor:
    """uint8 [3, size, size]: the right way up, transparency on white, the middle square, scaled."""
    import numpy as np
    from PIL import Image, ImageOps

    if image is None:
        raise ValueError("there is none")
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        image = _grey(image)
    if image.mode != "RGB" or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _grey(image):
    """Grey of more than 8 bits in 8, scaled by its range. Pillow would cut off all above 255."""
    import numpy as np
    from PIL import Image

    tags = getattr(image, "tag_v2", {})  # of TIFF
    bits, kind = tags.get(258, (16,))[0], tags.get(339, (1,))[0]  # BitsPerSample, SampleFormat
    pixels = np.asarray(image)
    pixels = pixels.view(np.uint32) if bits == 32 else pixels
    if image.mode == "F" or kind != 1 or pixels.min() < 0 or pixels.max() >= 2**bits:
        raise ValueError("its numbers have no known range: save it with 8 or 16 bits, unsigned")
    return Image.fromarray((pixels / (2**bits - 1) * 255).round().astype(np.uint8))
