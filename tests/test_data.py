"""Data by name: what is in it, and that it does not change."""

import errno
import hashlib
import io
import json
import os
from dataclasses import replace

import pyarrow.parquet
import pytest
import torch

from cfgdistill.course.walk import at_hand, why
from cfgdistill.data.base import Data
from cfgdistill.data.captioned import load_captioned
from cfgdistill.data.named import CIFAR10_CLASSES, load_data

DIGITS_HASH = {
    "train": "37d15a4ce8c5ff26a58b9202fdf0daf4d6c7e5ad041e8f5885af4b35e002a13c",
    "test": "11ff541fab8f4b8b1953f56618345e322c2ab951e8a8a124f8dd472b9af2adbb",
}


def rows(data):
    return {bytes(row) for row in data.stored.flatten(1).contiguous().view(torch.uint8).numpy()}


# ---- digits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "n"), [("train", 1438), ("test", 359)])
def test_digits_are_1797_images_of_8_by_8_and_every_fifth_is_test(split, n):
    data = load_data("digits", split)
    assert len(data) == n and data.shape == (1, 8, 8) and data.num_classes == 10
    assert data.class_names == tuple("0123456789")
    assert data.labels.dtype == torch.int64 and set(data.labels.tolist()) == set(range(10))


def test_digits_splits_are_disjoint_and_together_the_whole():
    train, test = rows(load_data("digits", "train")), rows(load_data("digits", "test"))
    assert not train & test and len(train) + len(test) == 1797


def test_digits_are_scikit_learns_own():
    from sklearn.datasets import load_digits

    source, data = load_digits(), load_data("digits", "test")
    x, labels = data.all()
    torch.testing.assert_close(x[:, 0], torch.from_numpy(source.images[4::5] / 8 - 1).float())
    assert labels.tolist() == source.target[4::5].tolist()


@pytest.mark.parametrize("split", DIGITS_HASH)
def test_the_hash_of_the_digits_is_pinned(split):
    assert load_data("digits", split).hash == DIGITS_HASH[split]


def test_digits_reach_from_minus_1_to_1():
    x, _ = load_data("digits").all()
    assert x.dtype == torch.float32 and x.min() == -1 and x.max() == 1


def test_the_first_images_are_the_first_of_the_split():
    part, whole = load_data("digits", images=50), load_data("digits")
    assert len(part) == 50 and torch.equal(part.stored, whole.stored[:50])
    assert part.hash != whole.hash


# ---- the class itself --------------------------------------------------------------------------


def little(mirror=False):
    stored = torch.tensor([[[[0, 4], [8, 16]]], [[[16, 16], [0, 0]]]], dtype=torch.uint8)
    return Data("little", "train", stored, torch.tensor([1, 0]), ("a", "b"), 16, mirror)


def test_whole_numbers_become_values_between_minus_1_and_1():
    x, labels = little().batch(torch.tensor([0, 1, 0]))
    assert x[0].tolist() == x[2].tolist() == [[[-1.0, -0.5], [0.0, 1.0]]]
    assert labels.tolist() == [1, 0, 1]


def test_a_mirrored_example_is_flipped_left_to_right_where_u_is_below_a_half():
    x, _ = little(mirror=True).batch(torch.tensor([0, 0]), torch.tensor([0.4, 0.6]))
    assert x[0].tolist() == [[[-0.5, -1.0], [1.0, 0.0]]]
    assert x[1].tolist() == [[[-1.0, -0.5], [0.0, 1.0]]]


def test_nothing_is_mirrored_without_u_or_where_it_would_change_the_class():
    plain, u = little().batch(torch.tensor([0]))[0], torch.zeros(1)
    assert torch.equal(little(mirror=True).batch(torch.tensor([0]))[0], plain)
    assert torch.equal(little().batch(torch.tensor([0]), u)[0], plain)
    assert not load_data("digits").mirror


def test_a_batch_comes_on_the_device_of_its_indices_and_the_set_goes_there_once(monkeypatch):
    # The meta device holds no numbers, but it is everywhere: a device that is not the CPU.
    data, moves, to = little(mirror=True), [], torch.Tensor.to

    def counting(tensor, *where, **how):
        moves.extend((k, str(where[0])) for k in ("stored", "labels") if tensor is getattr(data, k))
        return to(tensor, *where, **how)

    monkeypatch.setattr(torch.Tensor, "to", counting)
    for device in ("cpu", "meta", "cpu", "meta"):
        x, labels = data.batch(torch.tensor([0, 1, 0], device=device), torch.zeros(3))
        assert x.device.type == labels.device.type == device
        assert x.shape == (3, 1, 2, 2) and x.dtype == torch.float32
    assert moves == [(part, device) for device in ("cpu", "meta") for part in ("stored", "labels")]


