"""Captioned images: from the package, the hub, a folder, or captions alone."""

from importlib.resources import files
from pathlib import Path

import torch

from cfgdistill.core.names import one_of
from cfgdistill.data.base import SPLITS, Data
from cfgdistill.data.folder import from_folder, holds_captions
from cfgdistill.data.hub import to_fetch
from cfgdistill.data.prompts import prompts
from cfgdistill.data.tables import column, hub_splits, pictures, read, splits_of, square


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
                 or folder, as for `datasets`; or with images and captions, see `from_folder`
    owner/name   of a data set on the hub, or owner/name:configuration
    a .txt file  with a caption in every line, and no images: then each example is empty, [0]
    prompts      4,000 + 400 captions as a person writes them, and no images: see `data.prompts`

    Columns: `image` or `img`, and `text` or `caption`. A source without the split "test" keeps
    every tenth row for it. OSError for what cannot be had or read, ValueError for rows that are no
    captioned images.
    """
    one_of("split", split, SPLITS)
    if source == "prompts":
        return _alone(source, split, prompts(split)[:images])
    if source.endswith(".txt"):
        return _captions_in(source, split, images)
    if holds_captions(Path(source)):
        return from_folder(source, size, split=split, captions=True, images=images)
    table, named = _captioned_table(source, split), f"{source}, split {split!r},"
    if source == "emoji":
        table = table.select([i for i, tone in enumerate(table["skin_tone"]) if not tone])
    if images is not None:
        table = table.select(range(min(images, len(table))))
    image, text = (column(table, pair, named) for pair in (("image", "img"), ("text", "caption")))
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
    pixels = pictures(table, image, named, lambda image: square(image, size))
    labels = torch.arange(len(captions))
    return Data(source, split, pixels, labels, captions, levels=255, also=more)


def _further_captions(table, named: str) -> tuple[tuple[str, ...], ...]:
    found = table[column(table, ("also",), named)]
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


def _captions_in(source: str, split: str, images: int | None) -> Data:
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
    return _alone(source, split, captions)


def _alone(source: str, split: str, captions: tuple[str, ...]) -> Data:
    """Captions without images."""
    n = len(captions)
    return Data(source, split, torch.empty(n, 0), torch.arange(n), captions, levels=None)


def _captioned_table(source: str, split: str):
    """The rows of one split, those of "test" held out of "train" where the source does not."""
    ours = source in ("emoji", "emoji-skin-tones")
    folder = Path(str(files("cfgdistill_emoji"))) if ours else Path(source)
    if folder.is_dir():
        splits = splits_of(folder)
    else:
        name, _, configuration = source.partition(":")
        what = f"The captioned images {source!r}"
        fetch = to_fetch(name, "python -c 'import datasets; datasets.load_dataset(\"{}\")'")
        advice = f"{fetch}, or name 'emoji' or a folder with parquet files."
        splits = hub_splits(name, what, advice, configuration or None)
    held_out = "train" in splits and "test" not in splits
    if split not in splits and not held_out:
        raise ValueError(f"{source} has no split {split!r}, only {', '.join(splits)}.")
    table = splits["train" if held_out else split]
    if isinstance(table, list):
        table = read(table, source)
    return table.select(_rows_of(split, len(table))) if held_out else table
