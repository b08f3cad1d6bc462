"""A whole recipe, tiny: every stage finds, resumes or trains its model, and knows its teacher."""

import gc
import inspect
import json
import math
import shutil
import weakref
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from helpers import unet_of

from cfgdistill import GuidedDenoiser, ancestral, ddim, get_recipe, last, stochastic
from cfgdistill.course import stages
from cfgdistill.data.named import load_data
from cfgdistill.teachers.files import load
from cfgdistill.training.checkpoints import fingerprint, read_card
from cfgdistill.training.randomness import Draw

TINY = dict(channels=(8, 16), batch=4, classifier=2, teacher=3, stage_one=2, halving=1, start=4)
TINY |= dict(images=40, late_rate=2.0, batch_distill=2)
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


def test_an_option_that_diffusers_adds_makes_another_network_only_where_it_is_used(
    out, monkeypatch
):
    before, init = files(out), UNet2DConditionModel.__init__
    known = fingerprint(load(out / "digits-smoke" / "teacher"))

    def newer(self, *given, fake_option=False, **more):
        init(self, *given, **more)
        self.register_to_config(fake_option=fake_option or newer.used)

    old = inspect.signature(init)
    added = inspect.Parameter("fake_option", inspect.Parameter.KEYWORD_ONLY, default=False)
    newer.__signature__ = old.replace(parameters=[*old.parameters.values(), added])
    monkeypatch.setattr(UNet2DConditionModel, "__init__", newer)
    newer.used = False
    again = stages.train_teacher(RECIPE, DATA, out)
    assert again.describe()["net"]["fake_option"] is False
    assert files(out) == before and fingerprint(again) == known
    newer.used = True
    with pytest.raises(ValueError, match="net.net.fake_option is None there and True here"):
        stages.train_teacher(RECIPE, DATA, out)
    assert fingerprint(load(out / "digits-smoke" / "teacher")) != known


def test_the_stage_one_network_is_let_go_once_it_has_taught_the_first_student(out, monkeypatch):
    train_stage_one, kept = stages.train_stage_one, []

    def watched(*given):
        student = train_stage_one(*given)
        kept.append(weakref.ref(student))
        return student

    monkeypatch.setattr(stages, "train_stage_one", watched)
    students = stages.train_stage_two(RECIPE, DATA, out)
    next(students)
    gc.collect()
    assert len(kept) == 1 and kept[0]() is None


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
    assert one["about"]["faster"] == {"cond_proj": RECIPE.w_rate, "time_emb": RECIPE.time_rate}
    two = {n: read_card(folder / "stage-two" / f"steps-{n}") for n in (4, 2, 1)}
    rates, rate = [card["about"]["rate"] for card in two.values()], RECIPE.rate_two
    assert rates == [rate, 2 * rate, 2 * rate]
    batches = [card["about"]["batch"] for card in (teacher, one, *two.values())]
    assert batches == [4, 2, 2, 2, 2]
    assert two[4]["model"]["w_range"] == [0.0, 4.0]


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


def test_rows_say_how_much_guidance_was_delivered(out, monkeypatch):
    """A teacher delivers what it is asked for; a "student" that halves w delivers half of it."""
    teacher = GuidedDenoiser(load(out / "digits-smoke" / "teacher"), DATA.null).eval()
    recipe = get_recipe("digits", "smoke", **TINY, samples=20)
    judge, weights = stages.make_judge(recipe, DATA, out), stages.w_ladder(recipe)
    assert weights == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0]
    few = get_recipe("digits", "smoke", **TINY, samples=12)
    ladder = stages.teachers_own(teacher, DATA, few, out, steps=4, weights=weights)
    given = dict(judge=judge, data=DATA, recipe=recipe, out=out, steps=[4], ladder=ladder)
    rows = stages.evaluate_rows(teacher, model="teacher", weights=[0.0, 0.5, 3.0, 4.0], **given)
    assert [row["delivered_w"] for row in rows] == [0.0, 0.5, 3.0, 4.0]
    half = GuidedDenoiser(teacher.denoiser, DATA.null).eval()
    half.forward = lambda z, t, cond, w: GuidedDenoiser.forward(half, z, t, cond, w / 2)
    half.describe = lambda: {"asks": "for half"}
    rows = stages.evaluate_rows(half, model="student", weights=[0.0, 1.0, 4.0], **given)
    assert [row["delivered_w"] for row in rows] == [0.0, 0.5, 2.0]
    monkeypatch.setattr(stages, "delivered_by_samples", None)  # found again
    assert stages.evaluate_rows(half, model="student", weights=[0.0, 1.0, 4.0], **given) == rows
    monkeypatch.setattr(stages, "delivered_by_samples", lambda x, ladder: 9.0)
    other = stages.Truth(ladder, "another teacher")
    (row,) = stages.evaluate_rows(half, model="student", weights=[1.0], **given | {"ladder": other})
    assert row["delivered_w"] == 9.0