def test_the_hash_is_another_for_whatever_makes_other_data():
    data = little()
    pixel, label = data.stored.clone(), torch.tensor([1, 1])
    pixel[1, 0, 1, 1] = 1
    others = [
        {"stored": pixel},
        {"stored": data.stored.reshape(2, 1, 1, 4)},
        {"stored": data.stored.view(torch.int8)},
        {"labels": label},
        {"class_names": ("a", "c")},
        {"class_names": ("b", "a")},
        {"levels": 255},
        {"mirror": True},
        {"made_of": "a recipe"},
    ]
    found = {replace(data, **other).hash for other in others}
    assert len(found | {data.hash}) == len(others) + 1
    same = replace(data, name="other name", split="test", stored=data.stored.clone())
    assert same.hash == data.hash == little().hash


def test_what_was_computed_is_known_by_what_it_was_made_of_not_by_its_last_bits():
    here = replace(little(), stored=torch.tensor([[0.1], [0.2]]), levels=None, made_of="a seed")
    there = replace(here, stored=torch.nextafter(here.stored, torch.ones(1)))
    assert not torch.equal(here.stored, there.stored) and here.hash == there.hash
    assert replace(here, made_of="another seed").hash != here.hash
    assert load_data("toy").made_of  # its points are sines and cosines


# ---- toy ---------------------------------------------------------------------------------------


def test_toy_has_two_dimensions_three_classes_and_disjoint_splits():
    train, test = load_data("toy"), load_data("toy", "test")
    assert (len(train), len(test)) == (8000, 2000)
    assert train.shape == (2,) and train.num_classes == 3
    assert not rows(train) & rows(test)
    x, labels = train.all()
    assert torch.equal(x, train.stored) and labels.max() == 2


def test_toy_is_the_same_every_time():
    assert load_data("toy").hash == load_data("toy").hash != load_data("toy", "test").hash


# ---- cifar10 -----------------------------------------------------------------------------------

CIFAR10_TEST_HASH = "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"


@pytest.mark.skipif(
    not os.environ.get("CFGDISTILL_DATA"),
    reason="CIFAR-10 is not here: set CFGDISTILL_DATA to the folder that holds cifar10/",
)
def test_the_cifar10_test_split_has_its_known_bytes_and_1000_images_of_each_class():
    data = load_data("cifar10", "test")
    label, pixels = data.labels.to(torch.uint8)[:, None], data.stored.flatten(1)
    rows = torch.cat([label, pixels], 1)  # as in the file test_batch.bin of its makers
    assert hashlib.sha256(rows.numpy().tobytes()).hexdigest() == CIFAR10_TEST_HASH
    assert torch.bincount(data.labels).tolist() == [1000] * 10
    assert data.shape == (3, 32, 32) and data.levels == 255 and data.mirror
    assert data.class_names[3] == "cat" and len(data.class_names) == 10


@pytest.fixture
def small(monkeypatch):
    """As if CIFAR-10 had 20 images in each split."""
    monkeypatch.setattr("cfgdistill.data.named.CIFAR10_ROWS", {"train": 20, "test": 20})


def write_parquet(
    folder, n=20, split="train", columns=("img", "label"), side=32, classes=CIFAR10_CLASSES
):
    """n images in the hub's layout; image i has red i, green 10 i, blue 255 and label i mod 10."""
    from PIL import Image

    def png(i):
        file = io.BytesIO()
        Image.new("RGB", (side, side), (i, 10 * i, 255)).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table(
        {
            columns[0]: pyarrow.array([png(i) for i in range(n)], image),
            columns[1]: pyarrow.array([i % 10 for i in range(n)], pyarrow.int64()),
        }
    )
    if classes:
        names = {"names": list(classes), "_type": "ClassLabel"}
        features = dict(zip(columns, ({"_type": "Image"}, names), strict=True))
        about = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": about})
    folder = folder / "cifar10" / "plain_text"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}-00000-of-00001.parquet"
    pyarrow.parquet.write_table(table, path)
    return path


