"""Images of your own: a folder of class folders, captioned images, or any image set of the hub.

They are decoded once, into a file of whole numbers that is mapped into memory: so a set may be
larger than memory, and the second start costs nothing. The file is known by what the images hold,
not by where they lie: a moved folder is the same data, and a run on it resumes exactly.
"""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from cfgdistill.data.base import Data
from cfgdistill.data.tables import (
    column,
    hub_splits,
    last_line,
    parts_of,
    split_words,
    splits_of,
    square,
)
from cfgdistill.training.checkpoints import alone, write_text
from cfgdistill.training.environment import flag

CHUNK = 256  # images that are decoded together
PROPOSED = (8, 16, 32, 48, 64)  # sizes, of which the largest is taken that all images have
RULES = 1  # counts up when an image is decoded otherwise than before
METADATA = ("metadata.jsonl", "metadata.csv")  # as for `datasets`: file_name, and text or caption


class _Rows(NamedTuple):
    """Images that are there, and what they are. One whose name is of no use is known by its row."""

    names: Sequence[str]
    labels: Sequence[int]
    class_names: tuple[str, ...]  # or the caption of each
    read: Callable[[], Iterator[bytes]]  # what is in the file of each
    stamp: list  # changes whenever any of them is another, as far as can be told without reading
    left_out: tuple[str, ...] = ()  # what is there and is no image of the set


