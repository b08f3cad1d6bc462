"""Images of one's own: formats, what is refused, and that they are mapped, not copied."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pillow

import cfgdistill.data.folder
from cfgdistill import from_folder, from_hub

RED, BLUE, WHITE, GREY = [255, 0, 0], [0, 0, 255], [255, 255, 255], [128, 128, 128]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CFGDISTILL_CACHE", str(place))
    return place


def plain(colour=RED, size=(8, 8), mode="RGB"):
    return Pillow.new("RGB", size, tuple(colour)).convert(mode)


def photos(folder, classes=("cats", "dogs"), each=2, size=(8, 8)):
    """Class folders; the k-th image of all is of grey 10 k."""
    k = 0
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            plain([10 * k] * 3, size).save(folder / name / f"{i}.png")
            k += 1
    return folder


def pixel(data, index, row=0, column=0):
    return data.stored[index, :, row, column].tolist()


# ---- what comes out ------------------------------------------------------------------------------


def test_folders_are_classes_in_order_and_the_first_images_are_of_all_alike(tmp_path):
    data = from_folder(photos(tmp_path / "pets", each=3), 8)
    assert data.name == "pets" and data.class_names == ("cats", "dogs") and len(data) == 6
    assert data.shape == (3, 8, 8) and data.stored.dtype == torch.uint8 and data.levels == 255
    assert data.labels.tolist() == [0, 1] * 3
    assert [pixel(data, i)[0] for i in range(6)] == [0, 30, 10, 40, 20, 50]
    first = from_folder(tmp_path / "pets", 8, images=2)
    assert first.labels.tolist() == [0, 1] and torch.equal(first.stored, data.stored[:2])
    assert first.hash != data.hash and not data.mirror and not data.left_out
    photos(tmp_path / "pets", ["eels"])  # one class more than images
    assert from_folder(tmp_path / "pets", 8, images=2).num_classes == 3


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "bmp", "gif", "tiff"])
def test_files_of_all_kinds_are_read(tmp_path, kind):
    photos(tmp_path)
    (tmp_path / "cats" / "0.png").unlink()
    plain(BLUE).save(tmp_path / "cats" / f"0.{kind}")
    data = from_folder(tmp_path, 8, images=2)
    assert np.abs(np.array(pixel(data, 0)) - BLUE).max() <= (0 if kind in ("png", "bmp") else 3)


def one(tmp_path, image, **how):
    """The first pixel of an image that is the first of its set."""
    photos(tmp_path)
    for file in (tmp_path / "cats").iterdir():
        file.unlink()
    image.save(tmp_path / "cats" / f"0.{how.pop('kind', 'png')}", **how)
    return from_folder(tmp_path, 8)


@pytest.mark.parametrize(
    ("image", "kind", "known"),
    [
        (plain(GREY, mode="L"), "png", GREY),
        (Pillow.fromarray(np.full((8, 8), 128 * 257, np.uint16)), "png", GREY),
        (Pillow.fromarray(np.full((8, 8), 128 * 257, np.uint16)), "tiff", GREY),
        (Pillow.new("RGBA", (8, 8), (0, 0, 0, 0)), "png", WHITE),
        (Pillow.new("RGBA", (8, 8), (255, 0, 0, 0)), "webp", WHITE),
        (Pillow.new("LA", (8, 8), (0, 127)), "png", GREY),
        (plain(RED, mode="P"), "png", RED),
        (plain(RED, mode="1"), "png", [0, 0, 0]),
        (Pillow.new("CMYK", (8, 8), (0, 255, 255, 0)), "jpg", RED),
        (Pillow.new("CMYK", (8, 8), (0, 0, 0, 127)), "tiff", GREY),
    ],
)
def test_grey_16_bits_transparency_and_cmyk_become_rgb(tmp_path, image, kind, known):
    found = pixel(one(tmp_path, image, kind=kind), 0)
    assert np.abs(np.array(found) - known).max() <= 2


def test_an_image_is_cut_to_its_middle_square(tmp_path):
    wide = Pillow.new("RGB", (24, 8), tuple(RED))
    wide.paste(tuple(BLUE), (8, 0, 16, 8))
    data = one(tmp_path, wide)
    assert data.stored[0].flatten(1).unique(dim=1).T.tolist() == [BLUE]


def test_an_image_is_turned_as_its_exif_says(tmp_path):
    """Orientation 6 is a camera turned to the right: what is stored on the left was on top."""
    stored = Pillow.new("RGB", (8, 8), tuple(RED))
    stored.paste(tuple(BLUE), (0, 0, 4, 8))
    exif = Pillow.Exif()
    exif[0x0112] = 6
    data = one(tmp_path, stored, exif=exif)
    assert pixel(data, 0, 0, 0) == pixel(data, 0, 0, 7) == BLUE and pixel(data, 0, 7, 0) == RED


def test_a_large_jpeg_is_scaled_as_if_it_had_been_decoded_in_full(tmp_path):
    ramp = np.linspace(0, 255, 512).astype(np.uint8)
    data = one(tmp_path, Pillow.fromarray(np.tile(ramp, (512, 1))), kind="jpg", quality=95)
    known = ramp.reshape(8, 64).mean(1)
    assert np.abs(data.stored[0, 0, 4].numpy() - known).max() < 4


def test_train_and_test_around_the_classes_are_splits(tmp_path):
    photos(tmp_path / "train", each=2)
    photos(tmp_path / "val", each=1)
    assert len(from_folder(tmp_path, 8)) == 4
    assert from_folder(tmp_path, 8, split="validation").split == "validation"
    with pytest.raises(ValueError, match="no split 'test', only train, validation"):
        from_folder(tmp_path, 8, split="test")
    photos(tmp_path / "valid", each=1)
    with pytest.raises(ValueError, match="a split twice in train, val, valid: move one away"):
        from_folder(tmp_path, 8)
    with pytest.raises(ValueError, match="make the folders train and test there"):
        from_folder(tmp_path / "train", 8, split="test")


def test_captions_lie_beside_images_or_in_one_file(tmp_path):
    for name in ("a", "b"):
        plain().save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f" {name} red square\n")
    data = from_folder(tmp_path, 8, captions=True)
    assert data.class_names == ("a red square", "b red square") and data.labels.tolist() == [0, 1]
    (tmp_path / "b.txt").unlink()
    with pytest.raises(ValueError, match=r"1 image \(b.png\) in .* without a caption"):
        from_folder(tmp_path, 8, captions=True)
    for file, text in (
        ("metadata.csv", "file_name,text\nb.png,from one file\n"),
        ("metadata.jsonl", json.dumps({"file_name": "b.png", "caption": "from one file"})),
    ):
        (tmp_path / file).write_text(text)
        data = from_folder(tmp_path, 8, captions=True)
        assert data.class_names == ("a red square", "from one file")
        (tmp_path / file).unlink()
    (tmp_path / "metadata.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="every row has a file_name"):
        from_folder(tmp_path, 8, captions=True)


def table(n=4, size=(8, 8), classes=2, **columns):
    columns = {"image": [plain([10 * i] * 3, size) for i in range(n)], **columns}
    names = ["x", "y", *map(str, range(2, classes))]
    kinds = {"image": Image(), "text": Value("string"), "label": ClassLabel(names=names)}
    return Dataset.from_dict(columns, Features({k: kinds.get(k, Value("int64")) for k in columns}))


def test_parquet_in_the_hubs_layout_is_a_folder_too(tmp_path):
    table(label=[0, 1, 1, 0]).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    data = from_folder(tmp_path, 8)
    assert data.class_names == ("x", "y") and data.labels.tolist() == [0, 1, 1, 0]
    assert [pixel(data, i)[0] for i in range(4)] == [0, 10, 20, 30]
    with pytest.raises(ValueError, match="no split 'test', only train"):
        from_folder(tmp_path, 8, split="test")


def test_hub_sets_have_any_columns_with_words_numbers_or_names(monkeypatch):
    rows = table(label=[0, 1, 1, 0], fine=[7, 5, 7, 5], text=["a", "b", "b", "a"])
    monkeypatch.setattr("datasets.load_dataset", lambda name, configuration: {"train": rows})
    known = {"label": ("x", "y"), "fine": ("5", "7"), "text": ("a", "b")}
    for column, names in known.items():
        data = from_hub("owner/set", 8, label=column)
        assert data.class_names == names and data.name == "set"
        assert data.labels.tolist() == ([1, 0, 1, 0] if column == "fine" else [0, 1, 1, 0])
    captioned = from_hub("owner/set", 8, caption="text")
    assert captioned.class_names == ("a", "b", "b", "a") and len(captioned) == 4
    with pytest.raises(ValueError, match="none of the name 'kind': rename one"):
        from_hub("owner/set", 8, label="kind")
    with pytest.raises(ValueError, match="no split 'test', only train"):
        from_hub("owner/set", 8, split="test")
    with pytest.raises(ValueError, match="has no text in row 0, but 0: write a text in every row"):
        from_hub("owner/set", 8, caption="label")


def test_a_row_without_a_label_is_told(tmp_path):
    table(label=[0, 1, -1, 0]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="has no class in row 2, but -1"):
        from_folder(tmp_path, 8)


def test_a_table_of_one_class_and_a_label_without_a_name_are_told(tmp_path):
    table(label=[1, 1, 1, 1]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="has 1 class: guidance tells at least two apart"):
        from_folder(tmp_path, 8)
    rows, fewer = table(classes=3, label=[0, 2, 1, 0]).data.table, table(label=[0, 1, 1, 0])
    pyarrow.parquet.write_table(
        rows.replace_schema_metadata(fewer.data.table.schema.metadata), tmp_path / "train.parquet"
    )
    with pytest.raises(ValueError, match="has the label 2, and names for 2 classes"):
        from_folder(tmp_path, 8)


# ---- memory, and the same data again -------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says what is mapped")
def test_pixels_are_mapped_from_the_file_in_the_cache(tmp_path, cache):
    data = from_folder(photos(tmp_path), 8)
    [file] = cache.glob("*/images")
    assert file.stat().st_size == 4 * 3 * 8 * 8 and data.stored.is_contiguous()
    mapped = [line.split("-")[0] for line in Path("/proc/self/maps").read_text().splitlines()]
    assert str(file) in Path("/proc/self/maps").read_text()
    assert f"{data.stored.data_ptr():x}" in [start.lstrip("0") for start in mapped]


def test_the_second_start_decodes_nothing(tmp_path, monkeypatch):
    before = from_folder(photos(tmp_path), 8)
    monkeypatch.setattr(cfgdistill.data.folder, "_image", None)
    again = from_folder(tmp_path, 8)
    assert torch.equal(again.stored, before.stored) and again.hash == before.hash


def test_data_are_known_by_what_images_hold_not_by_where_they_lie(tmp_path):
    here = from_folder(photos(tmp_path / "here"), 8)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    os.utime(tmp_path / "there" / "cats" / "0.png", (1, 1))
    there = from_folder(tmp_path / "there", 8)
    assert here.hash == there.hash
    plain([1, 1, 1]).save(tmp_path / "there" / "cats" / "0.png")
    changed = from_folder(tmp_path / "there", 8)
    assert changed.hash != here.hash and pixel(changed, 0) == [1, 1, 1]
    assert from_folder(tmp_path / "here", 4).hash != here.hash


def test_what_is_damaged_in_the_cache_is_made_again(tmp_path, cache):
    before = from_folder(photos(tmp_path), 8).stored.clone()
    [file] = cache.glob("*/images")
    file.write_bytes(b"short")
    assert torch.equal(from_folder(tmp_path, 8).stored, before)


def test_a_set_that_is_too_large_for_a_gpu_stays_where_it_is(tmp_path, monkeypatch):
    data, indices = from_folder(photos(tmp_path), 8), torch.tensor([2, 0])
    x, labels = data.batch(indices)
    monkeypatch.setattr("cfgdistill.data.base.ON_DEVICE", 0)
    again = from_folder(tmp_path, 8)
    stored, _ = again._on(torch.device("meta"))  # a device that is not the CPU
    assert stored.data_ptr() == again.stored.data_ptr()
    assert torch.equal(again.batch(indices)[0], x) and torch.equal(again.batch(indices)[1], labels)


# ---- what is refused, in a sentence --------------------------------------------------------------


def refused(path, sentence, size=8, kind=ValueError, **how):
    with pytest.raises(kind, match=sentence) as told:
        from_folder(path, size, **how)
    assert "\n" not in str(told.value) and str(told.value).endswith(".")


def test_files_that_cannot_be_read_are_named_and_counted(tmp_path):
    photos(tmp_path, each=3)
    (tmp_path / "cats" / "0.png").write_text("no image")
    whole = (tmp_path / "dogs" / "1.png").read_bytes()
    (tmp_path / "dogs" / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cats" / ".DS_Store").write_text("the system's own")
    plain().save(tmp_path / "stray.png")
    for _ in range(2):  # also when it is known already
        with pytest.warns(UserWarning, match=r"3 files \(stray.png .*cats/0.png .*dogs/1.png"):
            data = from_folder(tmp_path, 8)
    assert len(data) == 4 and len(data.left_out) == 3
    assert data.labels.tolist() == [1, 0, 0, 1]


def test_a_class_with_no_readable_file_is_refused(tmp_path):
    photos(tmp_path)
    for file in (tmp_path / "dogs").iterdir():
        file.write_text("no image")
    refused(tmp_path, "no image that can be read of dogs")
    shutil.rmtree(tmp_path / "dogs")
    (tmp_path / "dogs").mkdir()
    refused(tmp_path, r"1 empty folder \(dogs\)")


def test_images_smaller_than_asked_are_named_with_the_size_that_fits(tmp_path):
    photos(tmp_path, size=(20, 12))
    refused(tmp_path, re.escape("4 images (cats/0.png, dogs/0.png, cats/1.png, dogs/1.png)"), 16)
    refused(tmp_path, "ask for size=12", 16)
    assert from_folder(tmp_path, None).shape == (3, 8, 8)
    shutil.rmtree(tmp_path / "cats")
    photos(tmp_path, size=(70, 50))
    assert from_folder(tmp_path, None).shape == (3, 48, 48)
    photos(tmp_path, size=(7, 8))
    refused(tmp_path, "an image with a side of 7: 8 is the least", None)


def test_no_folder_an_empty_one_one_class_one_image_and_too_deep(tmp_path):
    refused(tmp_path / "none", "There is no folder")
    refused(tmp_path, "is empty: put in a folder for each class")
    refused(tmp_path, "is empty: put in images", captions=True)
    plain().save(tmp_path / "a.png")
    refused(tmp_path, "has 1 files and no folders")
    (tmp_path / "a.png").unlink()
    photos(tmp_path, ["cats"])
    refused(tmp_path, "has one class, cats")
    photos(tmp_path, ["birds"])
    refused(tmp_path, r"has 1 image \(birds/0.png\)", images=1)
    (tmp_path / "cats" / "old").mkdir()
    refused(tmp_path, "cats holds the folder old")


def test_a_size_that_is_none_and_a_cache_that_is_no_folder(tmp_path, monkeypatch):
    photos(tmp_path)
    for size in (0, -8, 10**5):
        refused(tmp_path, "is a whole number from 1 to 4,096", size)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CFGDISTILL_CACHE", str(tmp_path / "file"))
    refused(tmp_path, "another folder in CFGDISTILL_CACHE", kind=OSError)


def test_damaged_parquet_is_told(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no more")
    refused(tmp_path, "copy it again", kind=OSError)