def test_rows_of_the_same_weights_that_mean_something_else_are_computed_again(out, monkeypatch):
    student = load(out / "digits-smoke" / "stage-two" / "steps-2")
    recipe = get_recipe("digits", "smoke", **TINY, samples=20)
    judge = stages.make_judge(recipe, DATA, out)
    calls = []
    monkeypatch.setattr(stages, "evaluate", lambda *a, **more: calls.append(more["w"]) or {})

    def evaluated(model=student, judge=judge, **more):
        calls.clear()
        given = dict(model="student", steps=[2], weights=[1.0], **more)
        stages.evaluate_rows(model, judge, DATA, recipe, out, **given)
        return calls != []

    other = stages.Judge(judge.classifier, load_data("digits", "test"))
    truth = {1.0: torch.zeros(20, 1, 8, 8)}
    known = stages.Truth(truth, "a teacher")
    assert evaluated() and not evaluated()
    assert evaluated(judge=other) and not evaluated(judge=other)
    assert evaluated(truth=known) and not evaluated(
        truth=stages.Truth({1.0: truth[1.0] + 1}, "a teacher")
    )
    assert evaluated(truth=stages.Truth(truth, "another"))
    assert evaluated(truth=truth) and evaluated(truth=truth)  # nobody knows what they are
    with torch.autocast("cpu", torch.bfloat16):
        assert evaluated() and not evaluated()
    student.prediction_type = "x"
    assert evaluated()


def test_a_changed_recipe_refuses_the_folder_of_the_old_one(out):
    changed = get_recipe("digits", "smoke", **{**TINY, "teacher": 4})
    with pytest.raises(ValueError, match="holds another run: updates is 3 there and 4 here"):
        stages.train_teacher(changed, DATA, out)


def test_other_data_is_refused_too(out):
    with pytest.raises(ValueError, match="holds another run: data is"):
        stages.train_teacher(RECIPE, load_data("digits", images=39), out)


# ---- the paper's comparisons: changed rows of the table -----------------------------------------


def tiny(**changes):
    return get_recipe("digits", "smoke", **{**TINY, **changes})


@pytest.fixture
def own(out, tmp_path):
    """A copy of the finished folder, to add models to."""
    return Path(shutil.copytree(out, tmp_path / "own"))


def test_a_folder_names_what_differs_from_the_tables_row_and_nothing_else():
    def folder(stage, depends, **changes):
        return str(stages.stage_folder(tiny(**changes), "out", stage, depends))

    plain = dict(weighting="snr_plus_one", w_power=3.0)  # as in the table
    assert folder("stage-one", stages.STAGE_ONE) == "out/digits-smoke/stage-one"
    assert folder("stage-one", stages.STAGE_ONE, **plain) == "out/digits-smoke/stage-one"
    changes = dict(weighting="snr", pretrained=False, w_max=2.0)
    known = "out/digits-smoke/stage-two-w_max=2.0-weighting=snr-pretrained=False"
    assert folder("stage-two", stages.STAGE_ONE, **changes) == known
    known = "out/digits-smoke/two-students-weighting=snr-pretrained=False"
    assert folder("two-students", stages.TWO_STUDENTS, **changes) == known
    assert folder("teacher", stages.TEACHER, **changes) == "out/digits-smoke/teacher"
    known = "out/digits-smoke/teacher-prediction_type=eps"
    assert folder("teacher", stages.TEACHER, prediction_type="eps") == known


def test_variants_have_students_of_their_own_and_share_teacher_and_classifier(own):
    before, variant = files(own), tiny(weighting="snr", w_min=1.0, w_max=1.0, w_power=1.0)
    stages.train_classifier(variant, DATA, own)
    students = list(stages.train_stage_two(variant, DATA, own))
    after, folder = files(own), own / "digits-smoke"
    assert {path: after[path] for path in before} == before
    changed = "w_min=1.0-w_max=1.0-w_power=1.0-weighting=snr"
    added = {str(path.parent.relative_to(folder)) for path in after.keys() - before.keys()}
    assert added == {f"stage-one-{changed}"} | {f"stage-two-{changed}/steps-{n}" for n in (4, 2, 1)}
    one = read_card(folder / f"stage-one-{changed}")
    assert one["about"]["teacher"] == read_card(folder / "teacher")["sha256"]
    # A student of one w is the same network, asked for that w only.
    assert all(student.w_range == (1.0, 1.0) for student in students)
    z, cond = torch.zeros(4, 1, 8, 8), torch.arange(4)
    assert last(ddim(students[1], z, 2, cond, 1.0)).shape == z.shape
    with pytest.raises(ValueError, match=r"w = 2 is outside \[1, 1\]"):
        ddim(students[1], z, 2, cond, 2.0)


