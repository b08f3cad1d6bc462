"""Shipped models: whole, honest about what they are, and found by every stage."""

import hashlib
import json
import re
import shutil
import subprocess
import threading
import zlib
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers import script
from PIL import Image

from cfgdistill import cli, get_recipe
from cfgdistill.course import pretrained, stages
from cfgdistill.course.recipes import as_recipe
from cfgdistill.data.autoencoder import VAEEncoder
from cfgdistill.data.named import load_data
from cfgdistill.judge.metrics import Judge
from cfgdistill.teachers import shipped as models
from cfgdistill.teachers.files import load
from cfgdistill.teachers.shipped import copy_pretrained
from cfgdistill.training.checkpoints import read_card, read_tensors

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
    for module in (made, models):
        monkeypatch.setattr(module, "ROOT", tmp_path / "pretrained")
    for known in (models.manifest, models.bases):
        known.cache_clear()
    yield made
    for known in (models.manifest, models.bases):
        known.cache_clear()


@pytest.fixture
def shipped(run, made):
    """The folder of shipped models, with this run as the only one; without its 8-step student."""
    made.main(run, STAGES)
    return made.ROOT


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*given, **more):
        raise AssertionError("something is trained")

    monkeypatch.setattr("cfgdistill.training.loop.State", refuse)


def test_shipped_weights_are_those_of_the_run_in_half_precision(run, shipped, tmp_path):
    assert models.names() == sorted(f"digits/{name}" for name in STAGES)
    for name in STAGES:
        mine, _ = read_tensors(run / name / "model.safetensors")
        copy = copy_pretrained(f"digits/{name}", tmp_path / name)
        theirs, _ = read_tensors(copy / "model.safetensors")
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert theirs[key].dtype == torch.float16
            assert torch.equal(theirs[key], value.half())
    student = load(tmp_path / "stage-two" / "steps-4")
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


def test_a_data_set_without_models_is_trained(shipped, tmp_path):
    recipe = replace(RECIPE, dataset="cifar10")
    assert pretrained.use_pretrained(recipe, tmp_path / "out") == recipe
    assert not (tmp_path / "out").exists()


