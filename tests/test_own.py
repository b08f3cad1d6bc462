"""Images of one's own through the whole course, from outside: no file of the package knows them."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image as Pillow
from test_folder import photos, table

import cfgdistill as cd
import cfgdistill.course.own as own
import cfgdistill.course.stages as stages
from cfgdistill.cli import main
from cfgdistill.course.recipes import as_recipe
from cfgdistill.data.base import Data
from cfgdistill.teachers.stable_diffusion import tiny_pipeline
from cfgdistill.training.loop import train
from cfgdistill.training.optim import Optim
from cfgdistill.training.state import Run

# A few updates of the smallest network that has all parts.
QUICK = {
    **{"channels": (8, 16), "batch": 8, "classifier": 2, "teacher": 2, "stage_one": 2},
    **{"halving": 1, "start": 2, "samples": 4},
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("CFGDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CI", "1")  # no bars
    monkeypatch.chdir(tmp_path)


def told(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


# ---- the recipe ----------------------------------------------------------------------------------


def test_larger_images_fall_into_larger_squares_so_that_the_network_sees_as_many_places():
    for size, patch in ((16, 1), (32, 2), (48, 3), (64, 4), (128, 8)):
        recipe = cd.recipe_like("cifar10/laptop", "mine", size=size)
        row = cd.get_recipe("cifar10", "laptop")
        assert recipe.patch == patch and recipe.size == size and recipe.mirror
        assert (recipe.dataset, recipe.like, recipe.source) == ("mine", "cifar10", "")
        same = {"patch", "size", "dataset", "like", "source", "mirror"}
        assert {k: v for k, v in asdict(recipe).items() if k not in same} == {
            k: v for k, v in asdict(row).items() if k not in same
        }


def test_attention_stays_at_the_resolutions_at_which_the_row_has_it():
    """Sides 32, 16, 8 become 24, 12, 6."""
    assert cd.recipe_like("cifar10/colab", "mine", size=48).attention == (12, 6)
    assert cd.recipe_like("cifar10/colab", "mine", size=64).attention == (16, 8)


def test_a_size_that_falls_into_no_squares_is_refused_with_one_that_does():
    with pytest.raises(ValueError, match="size=50 does not fall .* ask for size=48"):
        cd.recipe_like("cifar10/laptop", "mine", size=50)


def test_a_recipe_of_ones_own_comes_back_from_a_card():
    recipe = cd.recipe_like("cifar10/smoke", "mine", size=64, source="photos", w_max=2.0)
    assert as_recipe(json.loads(json.dumps(asdict(recipe)))) == recipe


def test_an_entry_that_a_card_does_not_name_has_its_default_and_not_that_of_the_row_today():
    row = cd.get_recipe("emoji", "laptop")
    kept = {key: value for key, value in asdict(row).items() if key != "scale_shift"}
    assert row.scale_shift and as_recipe(kept) == replace(row, scale_shift=False)


def test_a_name_of_the_table_is_refused():
    with pytest.raises(ValueError, match="give the folder another name"):
        cd.recipe_like("cifar10/laptop", "digits", size=32)


def test_imagenet64_at_paper_is_the_published_network_and_its_reader_wants_1000_classes(
    monkeypatch, tmp_path
):
    recipe = cd.get_recipe("imagenet64", "paper")
    assert recipe.channels == tuple(192 * k for k in (1, 2, 3, 4)) and recipe.layers == 3
    assert recipe.attention == (32, 16, 8) and recipe.batch == 2048 and recipe.rate == 3e-4
    asked = []

    def hub(name, configuration):
        asked.append(name)
        rows = table(size=(64, 64), label=[0, 999, 1, 0], classes=1000)
        return {"train": rows, "validation": rows}

    monkeypatch.delenv("CFGDISTILL_DATA", raising=False)
    monkeypatch.setattr("datasets.load_dataset", hub)
    data = cd.load_data("imagenet64", "test")
    assert asked == ["benjamin-paine/imagenet-1k-64x64"] and data.num_classes == 1000
    assert (data.name, data.split, data.shape, data.mirror) == (
        "imagenet64",
        "test",
        (3, 64, 64),
        1,
    )
    photos(tmp_path / "imagenet64", size=(64, 64))
    monkeypatch.setenv("CFGDISTILL_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="1,000 classes, and 2 are there"):
        cd.load_data("imagenet64")


# ---- from outside --------------------------------------------------------------------------------


def test_a_data_set_made_outside_goes_through_all_stages(capsys):
    noise = torch.randint(256, (40, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 3
    data = Data("blots", "train", noise.to(torch.uint8), labels, ("a", "b", "c"), levels=255)
    recipe = cd.recipe_like("cifar10/smoke", data.name, size=16, **QUICK)
    students = list(stages.train_stage_two(recipe, data, "out"))
    assert [s.steps for s in students] == [2, 1] and Path("out/blots-smoke/teacher").is_dir()
    judge = stages.make_judge(recipe, data, "out")
    how = {"model": "student", "steps": [1], "weights": [1.0]}
    [row] = stages.evaluate_rows(students[-1], judge, data, recipe, "out", **how)
    assert row["nfe"] == 1
    folder = "out/blots-smoke/stage-two/steps-1"
    assert told(capsys, "sample", folder, "--n", 3)[0] == 0
    code, _, err = told(capsys, "evaluate", folder)
    assert code == 1 and "Only whoever made the data blots in Python has them" in err


def test_a_folder_goes_to_a_stock_student_on_the_command_line(capsys):
    photos(Path("my photos"), ["cats", "dogs"], each=6, size=(20, 16))
    changes = [x for k, v in QUICK.items() for x in ("--set", f"{k}={v}")]
    how = ["--data", "my photos", "--like", "cifar10/smoke", *changes]
    code, out, err = told(capsys, "train", *how)
    assert code == 0 and json.loads(out)["recipe"]["size"] == 16
    assert err.startswith("my-photos: 12 images of 16 x 16, 2 classes; a network of ")
    assert "training takes " in err and "minutes here (classifier " in err
    code, out, err = told(capsys, "distill", *how)
    assert code == 0 and "training takes" not in err
    folder = "out/my-photos-smoke/stage-two/steps-1"
    assert json.loads(out)["models"][-1]["folder"] == folder
    assert told(capsys, "sample", folder, "--n", 4, "--to", "s.png")[0] == 0
    code, out, _ = told(capsys, "evaluate", folder, "--w", 1)
    assert code == 0 and json.loads(out)["meta"]["reference"] == "my-photos train, 12 images"
    assert told(capsys, "export", folder, "--to", "stock")[0] == 0
    assert json.loads(Path("stock/model_index.json").read_text())
    assert "cats, dogs" in Path("stock/README.md").read_text()
    photos(Path("my photos"), ["cats", "dogs"], each=7, size=(20, 16))
    code, _, err = told(capsys, "evaluate", folder)
    assert code == 1 and "trained on other data" in err and "see to my photos" in err


def test_captioned_images_of_ones_own_become_latents(capsys):
    Path("drawn").mkdir()
    for k, colour in enumerate(("red", "blue", "green", "white") * 8):
        Pillow.new("RGB", (32, 32), colour).save(f"drawn/{k}.png")
        Path(f"drawn/{k}.txt").write_text(colour)
    few = {"autoencoder": 2, "vae_channels": (8, 8), "batch": 4, "teacher": 1, "classifier": 1}
    recipe = own.recipe_for("drawn", "emoji/smoke", channels=(8, 16), **few)
    assert recipe.label == "text" and recipe.size == 32
    data = stages.load_recipe_data(recipe, "out")
    assert data.shape == (4, 16, 16) and set(data.class_names) >= {"red"}
    stages.train_teacher(recipe, data, "out")
    assert "32 images of 32 x 32, 4 captions" in own.proposal(recipe, data)
    recipe = own.recipe_for("drawn", "sd/smoke", base=tiny_pipeline("base"))
    data = stages.load_recipe_data(recipe, "out")
    assert recipe.name == "drawn-smoke" and len(data) == 8 and data.images.shape == (3, 16, 16)


def test_a_set_of_the_hub_is_called_by_owner_and_name(monkeypatch):
    rows = table(size=(16, 16), label=[0, 1, 1, 0])
    monkeypatch.setattr("datasets.load_dataset", lambda name, configuration: {"train": rows})
    recipe = own.recipe_for("some-lab/digits", "cifar10/smoke")
    assert recipe.name == "some-lab-digits-smoke" and recipe.size == 16
    data = stages.load_recipe_data(recipe, "out")
    assert data.name == "some-lab-digits" and data.class_names == ("x", "y") and data.mirror


def test_what_does_not_go_together_is_refused_before_any_work(capsys):
    photos(Path("photos"), size=(16, 16))
    for arguments, sentence in (
        (["--like", "cifar10/smoke"], "name them in --data"),
        (["--data", "photos", "--dataset", "digits"], "have no --dataset"),
        (["--data", "photos", "--like", "cifar10/huge"], "huge"),
        (["--data", "nowhere"], "/nowhere: name one that has a folder for each class"),
        (["--data", "photos", "--like", "cifar10/smoke", "--set", "size=32"], "ask for size=16"),
        (["--data", "photos", "--set", "like='digits'"], "like"),
    ):
        code, out, err = told(capsys, "train", *arguments)
        assert code == 1 and sentence in err and err.count("\n") == 1 and not out
    assert not list(Path("out").glob("*"))


def test_a_run_on_mapped_images_resumes_with_the_same_bits():
    photos(Path("photos"), each=20, size=(16, 16))
    recipe = cd.recipe_like("cifar10/smoke", "photos", size=16, source="photos", **QUICK)
    weights = []
    for stop in (None, 3):
        data = stages.load_recipe_data(recipe, "out")
        how = Optim(6, 8, 1e-3), Run("teacher", folder=f"out{stop}")
        net = stages.new_teacher(recipe, data)
        updates = train(net, stages.loss_of_teacher(recipe, data), data, *how)
        for update in updates:
            if update.number == stop:
                updates.close()
                data = cd.from_folder("photos", 16, mirror=True)  # mapped anew
                net = stages.new_teacher(replace(recipe, seed=1), data)
                for _ in train(net, stages.loss_of_teacher(recipe, data), data, *how):
                    pass
                break
        weights.append(torch.cat([p.detach().flatten() for p in net.net.parameters()]))
    assert torch.equal(*weights)


TINY = Path(os.environ.get("CFGDISTILL_DATA") or "none", "tiny-imagenet-50")


@pytest.mark.skipif(not TINY.is_dir(), reason="CFGDISTILL_DATA holds no tiny-imagenet-50")
def test_tiny_imagenet_through_train_both_stages_and_evaluate(capsys):
    how = ["--data", TINY, "--like", "imagenet64/smoke", "--set", "start=4"]
    code, out, err = told(capsys, "train", *how)
    assert code == 0 and "500 images of 64 x 64, 50 classes" in err
    assert told(capsys, "distill", *how)[0] == 0
    folder = "out/tiny-imagenet-50-smoke/stage-two/steps-4"
    code, out, _ = told(capsys, "evaluate", folder, "--w", 0)
    assert code == 0 and json.loads(out)["rows"][0]["nfe"] == 4


@pytest.mark.parametrize("change", [{"images": ()}, {"image": 3}, {"label": ()}, {"seed": "a"}])
def test_an_entry_that_does_not_fit_is_refused_before_images_are_looked_for(change):
    with pytest.raises(ValueError, match=f"^{[*change][0]}="):
        own.recipe_for("nowhere", None, **change)