@pytest.mark.parametrize("columns", [("img", "label"), ("image", "labels")])
@pytest.mark.parametrize("classes", [CIFAR10_CLASSES, None])  # None: as pyarrow or pandas write it
def test_cifar10_is_read_from_a_folder_in_the_hubs_layout(
    tmp_path, monkeypatch, small, columns, classes
):
    write_parquet(tmp_path, columns=columns, classes=classes)
    monkeypatch.setenv("CFGDISTILL_DATA", str(tmp_path))
    data = load_data("cifar10", "train")
    assert data.labels.tolist() == [*range(10)] * 2 and data.shape == (3, 32, 32)
    for channel, known in enumerate(([*range(20)], [*range(0, 200, 10)], [255] * 20)):
        assert data.stored[:, channel].flatten(1).unique(dim=1)[:, 0].tolist() == known
    x, _ = data.batch(torch.tensor([3]))
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor([3, 30, 255.0]) / 127.5 - 1)
    assert len(load_data("cifar10", "train", images=4)) == 4


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"n": 10}, "2 images of each .* but has 10 rows"),
        ({"side": 96}, r"row 0 \(ValueError: it is 96 x 96, not 32 x 32\)"),
        ({"classes": "car bird cat deer dog frog horse monkey ship truck".split()}, "monkey"),
        ({"columns": ("photo", "label")}, "columns photo, label, and none .* 'img' or 'image'"),
    ],
)
def test_what_is_not_cifar10_does_not_get_its_name(tmp_path, monkeypatch, small, how, sentence):
    write_parquet(tmp_path, **how)
    monkeypatch.setenv("CFGDISTILL_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=f"(?s)^CIFAR-10 in .*split 'train', .*{sentence}"):
        load_data("cifar10", images=3)


def test_a_file_of_the_same_name_and_time_is_read_again(tmp_path, monkeypatch, small):
    monkeypatch.setenv("CFGDISTILL_DATA", str(tmp_path))
    path = write_parquet(tmp_path)
    then, before = path.stat(), load_data("cifar10")
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.take([*range(19, -1, -1)]), path)
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    after = load_data("cifar10")
    assert after.hash != before.hash and torch.equal(after.stored, before.stored.flip(0))


def test_local_files_are_read_without_a_cache_and_without_a_home(tmp_path, monkeypatch, small):
    import datasets

    write_parquet(tmp_path)
    monkeypatch.setenv("CFGDISTILL_DATA", str(tmp_path))
    (tmp_path / "file").touch()  # where no folder can be made, as in a home without write bits
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    assert len(load_data("cifar10")) == 20


def test_a_truncated_parquet_file_is_one_sentence(tmp_path, monkeypatch):
    path = write_parquet(tmp_path, split="test")
    path.write_bytes(path.read_bytes()[:-100])
    monkeypatch.setenv("CFGDISTILL_DATA", str(tmp_path))
    with pytest.raises(OSError, match=r"CIFAR-10 in .* is damaged.* copy test-00000-of-00001"):
        load_data("cifar10", "test")


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "x may not be used: change its permissions"),
        (errno.EROFS, "x may not be used: change its permissions"),
        (errno.ENOSPC, "the disk is full: free some space"),
    ],
)
def test_a_closed_or_full_disk_is_not_called_damage(tmp_path, monkeypatch, number, advice):
    def refuse(*given):
        raise RuntimeError("generation failed") from OSError(number, "no", "x")

    write_parquet(tmp_path)
    monkeypatch.setenv("CFGDISTILL_DATA", str(tmp_path))
    monkeypatch.setattr("pyarrow.parquet.ParquetFile", refuse)
    monkeypatch.setattr("datasets.load_dataset", refuse)
    for load in (lambda: load_data("cifar10"), lambda: load_captioned("nobody/nothing")):
        with pytest.raises(OSError, match=advice):
            load()


def test_parts_that_are_missing_are_told(tmp_path, monkeypatch):
    path = write_parquet(tmp_path)
    path.rename(path.with_name("train-00000-of-00002.parquet"))
    monkeypatch.setenv("CFGDISTILL_DATA", str(tmp_path))
    with pytest.raises(OSError, match="has 1 of the 2 parts of train-00000-of-00002.parquet"):
        load_data("cifar10")


@pytest.mark.parametrize("local", [None, "an empty folder"])
def test_no_network_and_no_local_copy_is_one_sentence(tmp_path, monkeypatch, local):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    if local is None:
        monkeypatch.delenv("CFGDISTILL_DATA", raising=False)
        known = "CFGDISTILL_DATA is not set: connect to the network, or set CFGDISTILL_DATA"
    else:
        monkeypatch.setenv("CFGDISTILL_DATA", str(tmp_path))
        known = r"no train-\*.parquet in .*plain_text: connect to the network"
    with pytest.raises(OSError, match="could not be had from the hub .*" + known):
        load_data("cifar10")


def test_the_walk_is_on_cifar10_where_it_is_on_this_disk_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("CFGDISTILL_DATA", str(tmp_path))
    assert at_hand() == "digits" and "CIFAR-10 is not on this disk" in why("digits")
    assert "it is fetched once" in why("cifar10")
    folder = tmp_path / "cifar10" / "plain_text"
    folder.mkdir(parents=True)
    (folder / "train-0.parquet").touch()
    assert at_hand() == "digits"  # half of it is none of it
    (folder / "test-0.parquet").touch()
    assert at_hand() == "cifar10" and why("cifar10").endswith("is on this disk.")
    assert why("digits").endswith("digits, which you chose.")
    monkeypatch.delenv("CFGDISTILL_DATA")
    assert at_hand() == "digits"
    (tmp_path / "cache" / "uoft-cs___cifar10").mkdir(parents=True)  # as `datasets` names it
    assert at_hand() == "cifar10"
