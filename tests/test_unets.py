"""diffusers' U-Net behind our call: a w input that at first changes nothing, the time axis."""

from types import SimpleNamespace

import pytest
import torch
from helpers import TINY, text_unet_of, tiny_mlp, tiny_text_student, unet_of, with_w

from cfgdistill import GuidedDenoiser, ddim, get_recipe, guidance_matching_loss, last
from cfgdistill.core.guidance import embed_w
from cfgdistill.core.losses import teacher_loss
from cfgdistill.data.named import load_data
from cfgdistill.teachers.files import load
from cfgdistill.teachers.w_input import add_w_conditioning
from cfgdistill.training.checkpoints import save_weights
from cfgdistill.training.loop import train
from cfgdistill.training.optim import Optim
from cfgdistill.training.progressive import reset
from cfgdistill.training.state import Run

RECIPE = get_recipe("digits", "smoke", channels=(8, 16), batch=4)


def build(seed=0, **changes):
    teacher = unet_of(
        get_recipe("digits", "smoke", channels=(8, 16), seed=seed, **changes),
        channels=1,
        size=8,
        num_classes=10,
    )
    return teacher.eval()


@pytest.fixture(scope="module")
def teacher():
    return build()


@pytest.fixture(scope="module")
def student(teacher):
    return add_w_conditioning(teacher, (0.0, 4.0))


def some(n=5):
    generator = torch.Generator().manual_seed(0)
    z, t = torch.randn(n, 1, 8, 8, generator=generator), torch.rand(n, generator=generator)
    return z, t, torch.arange(n) * 2


@pytest.mark.parametrize("w", [0.0, 0.3, 4.0])
def test_a_fresh_student_is_exactly_the_conditional_teacher_for_every_w(teacher, student, w):
    z, t, cond = some()
    with torch.no_grad():
        a, b = student(z, t, cond, w), teacher(z, t, cond)
    assert all((x - y).abs().max() == 0.0 for x, y in zip(a, b, strict=True))


def test_the_w_projection_of_a_fresh_student_is_zero_and_has_a_gradient(student):
    z, t, cond = some()
    projection = student.net.unet.time_embedding.cond_proj
    assert projection.weight.abs().max() == 0 and projection.bias is None
    student(z, t, cond, 2.0).v.square().sum().backward()
    assert projection.weight.grad.abs().max() > 0
    student.zero_grad()


def test_the_w_projection_is_all_that_a_student_has_and_its_teacher_has_not(teacher, student):
    old, new = teacher.net.state_dict(), student.net.state_dict()
    assert new.keys() - old.keys() == {"unet.time_embedding.cond_proj.weight"}
    assert not old.keys() - new.keys()
    assert all(torch.equal(old[key], new[key]) for key in old)
    assert new["unet.time_embedding.cond_proj.weight"].shape[1] == 64


def test_the_student_lives_on_its_teachers_schedule_object_and_owns_its_weights(teacher, student):
    assert student.schedule is teacher.schedule
    assert student.w_range == (0.0, 4.0) and student.num_classes == 10 and student.steps is None
    own = {p.data_ptr() for p in student.parameters()}
    assert not own & {p.data_ptr() for p in teacher.parameters()}


def test_stage_one_loss_is_exactly_0_at_w_0_at_the_start_and_not_elsewhere(teacher, student):
    z, t, cond = some()
    guided = GuidedDenoiser(teacher, null=10)
    with torch.no_grad():
        at_0, at_2 = (guidance_matching_loss(student, guided, z, cond, w, t) for w in (0.0, 2.0))
    # The pair runs as one doubled batch, whose convolutions may round differently.
    assert at_0.max() < 1e-12 and at_2.min() > 1e-8
    with torch.no_grad():
        assert (guidance_matching_loss(student, teacher_alone(teacher), z, cond, 0.0, t) == 0).all()


def teacher_alone(teacher):
    """The conditional teacher, which is what the guided pair means at w = 0."""

    def call(z, t, cond, w):
        return teacher(z, t, cond)

    call.schedule = teacher.schedule
    return call


def test_a_trained_w_projection_makes_the_student_depend_on_w(teacher):
    student = add_w_conditioning(teacher, (0.0, 4.0))
    torch.nn.init.normal_(student.net.unet.time_embedding.cond_proj.weight)
    z, t, cond = some()
    with torch.no_grad():
        a, b = student(z, t, cond, 0.5).v, student(z, t, cond, 3.0).v
        direct = student.net.unet(
            z,
            1024 * t - 1,
            None,
            class_labels=cond,
            timestep_cond=embed_w(torch.full((5,), 3.0), 64),
        ).sample
    assert (a - b).abs().max() > 1e-4 and torch.equal(b, direct)


def test_time_t_is_entry_1024_t_minus_1_of_diffusers(teacher):
    z, _, cond = some()
    with torch.no_grad():
        for t, k in ((1.0, 1023), (0.5, 511), (0.25, 255), (1 / 1024, 0)):
            stock = teacher.net.unet(z, k, None, class_labels=cond).sample
            assert torch.equal(teacher(z, t, cond).v, stock)


def test_all_classes_and_the_null_label_are_told_apart(teacher):
    z = some(1)[0].expand(11, -1, -1, -1)
    with torch.no_grad():
        v = teacher(z, 0.5, torch.arange(11)).v
    assert torch.cdist(v.flatten(1), v.flatten(1)).fill_diagonal_(1).min() > 1e-4


