"""The stochastic sampler: its marginals, its times, and its whole chain of halvings."""

import math

import pytest
import torch
from helpers import Wave, tiny_mlp
from torch import nn

from cfgdistill import (
    CosineSchedule,
    Denoiser,
    GuidedDenoiser,
    ddim,
    last,
    progressive_target,
    stochastic,
)
from cfgdistill.core.samplers import renoise
from cfgdistill.core.stage_two import stage_two_loss
from cfgdistill.data.toy import GaussianMixture
from cfgdistill.training.optim import Optim
from cfgdistill.training.progressive import distill_progressively
from cfgdistill.training.randomness import Draw

SCHEDULE = CosineSchedule()
INTERVALS = [(0.0, 0.5), (0.25, 0.5), (0.5, 0.75), (0.1, 0.11), (0.9, 1.0)]


def levels(t):
    return math.cos(math.pi / 2 * t), math.sin(math.pi / 2 * t)


@pytest.mark.parametrize(("k", "s"), INTERVALS)
def test_renoising_keeps_the_forward_marginal_of_every_point(k, s):
    # z_k = alpha_k x + sigma_k e: renoised, its mean is alpha_s x and its variance sigma_s^2.
    k64, s64 = (torch.tensor([t], dtype=torch.float64) for t in (k, s))
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    kept = renoise(one, zero, k64, s64, SCHEDULE).item()
    added = renoise(zero, one, k64, s64, SCHEDULE).item()
    (alpha_k, sigma_k), (alpha_s, sigma_s) = levels(k), levels(s)
    assert kept * alpha_k == pytest.approx(alpha_s, abs=1e-12)
    assert kept**2 * sigma_k**2 + added**2 == pytest.approx(sigma_s**2, abs=1e-12)


@pytest.mark.parametrize(("k", "s"), INTERVALS[1:])
def test_the_added_variance_is_the_papers_formula_in_logsnr(k, s):
    k64, s64 = (torch.tensor([t], dtype=torch.float64) for t in (k, s))
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    (alpha_k, sigma_k), (alpha_s, sigma_s) = levels(k), levels(s)
    snr_ratio = (alpha_s / sigma_s) ** 2 / (alpha_k / sigma_k) ** 2
    added = renoise(zero, one, k64, s64, SCHEDULE).item()
    assert added**2 == pytest.approx((1 - snr_ratio) * sigma_s**2, abs=1e-9)


@pytest.mark.parametrize(("k", "s"), INTERVALS)
def test_an_exact_jump_and_renoise_keeps_the_variance_of_noised_gaussian_data(k, s):
    q = 0.4
    (alpha_k, sigma_k), (alpha_s, sigma_s) = levels(k), levels(s)
    generator = torch.Generator().manual_seed(0)
    z_k = math.sqrt(alpha_k**2 * q + sigma_k**2) * torch.randn(400_000, 1, generator=generator)
    eps = torch.randn(400_000, 1, generator=generator)
    time = [torch.full((400_000,), t) for t in (k, s)]
    assert renoise(z_k, eps, *time, SCHEDULE).var().item() == pytest.approx(
        alpha_s**2 * q + sigma_s**2, rel=0.01
    )


class Spy(Wave):
    def __init__(self):
        super().__init__()
        self.times = []

    def forward(self, z, t, cond, w):
        self.times.append(t.tolist())
        return super().forward(z, t, cond, w)


def test_with_one_step_it_is_the_deterministic_sampler():
    z, denoiser = torch.randn(5, 3), Denoiser(Wave(), SCHEDULE)
    assert torch.equal(last(stochastic(denoiser, z, 1)), last(ddim(denoiser, z, 1)))