def test_the_command_line_takes_their_names(shipped, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["digits/stage-two/steps-2", "--n", "3", "--to", "three.png"]
    assert cli.main(["sample", *given]) == 0 and Path("three.png").exists()
    assert json.loads(capsys.readouterr().out)["nfe"] == 2
    assert cli.main(["sample", "digits/stage-two/steps-3"]) == 1
    assert "holds no finished model" in capsys.readouterr().err


def test_a_damaged_file_and_a_wrong_name_are_told_and_leave_nothing(shipped, tmp_path):
    assert models.bases()["digits/stage-two/steps-1"] == "digits/stage-two/steps-2"
    file = shipped / "digits" / "stage-two" / "steps-2" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    for name in ("steps-2", "steps-1"):  # what is stored as a difference from it, too
        with pytest.raises(OSError, match="steps-2.* damaged .*install the package again"):
            copy_pretrained(f"digits/stage-two/{name}", tmp_path / "x")
    file.unlink()
    with pytest.raises(OSError, match="missing"):
        copy_pretrained("digits/stage-two/steps-2", tmp_path / "x")
    with pytest.raises(ValueError, match="did you mean 'digits/teacher'"):
        copy_pretrained("digit/teacher", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(OSError, match="missing"):
        pretrained.use_pretrained(RECIPE, tmp_path / "out")
    assert not list(tmp_path.rglob("*.tmp"))


def test_several_processes_take_the_same_models_at_once(shipped, tmp_path):
    start, failed = threading.Barrier(4), []

    def take():
        start.wait()
        try:
            assert pretrained.use_pretrained(RECIPE, tmp_path) == RECIPE
        except Exception as error:
            failed.append(error)

    takers = [threading.Thread(target=take) for _ in range(4)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    assert not failed
    home = tmp_path / RECIPE.name
    found = {file.relative_to(home).as_posix() for file in home.rglob("*") if file.is_file()}
    each = ("card.json", "model.safetensors")
    assert found == {"training.json", *(f"{name}/{file}" for name in STAGES for file in each)}


def test_copies_can_be_written_to_where_the_package_cannot(shipped, tmp_path):
    for path in shipped.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        pretrained.use_pretrained(RECIPE, tmp_path / "out")
    finally:
        for path in shipped.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
    copies = list((tmp_path / "out").rglob("*"))
    assert copies and all(path.stat().st_mode & 0o200 for path in copies)
    pretrained.use_pretrained(RECIPE, tmp_path / "out")  # and once more, over them


def test_a_copy_of_another_version_of_the_package_gets_the_card_of_this_one(shipped, tmp_path):
    pretrained.use_pretrained(RECIPE, tmp_path)
    card = tmp_path / RECIPE.name / "teacher" / "card.json"
    before = card.read_text()
    card.write_text(before.replace('"prediction_type": "v"', '"prediction_type": "eps"'))
    assert card.read_text() != before
    pretrained.use_pretrained(RECIPE, tmp_path)
    assert card.read_text() == before


def test_what_was_changed_is_trained_and_not_replaced_by_what_is_shipped(shipped, tmp_path):
    plain = get_recipe("digits", "laptop")
    for changes in (dict(w_max=8.0), dict(teacher=5000), dict(weighting="snr"), dict(seed=1)):
        recipe = replace(plain, **changes)
        assert pretrained.use_pretrained(recipe, tmp_path / "out") == recipe
    assert not (tmp_path / "out").exists()
    recipe = replace(plain, samples=7, save_every=9)  # models do not depend on these
    assert pretrained.use_pretrained(recipe, tmp_path / "out") == replace(RECIPE, samples=7)
    assert (tmp_path / "out" / RECIPE.name / "teacher").exists()


def test_a_file_comes_back_to_the_bit_from_its_difference_to_another_one(tmp_path):
    from safetensors.torch import save

    torch.manual_seed(0)
    old = {"a": torch.randn(7, 5).half(), "b": torch.randn(4).half(), "c": torch.randn(3).half()}
    new = {name: value.clone() for name, value in old.items()}
    new["a"][:3] *= 1.01
    new["a"][6, 4], new["a"][5, 0], new["b"][0] = -0.0, torch.nan, torch.inf
    new["c"], new["d"], new["k"] = torch.randn(5).half(), torch.randn(2, 2), torch.arange(3)
    whole, base = save(new, {"state": "{}"}), save(old)
    assert models.restore(models.difference(whole, base), base) == whole
    assert not any(models.difference(base, base)[-2 * (35 + 4 + 3) :])
    teacher = torch.randn(4000).half()
    near, base = save({"a": teacher * 1.001}), save({"a": teacher})
    stored = models.difference(near, base)
    assert len(zlib.compress(stored)) < 0.7 * len(zlib.compress(near))


def test_a_difference_is_counted_in_the_numbers_of_half_precision_that_lie_between():
    from safetensors.torch import save

    # Just above 1 they are 2^-10 apart, just below 2^-11; around 0 are 2^-24, 0, -0 and -2^-24.
    near = [1.0, 1 + 2**-10, 1 - 2**-11, 1 - 2**-10, 2**-24, -(2**-24)]
    base = [1.0, 1.0, 1.0, 1.0, 0.0, 2**-24]
    stored = models.difference(*(save({"a": torch.tensor(a).half()}) for a in (near, base)))
    # Upwards is even and downwards odd: 0, 1, -1, -2, 1, -3 by their low bytes, then their high.
    assert [*stored[-12:]] == [0, 2, 1, 3, 2, 5, *[0] * 6]


def test_what_lacks_its_teacher_or_is_too_large_is_not_shipped(run, made, monkeypatch):
    with pytest.raises(SystemExit, match="teacher of stage-one is not among"):
        made.main(run, ["stage-one"])
    with pytest.raises(SystemExit, match="no finished stage-three"):
        made.main(run, ["stage-three"])
    made.main(run, ["teacher"])
    before = {p: p.is_file() and p.read_bytes() for p in made.ROOT.parent.rglob("*")}
    for limit, sentence in (("MOST_FILE", "Too large"), ("MOST", "A wheel of 0 MB")):
        with monkeypatch.context() as context, pytest.raises(SystemExit, match=sentence):
            context.setattr(made, limit, 1000)
            made.main(run, STAGES)
    with monkeypatch.context() as context, pytest.raises(OSError, match="full"):
        context.setattr(made, "difference", lambda *both: (_ for _ in ()).throw(OSError("full")))
        made.main(run, STAGES)
    now = {p: p.is_file() and p.read_bytes() for p in made.ROOT.parent.rglob("*")}
    assert now == before  # what was shipped goes only when all is made


# ---- text-to-image ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def captioned_run(tmp_path_factory):
    out, few = tmp_path_factory.mktemp("captioned"), dict(autoencoder=2, classifier=2, teacher=2)
    recipe = get_recipe("emoji", "smoke", stage_one=2, halving=1, start=2, **few)
    data = stages.load_recipe_data(recipe, out)
    stages.train_classifier(recipe, data, out)
    list(stages.train_stage_two(recipe, data, out))
    return recipe, out


def test_text_students_are_shipped_without_what_they_share_and_come_back_to_the_bit(
    captioned_run, made, tmp_path, no_training
):
    recipe, out = captioned_run
    made.main(out / recipe.name, [])
    students = made.ROOT / "emoji" / "stage-two"
    assert "\n| stage-two/steps-2 | 3 | " in (students.parent / "README.md").read_text()
    assert models.bases()["emoji/stage-two/steps-1"] == "emoji/stage-two/steps-2"

    mine = pretrained.use_pretrained(get_recipe("emoji", "laptop", samples=5), tmp_path / "out")
    assert mine == replace(recipe, samples=5)
    data = stages.load_recipe_data(mine, tmp_path / "out")
    student, _ = stages.train_stage_two(mine, data, tmp_path / "out")  # the hashes are compared
    trained, _ = read_tensors(out / recipe.name / "stage-two" / "steps-2" / "model.safetensors")
    for key, value in student.net.state_dict().items():
        assert torch.equal(value, trained[key].half().to(value))


# ---- what is shipped in truth -------------------------------------------------------------------


def test_the_manifest_is_that_of_the_files_and_nothing_is_shipped_twice():
    files = [p for p in models.ROOT.rglob("*/*") if p.is_file()]
    found = {
        p.relative_to(models.ROOT).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
    }
    assert found == models.manifest()
    assert len(set(found.values())) == len(found)
    assert not [p for p in models.ROOT.rglob("*") if p.is_symlink()]
    assert max(p.stat().st_size for p in files) <= 16e6


def test_the_wheel_stays_below_the_limit_of_pypi():
    packages = (
        models.ROOT,
        models.ROOT.parent / "emoji",
        Path(pretrained.__file__).parent,
    )
    files = [p for root in packages for p in root.rglob("*") if "__pycache__" not in p.parts]
    # A wheel compresses harder, at level 6: it is about 3 % smaller than this.
    assert sum(len(zlib.compress(p.read_bytes(), 1)) for p in files if p.is_file()) < 100e6


@pytest.mark.parametrize("name", sorted({*models.bases(), *models.bases().values()}))
def test_what_is_shipped_as_a_difference_is_what_its_card_says(name):
    weights = models._weights(name)
    assert hashlib.sha256(weights).hexdigest() == models.shipped_card(name)["sha256"]


def test_git_hands_out_the_same_bytes_on_every_system():
    def git(*command):
        return subprocess.run(
            ["git", "-C", Path(__file__).parents[1], *command], capture_output=True, text=True
        )

    staged, ends = git("ls-files", "-s").stdout, git("ls-files", "--eol").stdout
    if not staged:
        pytest.skip("not a checkout")
    assert "120000 " not in staged  # a link is a text file on Windows
    attributes = {
        line.partition("attr/")[2].partition("\t")[0].strip() for line in ends.split("\n")
    }
    assert attributes <= {"text=auto eol=lf", "-text", ""}  # whatever core.autocrlf says


def test_shipped_text_models_are_accepted_whatever_last_bits_the_autoencoder_computes(
    tmp_path, monkeypatch, no_training
):
    monkeypatch.setattr(VAEEncoder, "measured", None)
    monkeypatch.setattr(VAEEncoder, "encode", lambda self, x: torch.randn(len(x), 4, 16, 16))
    recipe = pretrained.use_pretrained(get_recipe("emoji", "laptop"), tmp_path)
    data = stages.load_recipe_data(recipe, tmp_path)
    stages.train_classifier(recipe, data, tmp_path)
    assert [s.steps for s in stages.train_stage_two(recipe, data, tmp_path)] == [8, 4, 2, 1]


@pytest.mark.parametrize("name", models.names())
def test_a_shipped_model_is_of_a_recipe_in_the_table(name):
    recipe = as_recipe(read_card(models.ROOT / name)["recipe"])
    row = get_recipe(recipe.dataset, recipe.profile)
    same = {key: getattr(recipe, key) for key in pretrained.CHANGEABLE}
    assert recipe == replace(row, **same, negatives="-negatives" in name)
    assert recipe.dataset == name.split("/")[0]


README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n")[0])
def test_the_python_code_of_the_readme_runs_as_it_stands(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CFGDISTILL_CACHE", str(tmp_path / "cache"))
    if "from_pretrained" in block:
        (line,) = re.findall(r"^cfgdistill (export emoji/.*)$", README.read_text(), re.MULTILINE)
        assert cli.main(line.split()) == 0
    for kind in ("cats", "dogs"):
        Path("photos", kind).mkdir(parents=True)
        for i in range(2):
            noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(noise).save(f"photos/{kind}/{i}.png")
    exec(block, names := {})
    shapes = {"images": (3, 3, 32, 32), "pictures": (2, 3, 32, 32)}
    for name, shape in shapes.items():
        if name in names:
            assert names[name].shape == shape and names[name].abs().max() <= 1


def test_rows_of_a_long_measurement_are_made_once_and_found_where_they_are_shipped(
    made, shipped, tmp_path, capsys
):
    judge, count = Mock(spec=Judge), iter(range(9))
    judge.name, judge.reference = "a judge", "digits train"

    def rows(again: bool):
        make = lambda: [{"number": next(count)}]  # noqa: E731
        return pretrained.measured("counted", make, RECIPE, judge, tmp_path, again=again)

    assert rows(False) == [{"number": 0}] and "were made here" in capsys.readouterr().out
    made.ship_rows(tmp_path / "digits-counted.json")
    models.manifest.cache_clear()
    assert rows(False) == [{"number": 0}]
    said = capsys.readouterr().out
    assert "come with the package" in said and "samples 30, seed 0, judge a judge" in said
    assert rows(True) == [{"number": 1}]