def from_folder(
    path: str | Path,
    size: int | None = 64,
    *,
    split: str = "train",
    captions: bool = False,
    image: str = "image",
    label: str = "label",
    images: int | None = None,
    mirror: bool = False,
) -> Data:
    """Labelled images from a folder that holds a folder for every class; size x size, RGB.

    Any file that Pillow reads is an image: turned as its EXIF says, transparency on white, cut to
    the middle square, scaled down. Folders `train` and `test` around those of the classes are
    splits. With `captions` there are no classes: each image has a text, in a .txt file of its name
    or in metadata.jsonl or metadata.csv (`file_name` and `text`). Parquet files in the hub's layout
    do as well, with the columns `image` and `label`, or with captions `text`. `images`: so many
    only, of all classes alike. `mirror`: half of what training sees is mirrored. size None: the
    largest of 8, 16, 32, 48 and 64 that the first 500 images have.

    A file that cannot be read is left out with a warning, and named in `left_out`. ValueError, in a
    sentence, where there are fewer than two images or classes, a class has no image that can be
    read, or an image is smaller than asked for.

    Decoded images are kept below $CFGDISTILL_CACHE (~/.cache/cfgdistill), 3 size^2 bytes each.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"There is no folder {folder.absolute()}: name one that has a folder for each class."
        )
    name = folder.resolve().name
    if next(folder.rglob("*.parquet"), None):
        columns = (image, "text" if captions and label == "label" else label)
        return _of_parquet(name, folder, split, size, images, mirror, columns, captions)
    top = _split_folder(folder, split)
    found = _captioned_files(top) if captions else _class_folders(top)
    return _decoded(f"{folder}", name, split, found, size, images, mirror, captions)


def from_hub(
    name: str,
    size: int | None = 64,
    *,
    image: str = "image",
    label: str = "label",
    caption: str | None = None,
    split: str = "train",
    images: int | None = None,
    mirror: bool = False,
) -> Data:
    """Labelled images of a data set on the hub, owner/name or owner/name:configuration.

    `image` and `label` are its columns; with `caption`, the column of texts, there are no labels.
    The other arguments, and what is refused, as in `from_folder`.
    """
    repository, _, configuration = name.partition(":")
    advice = "name a data set that can be reached, such as owner/name, or a folder."
    splits = hub_splits(repository, f"The data set {name!r}", advice, configuration or None)
    if split not in splits:
        raise ValueError(f"{name} has no split {split!r}, only {', '.join(splits)}.")
    table, what = splits[split], f"{name}, split {split!r},"
    image, text = column(table, (image,), what), column(table, (caption or label,), what)

    def read() -> Iterator:
        from datasets import Image

        rows = table.select_columns(image).cast_column(image, Image(decode=False))
        for some in rows.iter(CHUNK):
            yield from map(_bytes_of, some[image])

    stamp = ["hub", name, split, image, text, table._fingerprint]
    found = _of_table(what, table[text][:], table.features[text], read, stamp, caption is not None)
    short = repository.rpartition("/")[2]
    return _decoded(what, short, split, found, size, images, mirror, caption is not None)


def load_own(
    source: str, *, captions: bool = False, image: str = "image", label: str = "label", **how
) -> Data:
    """`from_folder`, or, for what is no folder and is called owner/name, `from_hub`."""
    if not Path(source).expanduser().is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+(:.+)?", source):
        text = {"caption": label} if captions else {"label": label}
        return from_hub(source, image=image, **text, **how)
    return from_folder(source, captions=captions, image=image, label=label, **how)


# ---- what is there ---------------------------------------------------------------------------


def _class_folders(top: Path) -> _Rows:
    """The images of each class, in turn: so the first n are of all classes alike."""
    inside, files = _inside(top)
    if not inside:
        raise ValueError(
            f"{top} has {len(files)} files and no folders: put the images of each class into a "
            "folder of their own, with the name of the class, or write captions for them."
            if files
            else f"{top} is empty: put in a folder for each class, with its images."
        )
    classes = {}
    for one in inside:
        deeper, classes[one.name] = _inside(one)
        if deeper:
            raise ValueError(
                f"{one} holds the folder {deeper[0].name}, and folders are one deep, a class each: "
                f"move its images to {one}, or name {one} as the data."
            )
    if empty := [name for name, own in classes.items() if not own]:
        raise ValueError(
            f"{top} has {_count(empty, 'empty folder')}: put images in, or remove what is no class."
        )
    if len(classes) < 2:
        raise ValueError(
            f"{top} has one class, {next(iter(classes))}: guidance tells classes apart, so make at "
            "least two folders."
        )
    turns = zip_longest(*[[(k, f) for f in own] for k, own in enumerate(classes.values())])
    rows = [row for row in chain.from_iterable(turns) if row is not None]
    names = tuple(classes)
    stray = tuple(f"{file.name} (in no class folder)" for file in files)
    return _of_files(top, [f for _, f in rows], [k for k, _ in rows], names, stray)


def _split_folder(folder: Path, split: str) -> Path:
    """The folder of this split, where all folders in it are called as splits are."""
    words, inside = split_words(), _inside(folder)[0]
    splits = {words.get(one.name.lower()): one for one in inside}
    if splits and None not in splits:
        if len(splits) < len(inside):
            raise ValueError(
                f"{folder} has a split twice in {', '.join(one.name for one in inside)}: move one "
                "away."
            )
        if split not in splits:
            raise ValueError(f"{folder} has no split {split!r}, only {', '.join(splits)}.")
        return splits[split]
    if split != "train":
        raise ValueError(
            f"{folder} has no split {split!r}: make the folders train and {split} there, each with "
            "a folder for every class."
        )
    return folder


def holds_captions(folder: Path) -> bool:
    """Whether captions lie beside images there, and not with them in parquet files."""
    captions = (next(folder.rglob(name), None) for name in ("*.txt", *METADATA))
    return folder.is_dir() and any(captions) and not next(folder.rglob("*.parquet"), None)


def _captioned_files(folder: Path) -> _Rows:
    captions = {}
    for file in (folder / name for name in METADATA if (folder / name).is_file()):
        captions |= _metadata(file)
    below = [p for p in sorted(folder.rglob("*")) if p.is_file() and not _hidden(p, folder)]
    texts = {p.with_suffix(""): p for p in below if p.suffix == ".txt"}
    found = [p for p in below if p.suffix != ".txt" and p.name not in METADATA]
    for p in found:
        if p.with_suffix("") in texts:
            captions[p.relative_to(folder).as_posix()] = _text(texts[p.with_suffix("")])
    named = [p.relative_to(folder).as_posix() for p in found]
    without = [name for name in named if not captions.get(name)]
    if not found or without:
        raise ValueError(
            f"{_count(without, 'image')} in {folder} without a caption: write it into a .txt file "
            f"of the same name, or a row of {METADATA[0]}."
            if found
            else f"{folder} is empty: put in images, with a .txt file beside each."
        )
    return _of_files(folder, found, range(len(found)), tuple(captions[name] for name in named))


def _metadata(file: Path) -> dict[str, str]:
    """{file name: caption}"""
    text = _text(file)
    try:
        if file.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(text)))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        return {row["file_name"]: (row.get("text") or row["caption"]).strip() for row in rows}
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise ValueError(
            f"{file} cannot be used ({last_line(error)}): every row has a file_name, and a text or "
            "a caption."
        ) from error


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not in UTF-8 ({error.reason}): save it as UTF-8.") from error


def _of_files(top: Path, files: list[Path], labels, class_names, left_out=()) -> _Rows:
    names = [file.relative_to(top).as_posix() for file in files]
    stats = [file.stat() for file in files]
    stamp = ["files", [(n, s.st_size, s.st_mtime_ns) for n, s in zip(names, stats, strict=True)]]

    def read() -> Iterator:
        for file in files:
            try:
                yield file.read_bytes()
            except OSError as error:
                yield error

    return _Rows(names, labels, class_names, read, stamp, left_out)


def _of_parquet(name, folder, split, size, images, mirror, columns, captions: bool) -> Data:
    """As `from_hub`, of the files of one split; only the rows that are read are in memory."""
    import pyarrow.parquet as parquet
    from datasets import Features

    splits, what = splits_of(folder), f"{folder}, split {split!r},"
    if split not in splits:
        raise ValueError(f"{folder} has no split {split!r}, only {', '.join(splits)}.")
    files = splits[split]
    parts_of(files, f"{folder}")
    damaged = f"{what} cannot be read ({{}}): copy it again."
    try:
        schema = parquet.read_schema(files[0])
        there = _Columns(schema.names, Features.from_arrow_schema(schema))
    except Exception as error:  # pyarrow has a dozen kinds
        raise OSError(damaged.format(last_line(error))) from error
    image, text = (column(there, (name,), what) for name in columns)
    try:
        own = parquet.read_table(files, columns=[text])[text].to_pylist()
    except Exception as error:
        raise OSError(damaged.format(last_line(error))) from error

    def read() -> Iterator:
        try:
            for file in files:
                for some in parquet.ParquetFile(file).iter_batches(CHUNK, columns=[image]):
                    yield from map(_bytes_of, some[image].to_pylist())
        except Exception as error:
            raise OSError(damaged.format(last_line(error))) from error

    stamp = ["parquet", image, text]
    stamp += [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    found = _of_table(what, own, there.features[text], read, stamp, captions)
    return _decoded(what, name, split, found, size, images, mirror, captions)


class _Columns(NamedTuple):
    column_names: list[str]
    features: dict


def _of_table(what: str, values: list, feature, read, stamp: list, captions: bool) -> _Rows:
    """Rows with labels that are numbers, with names or without, or words; or with captions."""
    names = [f"row {i}" for i in range(len(values))]
    wanted = "a text" if captions else "a class"
    kinds = (str,) if captions else (int, str)
    for i, value in enumerate(values):
        if type(value) not in kinds or value == "" or (type(value) is int and value < 0):
            raise ValueError(
                f"{what} has no {wanted.removeprefix('a ')} in row {i}, but {value!r:.40}: write "
                f"{wanted} in every row, or name another column."
            )
    if captions:
        return _Rows(names, range(len(values)), tuple(values), read, stamp)
    found, known = sorted(set(values)), getattr(feature, "names", None)
    if len(found) < 2:
        raise ValueError(f"{what} has {len(found)} class: guidance tells at least two apart.")
    if known and found[-1] >= len(known):
        raise ValueError(
            f"{what} has the label {found[-1]}, and names for {len(known)} classes: mend it."
        )
    number = {value: k for k, value in enumerate(range(len(known)) if known else found)}
    labels = [number[value] for value in values]
    return _Rows(names, labels, tuple(known or map(str, number)), read, stamp)


def _bytes_of(value) -> bytes | OSError:
    """What parquet has in a column of images."""
    value = value.get("bytes") if isinstance(value, dict) else value
    return value if isinstance(value, bytes) else OSError("there is none")


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """Folders and files that are not hidden, in order."""
    here = [p for p in sorted(folder.iterdir()) if not _hidden(p, folder)]
    return [p for p in here if p.is_dir()], [p for p in here if not p.is_dir()]


def _hidden(path: Path, folder: Path) -> bool:
    """Whether it is the system's own, as .DS_Store, or lies in such a folder."""
    parts = path.relative_to(folder).parts
    return any(p.startswith((".", "__")) for p in parts) or path.name in (
        "Thumbs.db",
        "desktop.ini",
    )