def test_two_steps_visit_1_0_half_0():
    spy = Denoiser(Spy(), SCHEDULE)
    z = torch.randn(4, 2)
    first, second = stochastic(spy, z, 2, generator=torch.Generator().manual_seed(3))
    assert spy.net.times == [[1.0] * 4, [0.5] * 4] and spy.nfe == 2
    # By hand: all the way to 0 where z_0 = x = -v at t = 1, then noise of t = 1/2 on top.
    x = -Wave()(z, torch.ones(4), None, None)
    eps = torch.randn(4, 2, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(first, (x + eps) * math.sqrt(0.5))


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_the_same_generator_gives_the_same_sample_and_another_seed_another(steps):
    z, denoiser = torch.randn(5, 3), Denoiser(Wave(), SCHEDULE)

    def sample(seed):
        return last(stochastic(denoiser, z, steps, generator=torch.Generator().manual_seed(seed)))

    assert torch.equal(sample(0), sample(0)) and not torch.equal(sample(0), sample(1))


@pytest.mark.parametrize("N", [1, 2, 4])
def test_the_teacher_is_only_asked_where_and_for_what_it_was_trained(N):
    # A teacher of 2N steps knows the times j/(2N), jumps of 1/N from there, and from 1/(2N) to 0.
    teacher = Denoiser(Spy(), SCHEDULE)
    draw = Draw((0, "test", 0), 256, slice(None), torch.device("cpu"))
    x, cond = torch.zeros(256, 2), torch.zeros(256).long()
    stage_two_loss(teacher, N, None, sampler="stochastic")(teacher, x, cond, draw)
    t, mid, own = (torch.tensor(times) for times in teacher.net.times)
    assert torch.equal(own, t) and set(t.tolist()) == {i / N for i in range(1, N + 1)}
    assert torch.allclose(mid, t - 1 / N)  # mid = 0 is the edge, where nothing is left to do


def test_on_the_edge_the_target_is_the_teachers_own_v():
    for kind in ("v", "x"):
        teacher, z = Denoiser(Wave(), SCHEDULE, kind), torch.randn(6, 2).double()
        target = progressive_target(teacher, z, 0.25, 0.0, mid=0.0)
        torch.testing.assert_close(target, teacher(z, 0.25).v, atol=1e-10, rtol=0)


class Gain(nn.Module):
    """v = gain(t) z: all that a student of centred Gaussian data has to learn."""

    def __init__(self, gains):
        super().__init__()
        self.gains = gains

    def forward(self, z, t, cond, w):
        return (
            torch.stack([z.new_tensor(self.gains[round(64 * u)]) for u in t.tolist()])[:, None] * z
        )


def test_the_whole_chain_from_64_steps_to_1_ends_with_the_known_variance():
    # Data of variance 0.4. Worked out independently: the last student's samples have 0.38 .. 0.385.
    data = GaussianMixture(torch.zeros(1, 1), torch.zeros(1).long(), std=math.sqrt(0.4))
    teacher, one = data.denoiser(SCHEDULE), torch.ones(1, 1, dtype=torch.float64)
    N = 64
    while N >= 1:
        gains = {0: 0.0}  # asked at t = 0 only where there is nothing left to do
        for i in range(1, N + 1):
            t, mid, s = (max(i - back, 0) / N for back in (0, 1, 2))
            gains[round(64 * t)] = progressive_target(teacher, one, t, s, mid=mid).item()
        teacher, N = Denoiser(Gain(gains), SCHEDULE), N // 2
    assert 0.38 < teacher(one, 1.0).x.item() ** 2 < 0.385


def test_a_student_of_one_sampler_refuses_the_other_with_a_sentence():
    for own, other, name in ((stochastic, ddim, "stochastic"), (ddim, stochastic, "ddim")):
        student = Denoiser(Wave(), SCHEDULE, steps=2, sampler=name)
        last(own(student, torch.zeros(3, 2), 2))
        with pytest.raises(ValueError, match=rf"for the sampler '{name}', not '{other.__name__}'"):
            other(student, torch.zeros(3, 2), 2)


def test_a_guided_teacher_and_a_stage_one_student_take_either_sampler():
    guided = GuidedDenoiser(Denoiser(Wave(), SCHEDULE), null=3)
    free = Denoiser(Wave(), SCHEDULE, w_range=(0.0, 4.0))
    for denoiser in (guided, free):
        for sampler in (ddim, stochastic):
            last(sampler(denoiser, torch.zeros(3, 2), 3, torch.arange(3), 1.0))


def test_the_halving_loop_makes_stochastic_students_and_the_last_one_is_a_copy():
    from cfgdistill.data.named import load_data

    teacher = tiny_mlp(w_range=(0.0, 4.0))
    students = list(
        distill_progressively(
            teacher,
            load_data("toy", images=50),
            Optim(3, 8, 1e-2),
            start=4,
            sampler="stochastic",
        )
    )
    assert [(s.steps, s.sampler) for s in students] == [(n, "stochastic") for n in (4, 2, 1)]
    four, two, one = (torch.cat([p.flatten() for p in s.parameters()]) for s in students)
    assert torch.equal(two, one) and not torch.equal(four, two)
