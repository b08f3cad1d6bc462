"""Rows of parquet files and of the hub, and the pictures in them."""

import errno
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor


def read(files: Sequence[Path], what: str):
    """Rows of parquet files as they are now: the cache of `datasets` knows a file by its name and
    time only, and must be writable."""
    import pyarrow.parquet
    from datasets import Dataset, concatenate_datasets

    parts_of(files, what)
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


def split_words() -> dict[str, str]:
    """{word by which `datasets` knows a split: the split}, such as "validation" for "dev"."""
    from datasets.data_files import SPLIT_KEYWORDS

    return {word: str(split) for split, own in SPLIT_KEYWORDS.items() for word in own}


def splits_of(folder: Path) -> dict[str, list[Path]]:
    """The parquet files of each split, whose word stands in the name of a file or of a folder.

    By the rules of `datasets` (whole words, hidden folders ignored), in any case; and stricter:
    files that match where others do not, or that belong to several sets, are refused.
    """
    words = split_words()
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


def parts_of(files: Sequence[Path], what: str) -> None:
    """OSError where a file says that it is one of several, and they are not all there."""
    for file in files:
        part = re.fullmatch(r"(.*-)\d+(-of-(\d+)\.parquet)", file.name)
        if part and (n := len(list(file.parent.glob(f"{part[1]}*{part[2]}")))) != int(part[3]):
            raise OSError(
                f"{what} has {n} of the {int(part[3])} parts of {file.name}: copy them all."
            )


def hub_splits(name: str, what: str, advice: str, configuration: str | None = None):
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


def column(table, names: Sequence[str], what: str) -> str:
    """The first of these columns that is there."""
    found = [name for name in names if name in table.column_names]
    if not found:
        wanted = " or ".join(map(repr, names))
        raise ValueError(
            f"{what} has the columns {', '.join(table.column_names)}, and none of the name "
            f"{wanted}: rename one."
        )
    return found[0]


def pictures(table, column: str, what: str, made: Callable) -> Tensor:
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


def square(image, size: int) -> Tensor:
    """uint8 [3, size, size]: the right way up, transparency on white, the middle square, scaled."""
    import numpy as np
    from PIL import Image, ImageOps

    if image is None:
        raise ValueError("there is none")
    ImageOps.exif_transpose(image, in_place=True)  # a copy would know no more how many bits it has
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