@pytest.mark.parametrize(
    ("sampler", "name"), [("stochastic", "stage-two-stochastic"), ("ddim_encode", "encoder")]
)
def test_students_of_every_sampler_have_their_folders_and_the_same_teacher(own, sampler, name):
    before, folder = files(own), own / "digits-smoke"
    students = list(stages.train_stage_two(RECIPE, DATA, own, sampler))
    assert [(s.steps, s.sampler) for s in students] == [(n, sampler) for n in (4, 2, 1)]
    added = files(own).keys() - before.keys()
    assert {path.parent for path in added} == {folder / name / f"steps-{n}" for n in (4, 2, 1)}
    about = read_card(folder / name / "steps-4")["about"]
    assert about["teacher"] == read_card(folder / "stage-one")["sha256"]
    with pytest.raises(ValueError, match=f"for the sampler '{sampler}', not 'ddim'"):
        ddim(load(folder / name / "steps-2"), torch.zeros(2, 1, 8, 8), 2, torch.arange(2), 1.0)


def test_the_minutes_of_the_course_leave_out_comparisons_and_other_samplers(own):
    before = stages.training_minutes(RECIPE, own)
    list(stages.train_stage_two(RECIPE, DATA, own, "ddim_encode"))
    stages.train_stage_one(tiny(weighting="snr"), DATA, own)
    assert (own / RECIPE.name / "stage-one-weighting=snr" / "card.json").exists()
    assert stages.training_minutes(RECIPE, own) == before


def test_an_unknown_sampler_names_the_near_one_and_trains_nothing(tmp_path):
    with pytest.raises(
        ValueError, match="There is no sampler 'ddim_encoder': did you mean 'ddim_e"
    ):
        next(stages.train_stage_two(RECIPE, DATA, tmp_path, "ddim_encoder"))
    assert not list(tmp_path.iterdir())


def test_two_students_cost_two_evaluations_per_step_and_refuse_other_steps(own):
    z, cond = torch.zeros(3, 1, 8, 8), torch.arange(3)
    students = list(stages.train_two_students(RECIPE, DATA, own))
    assert [pair.denoiser.steps for pair in students] == [4, 2, 1]
    for pair, steps in zip(students, (4, 2, 1), strict=True):
        pair.nfe = 0
        assert last(ddim(pair, z, steps, cond, 7.5)).shape == z.shape  # any w: it is guidance
        assert pair.nfe == 2 * steps
        with pytest.raises(ValueError, match=f"distilled for {steps} steps, not 8"):
            ddim(pair, z, 8, cond, 1.0)
    folder = own / "digits-smoke"
    about = read_card(folder / "two-students" / "steps-4")["about"]
    assert about["teacher"] == read_card(folder / "teacher")["sha256"]


def test_two_students_learn_the_null_label_too_and_other_students_never_see_it(own):
    # A row of the embedding that no batch asks for has no gradient: it stays, bit for bit.
    def null(denoiser):
        return denoiser.net.unet.class_embedding.weight[DATA.num_classes]

    folder = own / "digits-smoke"
    pair = next(stages.train_two_students(RECIPE, DATA, own))
    assert not torch.equal(null(pair.denoiser), null(load(folder / "teacher")))
    student = load(folder / "stage-two" / "steps-4")
    assert torch.equal(null(student), null(load(folder / "stage-one")))


