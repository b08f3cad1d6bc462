"""The one call, and what it costs."""

import pytest
import torch
from helpers import Wave

from cfgdistill import (
    CosineSchedule,
    Denoiser,
    GuidedDenoiser,
    ddim,
    ddim_encode,
    last,
    progressive_target,
)


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
