"""A whole recipe, tiny: every stage finds, resumes or trains its model, and knows its teacher."""

import json
from dataclasses import asdict

import pytest
import torch

from cfgdistill import ddim, get_recipe, last, stages
from cfgdistill.checkpoints import read_card
from cfgdistill.data import load_data
from cfgdistill.unets import load

TINY = dict(
    channels=(8, 16), batch=4, classifier=2, teacher=3, stage_one=2, halving=1, start=4, images=40
)
RECIPE = get_recipe("digits", "smoke", **TINY)
DATA = load_data("digits", images=40)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The finished folder of one tiny run."""
    out = tmp_path_factory.mktemp("out")
    stages.train_classifier(RECIPE, DATA, out)
    list(stages.train_stage_two(RECIPE, DATA, out))
    return out


def bits(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def files(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*.safetensors")}


def test_a_run_leaves_one_finished_folder_per_model_and_its_recipe(out):
    folder = out / "digits-smoke"
    models = {str(card.parent.relative_to(folder)) for card in folder.rglob("card.json")}
    students = {f"stage-two/steps-{n}" for n in (4, 2, 1)}
    assert models == {"classifier", "teacher", "stage-one"} | students
    assert not list(folder.rglob("training.safetensors"))
    for name in models:
        assert read_card(folder / name)["recipe"] == json.loads(json.dumps(asdict(RECIPE)))


def test_a_finished_run_is_loaded_and_not_trained_again(out):
    before = files(out)
    students = list(stages.train_stage_two(RECIPE, DATA, out))
    stages.train_classifier(RECIPE, DATA, out)
    assert files(out) == before and len(before) == 6
    assert [s.steps for s in students] == [4, 2, 1]
    for student in students:
        kept = load(out / "digits-smoke" / "stage-two" / f"steps-{student.steps}")
        own, other = bits(student), bits(kept)
        assert all(torch.equal(own[key], other[key]) for key in own)


def test_every_model_names_what_it_was_made_from(out):
    folder = out / "digits-smoke"
    cards = {p.name: read_card(p) for p in (folder / "teacher", folder / "stage-one")}
    assert cards["teacher"]["about"]["data"] == DATA.hash
    assert cards["stage-one"]["about"]["teacher"] == cards["teacher"]["sha256"]
    for n in (4, 2, 1):
        about = read_card(folder / "stage-two" / f"steps-{n}")["about"]
        assert about["teacher"] == cards["stage-one"]["sha256"]


def test_the_recipes_numbers_reach_the_models(out):
    folder = out / "digits-smoke"
    teacher, one = read_card(folder / "teacher"), read_card(folder / "stage-one")
    assert (len(teacher["losses"]), len(one["losses"])) == (3, 2)
    assert (teacher["about"]["rate"], one["about"]["rate"]) == (RECIPE.rate, RECIPE.rate_one)
    assert teacher["about"]["ema"] == one["about"]["ema"] == RECIPE.ema
    assert one["about"]["faster"] == {"cond_proj": RECIPE.w_rate}
    two = read_card(folder / "stage-two" / "steps-4")
    assert two["about"]["rate"] == RECIPE.rate_two and two["model"]["w_range"] == [0.0, 4.0]


def test_the_same_recipe_elsewhere_gives_the_same_bits_and_the_same_samples(out, tmp_path):
    teacher = stages.train_teacher(RECIPE, DATA, tmp_path)
    student = stages.train_stage_one(RECIPE, DATA, tmp_path)
    z, cond = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    for name, model, w in (("teacher", teacher, None), ("stage-one", student, 2.0)):
        first = load(out / "digits-smoke" / name)
        a, b = bits(first), bits(model)
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert torch.equal(*(last(ddim(m, z, 2, cond, w)) for m in (first, model)))


def test_minutes_are_known_for_every_finished_model(out):
    minutes = stages.training_minutes(RECIPE, out)
    students = {f"stage-two/steps-{n}" for n in (4, 2, 1)}
    assert minutes.keys() == {"classifier", "teacher", "stage-one"} | students
    assert all(0 <= m < 5 for m in minutes.values())


def test_rows_are_computed_once_and_found_again(out, monkeypatch):
    student = load(out / "digits-smoke" / "stage-two" / "steps-2")
    recipe = get_recipe("digits", "smoke", **TINY, samples=20)
    judge = stages.make_judge(recipe, DATA, out)
    given = dict(model="student", steps=[2], weights=[0.0, 3.0])
    rows = stages.evaluate_rows(student, judge, DATA, recipe, out, **given)
    assert [(r["steps"], r["nfe"], r["w"]) for r in rows] == [(2, 2, 0.0), (2, 2, 3.0)]
    calls = []
    monkeypatch.setattr(stages, "evaluate", lambda *a, **more: calls.append(more["w"]) or {})
    assert stages.evaluate_rows(student, judge, DATA, recipe, out, **given) == rows
    assert calls == []
    with torch.no_grad():
        student.net.unet.conv_out.bias += 1  # another model: other rows
    stages.evaluate_rows(student, judge, DATA, recipe, out, **given)
    assert calls == [0.0, 3.0]


def test_a_changed_recipe_refuses_the_folder_of_the_old_one(out):
    changed = get_recipe("digits", "smoke", **{**TINY, "teacher": 4})
    with pytest.raises(ValueError, match="holds another run: updates is 3 there and 4 here"):
        stages.train_teacher(changed, DATA, out)


def test_other_data_is_refused_too(out):
    with pytest.raises(ValueError, match="holds another run: data is"):
        stages.train_teacher(RECIPE, load_data("digits", images=39), out)