@pytest.mark.parametrize("kind", ["v", "eps", "x"])
def test_a_teacher_learns_the_squared_error_of_what_it_says_but_x_counts_no_less_than_eps(
    tmp_path, kind
):
    recipe = tiny(prediction_type=kind, teacher=1)
    teacher = stages.train_teacher(recipe, DATA, tmp_path)
    name = "teacher" if kind == "v" else f"teacher-prediction_type={kind}"
    card = read_card(tmp_path / "digits-smoke" / name)
    assert teacher.prediction_type == card["model"]["prediction_type"] == kind
    # The first loss again, from the numbers of the first update and the new network.
    draw = Draw((recipe.seed, "teacher", 0), recipe.batch, slice(None), "cpu")
    x, cond = DATA.batch(draw.integers(len(DATA)), draw.uniform())
    cond = torch.where(draw.uniform() < recipe.drop, DATA.num_classes, cond)
    t, eps = draw.uniform(), draw.normal((1, 8, 8))
    alpha, sigma = ((math.pi / 2 * t).cos(), (math.pi / 2 * t).sin())
    a, b = alpha[:, None, None, None], sigma[:, None, None, None]
    net = unet_of(recipe, channels=1, size=8, num_classes=10).net
    with torch.no_grad():
        said = net(a * x + b * eps, t, cond, None)
    truth = {"v": a * eps - b * x, "eps": eps, "x": x}[kind]
    omega = (alpha / sigma).square().clamp_min(1) if kind == "x" else torch.ones(recipe.batch)
    known = (omega * (said - truth).square().mean((1, 2, 3))).mean().item()
    assert card["losses"] == [pytest.approx(known, rel=1e-3)]


def test_prediction_type_and_weighting_reach_every_student(tmp_path):
    recipe = tiny(prediction_type="eps", weighting="truncated_snr", start=2)
    students = list(stages.train_stage_two(recipe, DATA, tmp_path))
    assert {s.prediction_type for s in students} == {"eps"}
    cards = [read_card(path.parent) for path in tmp_path.rglob("stage-*/**/card.json")]
    assert len(cards) == 3  # stage one, and students of 2 steps and of 1
    for card in cards:
        assert card["model"]["prediction_type"] == "eps"
        assert card["about"]["weighting"] == "truncated_snr"


def test_the_first_losses_of_stage_one_are_ordered_as_their_weightings_are(tmp_path):
    # On v: alpha^2 < max(alpha^2, sigma^2) < 1, with the same numbers and the same new student.
    first = []
    for weighting in ("snr", "truncated_snr", "snr_plus_one"):
        recipe = tiny(weighting=weighting, batch=16)
        stages.train_stage_one(recipe, DATA, tmp_path)
        folder = stages.stage_folder(recipe, tmp_path, "stage-one", stages.STAGE_ONE)
        first.append(read_card(folder)["losses"][0])
    assert 0 < first[0] < first[1] < first[2]
    assert first[1] >= first[2] / 2


def test_the_first_errors_of_stage_one_are_along_the_guidance_and_count_as_often_as_told(tmp_path):
    # A new student ignores w: it is off by w (v_cond - v_uncond), and by nothing else.
    first = []
    for along in (0.0, 3.0):
        recipe = tiny(along=along, rate_one=0.0)
        stages.train_stage_one(recipe, DATA, tmp_path)
        card = read_card(stages.stage_folder(recipe, tmp_path, "stage-one", stages.STAGE_ONE))
        first.append(card["losses"][0])
    assert first[1] == pytest.approx(4 * first[0], rel=1e-3)  # they are kept rounded
    assert card["about"]["along"] == 3.0
    assert (tmp_path / "digits-smoke" / "stage-one-along=3.0").is_dir()


def test_without_a_head_start_stage_one_begins_with_weights_of_its_own(own):
    recipe = tiny(pretrained=False, rate_one=0.0)
    student, teacher = stages.train_stage_one(recipe, DATA, own), load(own / "digits-smoke/teacher")
    assert (own / "digits-smoke" / "stage-one-pretrained=False").is_dir()
    weight = "unet.conv_in.weight"
    a, b = student.net.state_dict()[weight], teacher.net.state_dict()[weight]
    assert not torch.equal(a, b) and a.std() == pytest.approx(b.std().item(), rel=0.5)


def test_rows_of_different_samplers_are_kept_apart(own, monkeypatch):
    student, calls = load(own / "digits-smoke" / "stage-one"), []
    judge = stages.make_judge(RECIPE, DATA, own)

    def evaluate(*given, sampler, **more):
        calls.append(sampler.__name__)
        return {"sampler": sampler.__name__}

    monkeypatch.setattr(stages, "evaluate", evaluate)
    given = dict(model="stage one", steps=[2], weights=[0.0])
    for _ in range(2):
        for sampler in (ddim, stochastic, ancestral):
            rows = stages.evaluate_rows(student, judge, DATA, RECIPE, own, **given, sampler=sampler)
            assert rows == [{"sampler": sampler.__name__}]
    assert calls == ["ddim", "stochastic", "ancestral"]
