"""Students that take what is not wanted as an input: pairs of conditions, one evaluation."""

import pytest
import torch
from helpers import CAPTIONS, TINY, text_unet_of, tiny_mlp, unet_of

import cfgdistill as cd
from cfgdistill.core import rules
from cfgdistill.course import stages
from cfgdistill.data.text import build_text_encoder
from cfgdistill.export.onnx import export_onnx
from cfgdistill.export.stock import export
from cfgdistill.teachers.stable_diffusion import tiny_pipeline
from cfgdistill.teachers.unet import add_lora
from cfgdistill.training.checkpoints import save_weights
from cfgdistill.training.randomness import Draw, random_at

KINDS = ("classes", "text")


def some(kind, b=4):
    """A small teacher, z, t, what is wanted, what is not, and null."""
    generator = torch.Generator().manual_seed(0)
    if kind == "classes":
        teacher = unet_of(TINY, channels=1, size=8, num_classes=10)
        wanted, unwanted, null = torch.arange(b), torch.arange(b) + 3, torch.tensor(10)
    else:
        text = build_text_encoder(CAPTIONS, vocabulary=600, length=10, width=32)
        teacher = text_unet_of(TINY, channels=4, size=8, text=text.model)
        wanted, unwanted = text.tokens(CAPTIONS[:1] * b), text.tokens(CAPTIONS[1:2] * b)
        null = text.null
    z, t = torch.randn(b, *teacher.net.shape, generator=generator), torch.linspace(0.2, 1, b)
    return teacher, z, t, wanted, unwanted, null


def pairs(wanted, unwanted):
    return torch.stack([wanted, unwanted.expand_as(wanted)], 1)


def student_of(teacher, null):
    return cd.add_negative(cd.add_w_conditioning(teacher, (0.0, 4.0)), null)


def moved(student):
    """With an input for w, and for the negative condition if it has one, that does something."""
    torch.manual_seed(1)
    with torch.no_grad():
        student.net.unet.time_embedding.cond_proj.weight.normal_()
    return student


