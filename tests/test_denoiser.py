"""The one call, and what it costs."""

import pytest
import torch
from helpers import Wave, schedules

from cfgdistill import (
    CosineSchedule,
    Denoiser,
    GuidedDenoiser,
    ancestral,
    ddim,
    ddim_encode,
    diffusion_loss,
    guidance_matching_loss,
    last,
    progressive_loss,
    progressive_target,
    stochastic,
)
from cfgdistill.core.guidance import embed_w
from cfgdistill.core.schedules import per_example


def noise(n=4, d=3, dtype=torch.float32):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("prediction_type", ["v", "eps", "x"])
def test_the_part_named_by_the_prediction_type_is_the_networks_own_output(prediction_type):
    z, t = noise(), 0.3
    pred = Denoiser(Wave(), CosineSchedule(), prediction_type)(z, t)
    output = Wave()(z, torch.full((4,), t), None, None)
    torch.testing.assert_close(getattr(pred, prediction_type), output, rtol=0, atol=0)


def test_x_and_eps_of_a_prediction_remake_z():
    z, t = noise(dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    schedule = CosineSchedule()
    pred = Denoiser(Wave(), schedule, "v")(z, t)
    torch.testing.assert_close(schedule.add_noise(pred.x, pred.eps, t), z)


def test_one_number_for_t_and_w_is_the_same_as_one_for_each_example():
    denoiser, z, cond = Denoiser(Wave(), CosineSchedule()), noise(), torch.arange(4)
    one = denoiser(z, 0.25, cond, 2.0)
    each = denoiser(z, torch.full((4,), 0.25), cond, torch.full((4,), 2.0))
    torch.testing.assert_close(one, each, rtol=0, atol=0)


def test_each_example_has_its_own_t_cond_and_w():
    denoiser, z = Denoiser(Wave(), CosineSchedule()), noise()
    t, cond, w = torch.tensor([0.1, 0.4, 0.6, 0.9]), torch.arange(4), torch.tensor([0.0, 1, 2, 3])
    together = denoiser(z, t, cond, w)
    for i in range(4):
        alone = denoiser(z[i : i + 1], t[i].item(), cond[i : i + 1], w[i].item())
        for part, whole in zip(alone, together, strict=True):
            torch.testing.assert_close(part[0], whole[i])


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_a_student_costs_one_evaluation_per_step_and_a_guided_teacher_two(steps):
    student = Denoiser(Wave(), CosineSchedule())
    guided = GuidedDenoiser(Denoiser(Wave(), CosineSchedule()), null=3)
    cond = torch.arange(4) % 3
    for sampler in (ddim, ddim_encode):
        student.nfe = guided.nfe = 0
        last(sampler(student, noise(), steps, cond, 1.0))
        last(sampler(guided, noise(), steps, cond, 1.0))
        assert (student.nfe, guided.nfe) == (steps, 2 * steps)


def test_a_progressive_target_costs_two_teacher_steps():
    student = Denoiser(Wave(), CosineSchedule())
    guided = GuidedDenoiser(Denoiser(Wave(), CosineSchedule()), null=3)
    for teacher in (student, guided):
        progressive_target(teacher, noise(), 1.0, 0.5, torch.zeros(4).long(), 1.0)
    assert (student.nfe, guided.nfe) == (2, 4)


def test_nfe_of_the_guided_pair_can_be_set_back_to_0():
    guided = GuidedDenoiser(Denoiser(Wave(), CosineSchedule()), null=3)
    guided(noise(), 0.5, torch.zeros(4).long(), 1.0)
    guided.nfe = 0
    assert guided.nfe == guided.denoiser.nfe == 0


def test_a_request_the_model_was_trained_for_passes_its_check():
    cond = torch.tensor([0, 2, 3])  # 3 is the null label
    student = Denoiser(Wave(), CosineSchedule(), steps=4, w_range=(0.0, 4.0), num_classes=3)
    for w in (0.0, 4.0, torch.tensor([0.0, 2.5, 4.0])):
        student.check(4, cond, w)
    Denoiser(Wave(), CosineSchedule()).check(17, None, None)
    GuidedDenoiser(Denoiser(Wave(), CosineSchedule(), num_classes=3), 3).check(17, cond, 100.0)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", schedules())
def test_half_precision_z_leaves_t_and_w_and_the_schedule_in_float32(name, half):
    asked = []

    def net(z, t, cond, w):
        asked.append((t, embed_w(w, 8), 1024 * t - 1))
        return z

    schedule, z, t, w = schedules()[name], noise(1).to(half), 255 / 256, 0.3
    denoiser = Denoiser(net, schedule)
    for given in (t, torch.tensor(t), torch.tensor([t])):
        pred = denoiser(z, given, None, w)
        assert {part.dtype for part in pred} == {half}
    for kept, features, k in asked:
        assert kept.dtype == torch.float32 and k.item() == 1019
        torch.testing.assert_close(features, embed_w(torch.tensor([w]), 8), rtol=0, atol=0)
    alpha, sigma = schedule.alpha_sigma(per_example(t, z))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1), rtol=0, atol=2e-7)