def _count(names: Sequence[str], what: str) -> str:
    """ "3 images (a.png, b.png, ...)" """
    some = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
    return f"{len(names):,} {what}{'s' * (len(names) != 1)} ({some})"


# ---- decoded ---------------------------------------------------------------------------------


def _decoded(what, name, split, found: _Rows, size, images, mirror, captions) -> Data:
    """The images as a file that is mapped into memory, made where it is not there yet."""
    if size is None:
        size = _fitting(what, found)
    if type(size) is not int or not 1 <= size <= 4096:
        raise ValueError(f"size={size!r} does not fit: it is a whole number from 1 to 4,096.")
    n = min(len(found.names), images or len(found.names))
    if n < 2:
        raise ValueError(f"{what} has {_count(found.names[:n], 'image')}: two are the least.")
    root = Path(os.environ.get("CFGDISTILL_CACHE") or "~/.cache/cfgdistill").expanduser()
    about = [RULES, size, n, list(found.labels), found.class_names if captions else (), found.stamp]
    known = root / "known" / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()}.json"
    try:
        with alone(root / "lock"):
            entry = json.loads(known.read_text()) if known.exists() else {}
            if not entry or not _whole(root, entry, size):
                entry = _decode(found, size, n, root, captions)
                write_text(known, json.dumps(entry))
    except OSError as error:
        if error.errno is None:  # it is about the images, and says so
            raise
        raise OSError(
            f"Decoded images could not be kept in {root} ({error.strerror}): free some space, or "
            "name another folder in CFGDISTILL_CACHE."
        ) from error
    _refuse(what, found, n, entry, size, captions)
    left_out = (*found.left_out, *entry["unreadable"])
    if left_out:
        warnings.warn(f"{what}: {_count(left_out, 'file')} left out.", stacklevel=3)
    rows = entry["rows"]
    file, shape = root / entry["content"] / "images", (len(rows), 3, size, size)
    stored = torch.from_file(f"{file}", size=len(rows) * 3 * size**2, dtype=torch.uint8)
    labels = torch.arange(len(rows)) if captions else torch.tensor([found.labels[i] for i in rows])
    return Data(
        name,
        split,
        stored.view(shape),
        labels,
        tuple(found.class_names[i] for i in rows) if captions else found.class_names,
        levels=255,
        mirror=mirror,
        made_of=entry["content"],
        left_out=left_out,
    )


