"""Pictures as files: the nearest level, and whole or not at all."""

import pytest
import torch
from PIL import Image

from cfgdistill.data.base import whole_levels
from cfgdistill.data.named import load_data
from cfgdistill.judge.plotting import image_panels, image_rows, quality_against_nfe, save_images


def test_whole_levels_are_the_nearest_and_undo_a_batch():
    levels = torch.arange(256)
    for shift in (-0.4, 0.0, 0.4):
        x = (levels + shift) / 127.5 - 1
        assert torch.equal(whole_levels(x), levels.to(torch.uint8))
    assert whole_levels(torch.tensor([-2.0, 2.0])).tolist() == [0, 255]
    digits = load_data("digits", images=10)
    back = whole_levels(digits.all()[0])
    torch.testing.assert_close(back.double() / 255 * 16, digits.stored.double(), rtol=0, atol=0.04)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_on_disk_has_the_nearest_levels(channels, tmp_path):
    x = torch.tensor([200.6, 200.4, 0.0, 255.0]).reshape(1, 1, 2, 2).expand(1, channels, 2, 2)
    save_images(x / 127.5 - 1, 1, tmp_path / "new" / "x.png")
    picture = Image.open(tmp_path / "new" / "x.png").convert("RGB")
    found = [picture.getpixel((4 * k, 4 * i)) for i in (0, 1) for k in (0, 1)]
    assert found == [(level,) * 3 for level in (201, 200, 0, 255)]


def test_a_picture_that_cannot_be_written_leaves_the_old_one_and_names_the_path(
    tmp_path, monkeypatch
):
    file, x = tmp_path / "x.png", torch.zeros(1, 1, 2, 2)
    file.write_text("the old one")

    def full(*given, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="x.png could not be written .*untouched"):
        save_images(x, 1, file)
    assert file.read_text() == "the old one" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("side", [8, 32])
def test_ten_images_in_a_row_are_ninety_pixels_wide_each(side):
    fig = image_rows({"one": torch.zeros(10, 3, side, side), "two": torch.zeros(10, 3, side, side)})
    fig.canvas.draw()
    for axis in fig.axes:
        (picture,) = axis.images
        assert picture.get_window_extent().width / 10 >= 90


def test_panels_stand_side_by_side_each_under_its_title():
    fig = image_panels({"one": torch.zeros(1, 1, 8, 8), "two": torch.zeros(1, 1, 8, 8)})
    fig.canvas.draw()
    left, right = (axis.get_window_extent() for axis in fig.axes)
    assert left.x1 < right.x0 and left.y0 == right.y0
    assert [axis.get_title("left") for axis in fig.axes] == ["one", "two"]


def test_rows_that_differ_in_their_seed_alone_are_one_point_with_its_spread():
    about = {"model": "student", "sampler": "ddim", "nfe": 4}
    rows = [{**about, "w": w, "recall": v} for w in (0.0, 3.0) for v in (0.2, 0.4, 0.6)]
    fig = quality_against_nfe(rows, ["recall"])
    assert [axis.get_title() for axis in fig.axes] == ["Recall, w = 0", "Recall, w = 3"]
    line, _, (bar,) = fig.axes[1].containers[0]
    assert line.get_xydata().tolist() == [[4, pytest.approx(0.4)]]
    assert bar.get_segments()[0][:, 1].tolist() == pytest.approx([0.2, 0.6])
