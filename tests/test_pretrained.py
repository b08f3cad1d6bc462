"""Shipped models: whole, honest about what they are, and found by every stage."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import script

from cfgdistill import cli, ddim, get_recipe, last, pretrained, stages
from cfgdistill.checkpoints import read_card, read_tensors
from cfgdistill.config import as_recipe
from cfgdistill.data import load_data
from cfgdistill.encoders import VAEEncoder
from cfgdistill.pretrained import use_pretrained
from cfgdistill.unets import load

TINY = dict(channels=(8, 16), batch=4, classifier=2, teacher=3, stage_one=2, halving=1, start=8)
RECIPE = get_recipe("digits", "smoke", **TINY)
DATA = load_data("digits")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run, finished."""
    out = tmp_path_factory.mktemp("run")
    stages.train_classifier(RECIPE, DATA, out)
    list(stages.train_stage_two(RECIPE, DATA, out))
    home = out / RECIPE.name
    for other in ("encoder/steps-8", "stage-one-weighting=snr"):  # a stage, and a comparison
        shutil.copytree(home / "stage-one", home / other)
    return home


STAGES = ["classifier", "teacher", "stage-one", *(f"stage-two/steps-{n}" for n in (4, 2, 1))]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """make_pretrained.py; what it makes is all that is shipped."""
    made = script("make_pretrained")
    for module in (made, pretrained):
        monkeypatch.setattr(module, "ROOT", tmp_path / "pretrained")
    pretrained.manifest.cache_clear()
    yield made
    pretrained.manifest.cache_clear()


@pytest.fixture
def shipped(run, made):
    """The folder of shipped models, with this run as the only one; without its 8-step student."""
    made.main(run, STAGES)
    return made.ROOT


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*given, **more):
        raise AssertionError("something is trained")

    monkeypatch.setattr("cfgdistill.training._Run", refuse)
    monkeypatch.setattr("cfgdistill.training._adam", refuse)


def test_shipped_weights_are_those_of_the_run_in_half_precision(run, shipped):
    assert pretrained.names() == sorted(f"digits/{name}" for name in STAGES)
    for name in STAGES:
        mine, _ = read_tensors(run / name / "model.safetensors")
        theirs, _ = read_tensors(pretrained.pretrained(f"digits/{name}") / "model.safetensors")
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert theirs[key].dtype == torch.float16
            assert torch.equal(theirs[key], value.half())
    student = load(pretrained.pretrained("digits/stage-two/steps-4"))
    assert student.steps == 4 and next(student.parameters()).dtype == torch.float32


def test_the_card_and_the_cost_count_what_is_not_shipped_too(shipped, tmp_path):
    spent = json.loads((shipped / "digits" / "training.json").read_text())
    chain = [*STAGES[:3], *(f"stage-two/steps-{n}" for n in (8, 4, 2, 1))]
    assert list(spent) == [*chain, "encoder/steps-8"]
    assert [one["updates"] for one in spent.values()] == [2, 3, 2, 1, 3, 3, 3, 2]
    assert {one["cores"] for one in spent.values()} == {torch.get_num_threads()}
    card = (shipped / "digits" / "README.md").read_text().splitlines()
    students = [line for line in card if line.startswith("| stage-two/")]
    assert [line.split("|")[-2].strip() for line in students] == ["", "yes", "yes", "yes"]
    recipe = pretrained.use_pretrained(RECIPE, tmp_path / "out")
    minutes = {name: spent[name]["minutes"] for name in chain}
    assert stages.training_minutes(recipe, tmp_path / "out") == dict(sorted(minutes.items()))


def test_every_stage_finds_its_work_done_and_the_first_student_is_not_missed(
    shipped, tmp_path, no_training
):
    out = tmp_path / "out"
    recipe = pretrained.use_pretrained(get_recipe("digits", "laptop", samples=7), out)
    assert recipe == replace(RECIPE, samples=7)
    stages.train_classifier(recipe, DATA, out)
    assert [s.steps for s in stages.train_stage_two(recipe, DATA, out)] == [4, 2, 1]


def test_a_run_of_ones_own_is_not_mixed_with_shipped_models(shipped, tmp_path):
    out = tmp_path / "out"
    stages.train_teacher(RECIPE, DATA, out)  # in 32 bits: another file
    before = sorted(out.rglob("*"))
    assert pretrained.use_pretrained(RECIPE, out) == RECIPE
    assert sorted(out.rglob("*")) == before

    begun = tmp_path / "begun"
    (begun / RECIPE.name / "teacher").mkdir(parents=True)  # and not finished
    pretrained.use_pretrained(RECIPE, begun)
    assert sorted(begun.rglob("*")) == [begun / RECIPE.name, begun / RECIPE.name / "teacher"]


@pytest.mark.parametrize("other", [dict(seed=1), dict(dataset="cifar10")])
def test_another_seed_or_data_set_is_trained(shipped, tmp_path, other):
    recipe = replace(RECIPE, **other)
    assert pretrained.use_pretrained(recipe, tmp_path / "out") == recipe
    assert not (tmp_path / "out").exists()