def _fitting(what: str, found: _Rows, most: int = 500) -> int:
    """The size that is proposed, by the headers of the first images."""
    from PIL import Image

    sides = []
    for content in islice(found.read(), most):
        try:
            sides.append(min(Image.open(io.BytesIO(content)).size))
        except Exception:  # it is named when it is decoded
            continue
    least = min(sides, default=PROPOSED[0])
    fitting = [size for size in PROPOSED if size <= least]
    if not fitting:
        raise ValueError(f"{what} has an image with a side of {least}: {PROPOSED[0]} is the least.")
    return fitting[-1]


def _whole(root: Path, entry: dict, size: int) -> bool:
    file = root / entry["content"] / "images"
    return file.exists() and file.stat().st_size == len(entry["rows"]) * 3 * size**2


def _decode(found: _Rows, size: int, n: int, root: Path, captions: bool) -> dict:
    """Write the first n images; which rows they are, what cannot be read, what is too small."""
    from tqdm.auto import tqdm

    entry = {"rows": [], "unreadable": [], "small": [], "sides": []}
    digest = hashlib.sha256(json.dumps([RULES, size]).encode())
    with TemporaryDirectory(dir=root, suffix=".tmp") as own, ThreadPoolExecutor() as pool:
        made = Path(own, "made")  # by mkdir: `own` may be entered by its owner only
        made.mkdir()
        with open(made / "images", "wb") as file:
            quiet = flag("CI") or flag("TQDM_DISABLE")
            bar = tqdm(islice(found.read(), n), "images", n, leave=False, disable=quiet)
            contents = enumerate(bar)
            while some := list(islice(contents, CHUNK)):
                images = pool.map(lambda row: _image(row[1], size), some)
                for (i, content), image in zip(some, images, strict=True):
                    if isinstance(image, Exception):
                        entry["unreadable"].append(f"{found.names[i]} ({last_line(image)})")
                    elif isinstance(image, int):
                        entry["small"].append(found.names[i])
                        entry["sides"].append(image)
                    else:
                        said = found.class_names[i] if captions else found.labels[i]
                        digest.update(f"{said!r} {hashlib.sha256(content).hexdigest()}".encode())
                        file.write(image)
                        entry["rows"].append(i)
        entry["content"] = digest.hexdigest()
        place = root / entry["content"]
        if entry["rows"] and not _whole(root, entry, size):
            shutil.rmtree(place, ignore_errors=True)
            made.rename(place)
    return entry


def _image(content: bytes | OSError, size: int) -> bytes | int | Exception:
    """The pixels [3, size, size]; the shorter side of an image that is too small; or the fault."""
    from PIL import Image

    try:
        if isinstance(content, OSError):
            raise content
        with Image.open(io.BytesIO(content)) as image:
            if min(image.size) < size:
                return min(image.size)
            image.draft(None, (2 * size, 2 * size))  # a large JPEG need not be decoded in full
            return square(image, size).contiguous().numpy().tobytes()
    except Exception as error:  # of Pillow, zlib, struct and others
        return error


def _refuse(what: str, found: _Rows, n: int, entry: dict, size: int, captions: bool) -> None:
    if entry["small"]:
        raise ValueError(
            f"{what} has {_count(entry['small'], 'image')} smaller than {size} x {size}: ask for "
            f"size={min(entry['sides'])}, or move them away."
        )
    if len(entry["rows"]) < 2:
        raise ValueError(
            f"{what} has fewer than two images that can be read: "
            f"{_count(entry['unreadable'], 'file')} cannot."
        )
    if captions:
        return
    tried, read = {*found.labels[:n]}, {found.labels[i] for i in entry["rows"]}
    without = [found.class_names[k] for k in sorted(tried - read)]
    if without:
        raise ValueError(
            f"{what} has no image that can be read of {', '.join(without[:10])}: mend some, or "
            "remove that class."
        )