@pytest.mark.parametrize("prediction_type", ["v", "eps", "x"])
@pytest.mark.parametrize("sampler", [ddim, ddim_encode, stochastic, ancestral])
def test_a_half_precision_z_takes_the_path_of_a_whole_one_up_to_its_own_rounding(
    prediction_type, sampler
):
    # The network says what it is asked, exactly: what is left is the arithmetic around it.
    denoiser = Denoiser(lambda z, t, cond, w: z, CosineSchedule(), prediction_type)
    if prediction_type == "v":
        denoiser = Denoiser(lambda z, t, cond, w: 0 * z, CosineSchedule())
    z = noise(64, 8).bfloat16().float()

    def path(z):
        random = {"generator": torch.Generator().manual_seed(0)}
        added = random if sampler in (stochastic, ancestral) else {}
        return last(sampler(denoiser, z, 4, **added))

    half, whole = path(z.bfloat16()), path(z)
    assert half.dtype == torch.bfloat16
    scale = whole.square().mean().sqrt().item()
    assert (half.float() - whole).square().mean().sqrt().item() < 4 * 2**-9 * max(scale, 1)


def test_whole_numbers_are_refused_where_images_are_asked_for(monkeypatch):
    # In a session without shape checks, as a user's is.
    monkeypatch.setattr("jaxtyping._config.config.jaxtyping_disable", True)
    z, t = torch.zeros(2, 3, dtype=torch.uint8), torch.full((2,), 0.5)
    denoiser, eps = Denoiser(Wave(), CosineSchedule()), torch.zeros(2, 3)
    for call in (
        lambda: denoiser(z, 0.5),
        lambda: last(ddim(denoiser, z, 2)),
        lambda: diffusion_loss(denoiser, z, None, t),
        lambda: diffusion_loss(denoiser, z, None, t, eps=eps),
        lambda: guidance_matching_loss(denoiser, denoiser, z, None, 1.0, 0.5),
        lambda: progressive_loss(denoiser, denoiser, z, None, None, 1.0, 0.5, eps=eps),
        lambda: denoiser.schedule.add_noise(z, eps, t),
    ):
        with pytest.raises(ValueError, match="floating-point numbers, not torch.uint8: scale"):
            call()


@pytest.mark.parametrize("guided", [False, True])
def test_a_compiled_model_counts_every_evaluation_and_is_not_compiled_again_for_it(
    guided, monkeypatch
):
    from torch._dynamo.testing import CompileCounter

    monkeypatch.setattr("jaxtyping._config.config.jaxtyping_disable", True)  # it breaks the graph
    model = Denoiser(Wave(), CosineSchedule())
    model = GuidedDenoiser(model, 3) if guided else model
    z, cond, counter = noise(), torch.zeros(4).long(), CompileCounter()
    known, model.nfe = last(ddim(model, z, 4, cond, 1.0)), 0
    compiled, compilations = torch.compile(model, backend=counter), set()
    for passes in (1, 2):
        torch.testing.assert_close(last(ddim(compiled, z, 4, cond, 1.0)), known)
        assert model.nfe == compiled.nfe == passes * 4 * (1 + guided)
        compilations.add(counter.frame_count)
    assert len(compilations) == 1


@pytest.mark.parametrize("w", [1e38, 1001.0, float("inf"), float("nan"), -0.1])
def test_a_guided_pair_refuses_weights_that_make_no_sense(w):
    guided = GuidedDenoiser(Denoiser(Wave(), CosineSchedule()), 3)
    with pytest.raises(ValueError, match="outside .0, 1000."):
        ddim(guided, noise(), 2, torch.zeros(4).long(), w)


@pytest.mark.parametrize("label", [-1, 4])
def test_labels_outside_the_classes_are_refused(label):
    model = Denoiser(Wave(), CosineSchedule(), num_classes=3)
    with pytest.raises(ValueError, match="whole numbers in 0 .. 2"):
        ddim(model, noise(), 2, torch.tensor([0, 1, 2, label]))
    ddim(model, noise(), 2, torch.tensor([0, 1, 2, 3]))  # the null label