@pytest.mark.parametrize("kind", KINDS)
def test_a_negative_input_changes_nothing_before_it_is_trained(kind):
    teacher, z, t, wanted, unwanted, null = some(kind)
    student = student_of(teacher, null)
    said = teacher(z, t, wanted).v
    assert student.takes_negative and not teacher.takes_negative
    for cond in (wanted, pairs(wanted, unwanted), pairs(wanted, null)):
        assert torch.allclose(student(z, t, cond, 3.0).v, said, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_condition_alone_has_null_beside_it_and_another_beside_it_is_another_input(kind):
    teacher, z, t, wanted, unwanted, null = some(kind)
    student = moved(student_of(teacher, null))
    alone = student(z, t, wanted, 2.0).v
    assert torch.allclose(alone, student(z, t, pairs(wanted, null), 2.0).v, atol=1e-5)
    assert not torch.allclose(alone, student(z, t, pairs(wanted, unwanted), 2.0).v, atol=1e-2)
    both = student(z, t, pairs(unwanted, wanted), 2.0).v  # the first is the wanted one
    assert not torch.allclose(student(z, t, pairs(wanted, unwanted), 2.0).v, both, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_kept_with_the_model_and_learns_w_as_before(kind, tmp_path):
    teacher, z, t, wanted, unwanted, null = some(kind)
    plain = moved(cd.add_w_conditioning(teacher, (0.0, 4.0)))
    student = cd.add_negative(plain.copy(), null)  # what is known of w stays
    assert torch.allclose(student(z, t, wanted, 2.0).v, plain(z, t, wanted, 2.0).v, atol=1e-5)
    student = moved(student)
    save_weights(student, tmp_path / "student", {})
    again = cd.load(tmp_path / "student", "cpu")
    cond = pairs(wanted, unwanted)
    assert torch.equal(again(z, t, cond, 2.0).v, student(z, t, cond, 2.0).v)
    assert torch.equal(again(z, t, wanted, 2.0).v, student(z, t, wanted, 2.0).v)


@pytest.mark.parametrize("kind", KINDS)
def test_another_range_of_w_or_several_strengths_are_another_input(kind):
    teacher, z, t, wanted, unwanted, null = some(kind)
    again = cd.add_w_conditioning(moved(student_of(teacher, null)), (0.0, 2.0))
    assert not again.takes_negative and again.net.config.get("negative") is None
    again(z, t, wanted, 1.0)
    two = cd.add_w_conditioning(teacher, ((0.0, 4.0), (0.0, 1.0)))
    two = moved(cd.add_negative(two, null))
    said = two(z, t, pairs(wanted, unwanted), torch.tensor([[2.0, 0.5]] * len(z))).v
    other = two(z, t, pairs(wanted, null), torch.tensor([[2.0, 0.5]] * len(z))).v
    assert not torch.allclose(said, other, atol=1e-2)


def test_low_rank_changes_come_without_one(tmp_path):
    base = tiny_pipeline(tmp_path)
    net = add_lora(cd.open_pipeline(base).unet, base, 4)
    student = cd.add_w_conditioning(cd.Denoiser(net, cd.CosineSchedule()), (0.0, 4.0))
    with pytest.raises(ValueError, match="Low-rank changes come without an input for a negative"):
        cd.add_negative(student, torch.zeros(1, 32))


def test_half_of_the_others_are_null_and_the_rest_as_frequent_as_they_are():
    seen = []

    def loss(student, x, cond, draw):
        seen.append(cond)
        return torch.zeros(len(cond))

    others = torch.tensor([1, 1, 1, 5])  # three of four are 1
    paired = cd.against_others(loss, others, 10)
    cond = torch.arange(8000) % 10
    paired(None, torch.zeros(8000, 1), cond, Draw((0, "pairs"), 8000, slice(None), "cpu"))
    assert torch.equal(seen[0][:, 0], cond)
    share = [(seen[0][:, 1] == label).float().mean().item() for label in (10, 1, 5)]
    assert share == pytest.approx([0.5, 0.375, 0.125], abs=0.02)  # 4 standard deviations
    halves = [Draw((0, "pairs"), 8000, part, "cpu") for part in (slice(4000), slice(4000, None))]
    for part, draw in zip(cond.split(4000), halves, strict=True):  # two processes
        paired(None, torch.zeros(4000, 1), part, draw)
    assert torch.equal(torch.cat(seen[1:]), seen[0])


def test_both_stages_train_such_students_and_one_evaluation_a_step_draws_with_them(tmp_path):
    recipe = cd.get_recipe("digits", "smoke", negatives=True, images=200)
    data = stages.load_recipe_data(recipe, tmp_path)
    students = {each.steps: each for each in stages.train_stage_two(recipe, data, tmp_path)}
    home = stages.home(recipe, tmp_path)
    assert {path.name for path in home.glob("stage-*")} == {
        "stage-one-negatives",
        "stage-two-negatives",
    }
    student = cd.load(home / "stage-two-negatives" / "steps-2", device="cpu")
    assert student.takes_negative and students[1].takes_negative
    images = cd.sample(student, [4, 7], w=2.0, negative="9")  # too few steps for two answers
    assert student.nfe == 2
    noise = [torch.randn(1, 8, 8, generator=random_at(0, "sample", i)) for i in range(2)]
    cond = torch.tensor([[4, 9], [7, 9]])
    z = cd.last(cd.ddim(student, torch.stack(noise), 2, cond, 2.0))
    assert torch.allclose(images, z.clamp(-1, 1), atol=1e-6)
    wrapped = cd.GuidedDenoiser(student.for_steps(4), 10)  # by whomever, for another purpose
    student.steps = 4
    assert torch.equal(
        cd.sample(wrapped, [4, 7], w=2.0, negative=9), cd.sample(student, [4, 7], w=2.0, negative=9)
    )
    assert wrapped.nfe == 4


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_shipped_students_are_guided_away_in_one_evaluation_a_step(steps):
    teacher = cd.load("digits/teacher", "cpu")
    student = cd.load(f"digits/stage-two-negatives/steps-{steps}", "cpu")
    z = torch.randn(64, *teacher.net.shape, generator=torch.Generator().manual_seed(0))
    four = torch.full((64,), 4)
    cond = {"with it": pairs(four, torch.tensor(9)), "without": four}
    truth = cd.last(cd.ddim(cd.GuidedDenoiser(teacher, 9), z, 32, four, 2.0))
    error = {
        name: (cd.last(cd.ddim(student, z, steps, each, 2.0)) - truth).square().mean().sqrt().item()
        for name, each in cond.items()
    }
    assert error["without"] > 0.35 and error["with it"] < error["without"] / 2


# ---- bad input ------------------------------------------------------------------------------


def test_pairs_are_for_students_that_know_them_and_networks_say_how_they_take_one(tmp_path):
    teacher, z, t, wanted, unwanted, null = some("classes")
    plain = cd.add_w_conditioning(teacher, (0.0, 4.0))
    with pytest.raises(ValueError, match=r"Conditions are \[4, 2\]: pass one for each example"):
        plain(z, t, pairs(wanted, unwanted), 2.0)
    three = torch.stack([wanted] * 3, 1)
    with pytest.raises(ValueError, match=r"\[4, 3\]: pass one, or a pair \[b, 2, ...\] of one"):
        student_of(teacher, null)(z, t, three, 2.0)
    with pytest.raises(ValueError, match="A MLP does not say how it takes a negative condition"):
        cd.add_negative(cd.add_w_conditioning(tiny_mlp(), (0.0, 4.0)), 3)
    with pytest.raises(ValueError, match="stands beside a weight: give the network an input for w"):
        cd.add_negative(teacher, 10)
    for write in (export, export_onnx):
        with pytest.raises(ValueError, match="negative condition as an input, which no format"):
            write(student_of(teacher, null).for_steps(2), tmp_path / "exported")
    with pytest.raises(ValueError, match="takes a negative condition already"):
        cd.add_negative(student_of(teacher, null), null)
    with pytest.raises(ValueError, match="This network needs class labels: pass cond"):
        student_of(teacher, null)(z, t, None, 2.0)
    recipe = cd.get_recipe("digits", "smoke", negatives=True)
    with pytest.raises(ValueError, match="Without stage one nothing teaches a negative"):
        next(stages.train_two_students(recipe, cd.load_data("digits"), tmp_path))
    with pytest.raises(ValueError, match="negatives=True does not fit"):
        cd.get_recipe("sd", "smoke", negatives=True)
    with pytest.raises(ValueError, match="Labels must be whole numbers in 0 .. 9"):
        cd.ddim(student_of(teacher, null), z, 4, pairs(wanted, torch.tensor(11)), 2.0)


def test_the_rule_is_guidance_with_the_second_condition_in_the_place_of_the_null():
    teacher, z, t, wanted, unwanted, null = some("classes")
    said = cd.GuidedDenoiser(teacher, 10, rules.negative_prompt)(
        z, t, pairs(wanted, unwanted), 2.0
    ).v
    known = 3 * teacher(z, t, wanted).v - 2 * teacher(z, t, unwanted).v
    assert torch.allclose(said, known, atol=1e-5)