def test_the_command_line_takes_their_names(shipped, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["digits/stage-two/steps-2", "--n", "3", "--to", "three.png"]
    assert cli.main(["sample", *given]) == 0 and Path("three.png").exists()
    assert json.loads(capsys.readouterr().out)["nfe"] == 2
    assert cli.main(["sample", "digits/stage-two/steps-3"]) == 1
    assert "holds no finished model" in capsys.readouterr().err


def test_a_damaged_file_and_a_wrong_name_are_told(shipped):
    file = shipped / "digits" / "teacher" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(OSError, match="damaged .*install the package again"):
        pretrained.pretrained("digits/teacher")
    file.unlink()
    with pytest.raises(OSError, match="missing"):
        pretrained.pretrained("digits/teacher")
    with pytest.raises(ValueError, match="did you mean 'digits/teacher'"):
        pretrained.pretrained("digit/teacher")


def test_what_lacks_its_teacher_or_is_too_large_is_not_shipped(run, made, monkeypatch):
    with pytest.raises(SystemExit, match="teacher of stage-one is not among"):
        made.main(run, ["stage-one"])
    with pytest.raises(SystemExit, match="no finished stage-three"):
        made.main(run, ["stage-three"])
    monkeypatch.setattr(made, "MOST_FILE", 1000)
    with pytest.raises(SystemExit, match="Too large"):
        made.main(run, ["teacher"])


# ---- text-to-image ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def captioned_run(tmp_path_factory):
    out, few = tmp_path_factory.mktemp("captioned"), dict(autoencoder=2, classifier=2, teacher=2)
    recipe = get_recipe("emoji", "smoke", stage_one=2, halving=1, start=2, **few)
    data = stages.load_recipe_data(recipe, out)
    stages.train_classifier(recipe, data, out)
    list(stages.train_stage_two(recipe, data, out))
    return recipe, out


def test_text_students_are_shipped_for_stock_diffusers_and_come_back_to_the_bit(
    captioned_run, made, tmp_path, no_training
):
    from diffusers import StableDiffusionPipeline

    recipe, out = captioned_run
    made.main(out / recipe.name, [])
    shipped = made.ROOT / "emoji" / "stage-two" / "steps-2"
    assert not (shipped / "model.safetensors").exists()
    for part, linked in (("unet", False), ("vae", True), ("text_encoder", True)):
        (weights,) = (shipped / part).glob("*.safetensors")
        once = shipped.parent / "steps-1" / part / weights.name  # comes first, and is shared
        assert weights.resolve() == (once if linked else weights) and not once.is_symlink()
    assert "\n| stage-two/steps-2 | 3 | " in (made.ROOT / "emoji" / "README.md").read_text()

    mine = pretrained.use_pretrained(get_recipe("emoji", "laptop", samples=5), tmp_path / "out")
    assert mine == replace(recipe, samples=5)
    data = stages.load_recipe_data(mine, tmp_path / "out")
    student, _ = stages.train_stage_two(mine, data, tmp_path / "out")  # the hashes are compared
    pipe = StableDiffusionPipeline.from_pretrained(shipped)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, *data.shape, generator=torch.Generator().manual_seed(0))
    how = dict(num_inference_steps=2, guidance_scale=2.0, latents=noise, output_type="latent")
    theirs = pipe(["red heart"], **how).images
    torch.testing.assert_close(
        theirs,
        last(ddim(student, noise, 2, data.text.tokens(["red heart"]), 1.0)),
        atol=1e-4,
        rtol=0,
    )


# ---- what is shipped in truth -------------------------------------------------------------------


def test_the_manifest_is_that_of_the_files_and_they_are_small_enough():
    files = [p for p in pretrained.ROOT.rglob("*/*") if p.is_file()]
    found = {
        str(p.relative_to(pretrained.ROOT)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
    }
    assert found == pretrained.manifest()
    sizes = [p.lstat().st_size for p in files]
    assert max(sizes, default=0) <= 16e6 and sum(sizes) <= 120e6


def test_shipped_text_models_are_accepted_whatever_last_bits_the_autoencoder_computes(
    tmp_path, monkeypatch, no_training
):
    monkeypatch.setattr(VAEEncoder, "measured", None)
    monkeypatch.setattr(VAEEncoder, "encode", lambda self, x: torch.randn(len(x), 4, 16, 16))
    recipe = pretrained.use_pretrained(get_recipe("emoji", "laptop"), tmp_path)
    data = stages.load_recipe_data(recipe, tmp_path)
    stages.train_classifier(recipe, data, tmp_path)
    assert [s.steps for s in stages.train_stage_two(recipe, data, tmp_path)] == [8, 4, 2, 1]


@pytest.mark.parametrize("name", pretrained.names())
def test_a_shipped_model_is_of_a_recipe_in_the_table(name):
    recipe = as_recipe(read_card(pretrained.ROOT / name)["recipe"])
    assert recipe == get_recipe(recipe.dataset, recipe.profile)
    assert recipe.dataset == name.split("/")[0]


README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n")[0])
def test_the_python_code_of_the_readme_runs_as_it_stands(block, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(README.parent / "data")
    monkeypatch.chdir(tmp_path)
    use_pretrained(get_recipe("digits", "laptop"), "out/demo")  # else it trains, which takes longer
    torch.manual_seed(0)
    exec(block, names := {})
    if "images" in names:
        assert names["images"].shape == (10, 1, 8, 8) and names["images"].isfinite().all()