def test_the_same_seed_builds_the_same_teacher_whatever_was_drawn_before(teacher):
    torch.rand(7)
    state = torch.get_rng_state()
    again, other = build(), build(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    a, b, c = (m.net.unet.conv_in.weight for m in (teacher, again, other))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_with_a_patch_the_unet_sees_squares_of_pixels_as_channels():
    recipe = get_recipe("digits", "smoke", channels=(8, 16), patch=2)
    teacher = unet_of(recipe, channels=1, size=8, num_classes=10).eval()
    z, t, cond = some()
    # Channel 2 i + j holds row i and column j of every square: written out, not pixel_unshuffle.
    squares = torch.cat([z[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=1)
    with torch.no_grad():
        v = teacher(z, t, cond).v
        stock = teacher.net.unet(squares, 1024 * t - 1, None, class_labels=cond).sample
    assert v.shape == z.shape
    for k, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        assert torch.equal(v[:, 0, i::2, j::2], stock[:, k])


def test_images_that_do_not_fall_into_squares_are_refused():
    with pytest.raises(ValueError, match="8 pixels do not fall into squares of 3"):
        unet_of(get_recipe("digits", "smoke", patch=3), channels=1, size=8, num_classes=10)


@pytest.mark.parametrize(
    ("patch", "attention", "at"),
    [(1, (), []), (1, (8,), [8]), (1, (4,), [4]), (1, (8, 4), [8, 4]), (2, (4,), [4])],
)
def test_attention_stands_where_the_recipe_puts_it_and_nowhere_else(patch, attention, at):
    teacher, z = build(patch=patch, attention=attention), some()[0]
    seen = []
    for part in teacher.net.unet.modules():
        if type(part).__name__ == "Attention":
            # One place after another: [b, places, channels], or still [b, channels, side, side].
            part.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-1]))
    teacher(z, 0.5, some()[2])
    # One residual block on the way down and two on the way up, each followed by attention.
    assert sorted(seen) == sorted(side for side in at for _ in range(3))


def test_attention_at_a_side_that_the_unet_has_not_is_refused():
    with pytest.raises(ValueError, match=r"sides are \[8, 4\], and 16 is none of them"):
        build(attention=(16, 4))


def test_a_teachers_dropout_works_while_it_trains_and_no_student_has_it():
    teacher, (z, t, cond) = build(dropout=0.5).train(), some()
    w_student = add_w_conditioning(teacher, (0.0, 4.0)).train()
    plain = teacher.for_steps(4).train()
    with torch.no_grad():
        assert not torch.equal(teacher(z, t, cond).v, teacher(z, t, cond).v)
        answer = teacher.eval()(z, t, cond).v
        assert torch.equal(plain(z, t, cond).v, answer)
        assert torch.equal(w_student(z, t, cond, 3.0).v, answer)


@pytest.mark.parametrize(
    "changes", [{}, {"patch": 2}, {"scale_shift": True}, {"attention": (4,), "dropout": 0.2}]
)
def test_a_trained_teacher_is_loaded_by_its_folder_alone(tmp_path, changes):
    teacher = build(**changes)
    updates = train(
        teacher,
        teacher_loss(10, 0.1),
        load_data("digits", images=20),
        Optim(2, 4, 1e-3, ema=0.9),
        Run("teacher", folder=tmp_path),
    )
    assert len(list(updates)) == 2
    back = load(tmp_path)
    z, t, cond = some()
    with torch.no_grad():
        for a, b in zip(teacher(z, t, cond), back(z, t, cond), strict=True):
            assert torch.equal(a, b)
    assert back.num_classes == 10 and back.w_range is None and not back.training


def test_a_student_is_loaded_with_its_steps_and_its_w_range(tmp_path, teacher):
    student = add_w_conditioning(teacher, (0.0, 4.0))
    torch.nn.init.normal_(student.net.unet.time_embedding.cond_proj.weight)
    student.steps = 4
    for name, model in (("unet", student), ("mlp", tiny_mlp(steps=2, w_range=(1.0, 3.0)))):
        save_weights(model, tmp_path / name, {})
    back, toy = load(tmp_path / "unet"), load(tmp_path / "mlp")
    assert (back.steps, back.w_range, back.prediction_type) == (4, (0.0, 4.0), "v")
    assert (toy.steps, toy.w_range, toy.num_classes) == (2, (1.0, 3.0), 3)
    z, _, cond = some()
    sample = [last(ddim(model, z, 4, cond, 3.0)) for model in (student, back)]
    assert torch.equal(*sample)


def test_a_text_network_says_what_it_needs_as_a_condition():
    text = SimpleNamespace(config=SimpleNamespace(hidden_size=32))
    teacher = text_unet_of(TINY, channels=4, size=8, text=text)
    teacher.net.text, z = None, torch.zeros(2, 4, 8, 8)
    with pytest.raises(ValueError, match="needs captions: pass cond, as tokens"):
        teacher(z, 0.5)
    with pytest.raises(ValueError, match="no text encoder: pass captions as embeddings"):
        teacher(z, 0.5, torch.zeros(2, 10, dtype=torch.long))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_network_in_half_precision_is_asked_with_features_of_w_in_its_own(half):
    student = with_w(unet_of(TINY, channels=1, size=8, num_classes=3), 4.0).to(half)
    z = torch.zeros(2, 1, 8, 8, dtype=half)
    pred = student(z, 0.5, torch.tensor([0, 3]), 0.3)
    assert pred.v.dtype == half and pred.v.isfinite().all()


def test_the_text_model_stays_frozen_in_every_student_and_the_rest_is_trained():
    student, *_ = tiny_text_student()
    for teacher in (student, student.requires_grad_(False)):
        further = teacher.for_steps(4)
        trained = {key for key, p in further.net.named_parameters() if p.requires_grad}
        assert trained == {key for key, _ in further.net.named_parameters() if "text." not in key}
        before = further.net.text.state_dict()
        before = {key: value.clone() for key, value in before.items()}
        reset(further.net, seed=9)
        assert all(torch.equal(v, before[k]) for k, v in further.net.text.state_dict().items())
