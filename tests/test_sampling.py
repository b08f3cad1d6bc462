"""DDIM as a rotation: down, up, and read back from its two ends; and DDPM's sampler."""

import math
import runpy

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from helpers import (
    Wave,
    cosine_alphas_cumprod,
    known_alpha_sigma,
    linear_alphas_cumprod,
    schedules,
)

from cfgdistill import (
    CosineSchedule,
    Denoiser,
    GuidedDenoiser,
    ancestral,
    convert,
    ddim,
    ddim_encode,
    ddim_step,
    implied_v,
    last,
)
from cfgdistill.core import samplers as sampling
from cfgdistill.data.toy import GaussianMixture


def noise(n=4, d=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def at(t, n=4):
    return torch.full((n,), t, dtype=torch.float64)


def predict(schedule, z, v, t):
    return convert(v, z, *schedule.alpha_sigma(at(t)), "v")


@pytest.mark.parametrize("name", schedules())
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.5), (0.5, 0.0), (0.25, 0.75), (0.0, 1.0)])
def test_a_step_rotates_z_towards_v_by_the_difference_of_the_angles(name, t, s):
    z, v = noise(), noise().flip(0)
    (a_t, s_t), (a_s, s_s) = known_alpha_sigma(name, t), known_alpha_sigma(name, s)
    d = math.atan2(s_s, a_s) - math.atan2(s_t, a_t)
    schedule = schedules()[name]
    z_s = ddim_step(predict(schedule, z, v, t), at(s), schedule)
    torch.testing.assert_close(z_s, math.cos(d) * z + math.sin(d) * v, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", schedules())
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.5), (0.5, 0.0), (0.25, 0.75), (0.0, 1.0)])
def test_implied_v_undoes_a_step_also_from_t_1_and_from_t_0(name, t, s):
    schedule, z, v = schedules()[name], noise(), noise().flip(0)
    z_s = ddim_step(predict(schedule, z, v, t), at(s), schedule)
    torch.testing.assert_close(implied_v(z, z_s, at(t), at(s), schedule), v, rtol=0, atol=1e-12)


def test_implied_v_gives_the_x_of_salimans_and_ho():
    z_t, z_s = noise(), noise().flip(0)
    (a_t, s_t), (a_s, s_s) = known_alpha_sigma("cosine", 0.75), known_alpha_sigma("cosine", 0.5)
    v = implied_v(z_t, z_s, at(0.75), at(0.5), CosineSchedule())
    x = (z_s - s_s / s_t * z_t) / (a_s - s_s / s_t * a_t)
    torch.testing.assert_close(a_t * z_t - s_t * v, x)


def test_a_step_to_the_same_time_changes_nothing():
    schedule, z = CosineSchedule(), noise()
    torch.testing.assert_close(
        ddim_step(predict(schedule, z, z.flip(0), 0.3), at(0.3), schedule), z
    )


class Constant(torch.nn.Module):
    """Believes in one x, whatever it sees."""

    def __init__(self, x):
        super().__init__()
        self.x = x

    def forward(self, z, t, cond, w):
        return self.x.expand_as(z)


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_a_denoiser_that_knows_x_lands_on_x_and_walks_the_line_there(steps):
    x, eps = noise(1), noise()
    walk = list(ddim(Denoiser(Constant(x), CosineSchedule(), "x"), eps, steps))
    assert len(walk) == steps
    for i, z in enumerate(walk, start=1):
        t = 1 - i / steps
        known = math.cos(math.pi / 2 * t) * x + math.sin(math.pi / 2 * t) * eps
        torch.testing.assert_close(z, known.expand_as(z), rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_encoding_with_a_denoiser_that_knows_eps_lands_on_eps(steps):
    x, eps = noise(), noise(1).flip(1)
    walk = list(ddim_encode(Denoiser(Constant(eps), CosineSchedule(), "eps"), x, steps))
    assert len(walk) == steps
    torch.testing.assert_close(walk[-1], eps.expand_as(x), rtol=0, atol=1e-6)


class Times(Wave):
    """Keeps the times at which it was asked."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, z, t, cond, w):
        self.seen.append(t[0].item())
        return super().forward(z, t, cond, w)


def test_decoding_asks_at_1_down_to_1_over_N_and_encoding_at_0_up_to_1_minus_1_over_N():
    net = Times()
    last(ddim(Denoiser(net, CosineSchedule()), noise(), 4))
    assert net.seen == [1.0, 0.75, 0.5, 0.25]
    net.seen.clear()
    last(ddim_encode(Denoiser(net, CosineSchedule()), noise(), 4))
    assert net.seen == [0.0, 0.25, 0.5, 0.75]


def test_decoding_undoes_encoding_up_to_a_first_order_error():
    denoiser, x = Denoiser(Wave(), CosineSchedule()), noise()
    error = [
        (last(ddim(denoiser, last(ddim_encode(denoiser, x, steps)), steps)) - x).abs().max().item()
        for steps in (256, 512)
    ]
    assert 1.9 < error[0] / error[1] < 2.1 and error[1] < 0.1


def test_cond_and_w_reach_the_network_at_every_step():
    denoiser, z = Denoiser(Wave(), CosineSchedule()), noise()
    cond, w = torch.tensor([0, 1, 2, 0]), torch.tensor([0.0, 1.0, 2.0, 3.0])
    by_hand = z
    for t, s in ((1.0, 0.5), (0.5, 0.0)):
        v = Wave()(by_hand, at(t), cond, w)
        angle = math.pi / 2 * (s - t)
        by_hand = math.cos(angle) * by_hand + math.sin(angle) * v
    torch.testing.assert_close(last(ddim(denoiser, z, 2, cond, w)), by_hand)


def test_sampling_leaves_no_gradient_behind():
    # The file is run here as it is: a run-time shape checker would hide from torch.no_grad that
    # the samplers are generators.
    z, samplers = noise().requires_grad_(), runpy.run_path(sampling.__file__)
    for name in ("ddim", "ddim_encode", "stochastic", "ancestral"):
        walk = samplers[name](Denoiser(Wave(), CosineSchedule()), z, 2)
        assert not any(step.requires_grad for step in walk)
        assert torch.is_grad_enabled()


def test_last_is_the_last():
    assert last(iter(torch.arange(4))) == 3


# ---- with noise: DDPM's sampler ----------------------------------------------------------------


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def stock_ancestral(kind, table, z, steps):
    """What an unmodified scheduler of diffusers does with the pseudo-network and the same noise."""
    betas = 1 - table / torch.cat([torch.ones(1).double(), table[:-1]])
    about = dict(trained_betas=betas.numpy(), prediction_type="v_prediction", clip_sample=False)
    scheduler = kind(1024, timestep_spacing="trailing", **about)
    scheduler.set_timesteps(steps)
    how = {"eta": 1.0} if kind is DDIMScheduler else {}
    generator = seeded()
    for k in scheduler.timesteps:
        v = Wave()(z, ((k + 1) / 1024).expand(len(z)), None, None)
        z = scheduler.step(v, k, z, generator=generator, **how).prev_sample
        yield z


@pytest.mark.parametrize("steps", [1, 2, 8, 32])
@pytest.mark.parametrize(
    ("scheduler", "name"),
    # No DDIMScheduler with the cosine schedule: at eta = 1 it takes the root of a number that is
    # 0 at alpha = 0, or a rounding error below, which is nan.
    [(DDPMScheduler, "cosine"), (DDPMScheduler, "discrete"), (DDIMScheduler, "discrete")],
)
def test_ancestral_equals_diffusers_ddpm_and_its_ddim_at_eta_1_step_by_step(scheduler, name, steps):
    tables = {"cosine": cosine_alphas_cumprod(1024), "discrete": linear_alphas_cumprod(1024)}
    z = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    ours = list(ancestral(Denoiser(Wave(), schedules()[name]), z, steps, generator=seeded()))
    stock = list(stock_ancestral(scheduler, tables[name], z, steps))
    assert len(ours) == len(stock) == steps
    torch.testing.assert_close(torch.stack(ours), torch.stack(stock), rtol=0, atol=2e-5)


def ancestral_variances(q, steps):
    """Var z_t on the way down, of data N(0, q) with its exact denoiser, worked out by hand.

    E[x | z_t] = alpha_t q / (alpha_t^2 q + sigma_t^2) z_t, and q(z_s | z_t, x) in the form of
    Kingma et al. 2021: mean (a sigma_s^2 z_t + alpha_s b x) / sigma_t^2 and variance
    b sigma_s^2 / sigma_t^2, with a = alpha_t / alpha_s and b = sigma_t^2 - a^2 sigma_s^2.
    """
    variance = 1.0
    for i in range(steps, 0, -1):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (
            known_alpha_sigma("cosine", j / steps) for j in (i, i - 1)
        )
        a = alpha_t / alpha_s
        b = sigma_t**2 - a**2 * sigma_s**2
        x = alpha_t * q / (alpha_t**2 * q + sigma_t**2)
        gain = (a * sigma_s**2 + alpha_s * b * x) / sigma_t**2
        variance = gain**2 * variance + b * sigma_s**2 / sigma_t**2
        yield variance


@pytest.mark.parametrize("steps", [1, 2, 4, 16])
def test_on_gaussian_data_every_z_of_ancestral_has_the_variance_worked_out_by_hand(steps):
    q, z = 0.4, torch.randn(100_000, 1, generator=seeded(0))
    mixture = GaussianMixture(torch.zeros(1, 1), torch.zeros(1).long(), math.sqrt(q))
    cond = torch.zeros(len(z)).long()
    walk = ancestral(mixture.denoiser(CosineSchedule()), z, steps, cond, generator=seeded(1))
    for found, known in zip(walk, ancestral_variances(q, steps), strict=True):
        assert found.var().item() == pytest.approx(known, rel=0.03, abs=1e-9)


def test_with_many_steps_ancestral_has_the_variance_of_the_data_and_with_few_it_has_less():
    variance = [list(ancestral_variances(0.4, steps))[-1] for steps in (1, 2, 4, 16, 1024)]
    assert variance == sorted(variance) and variance[0] == pytest.approx(0, abs=1e-30)
    assert variance[-1] == pytest.approx(0.4, rel=0.01)


def test_with_one_step_ancestral_is_the_deterministic_sampler_and_with_more_it_is_not():
    denoiser, z = Denoiser(Wave(), CosineSchedule()), noise()
    one, other = last(ancestral(denoiser, z, 1)), last(ddim(denoiser, z, 1))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert (last(ancestral(denoiser, z, 2)) - last(ddim(denoiser, z, 2))).abs().max() > 0.01


def test_ancestral_asks_once_a_step_at_1_down_to_1_over_N_and_repeats_its_seed():
    denoiser, z = Denoiser(Times(), CosineSchedule()), noise()
    first = last(ancestral(denoiser, z, 4, generator=seeded()))
    assert denoiser.net.seen == [1.0, 0.75, 0.5, 0.25] and denoiser.nfe == 4
    assert torch.equal(first, last(ancestral(denoiser, z, 4, generator=seeded())))
    assert not torch.equal(first, last(ancestral(denoiser, z, 4, generator=seeded(4))))


def test_no_student_is_trained_for_ancestral_and_every_student_refuses_it():
    for own in ("ddim", "stochastic", "ddim_encode"):
        student = Denoiser(Wave(), CosineSchedule(), steps=2, sampler=own)
        with pytest.raises(ValueError, match=f"for the sampler '{own}', not 'ancestral'"):
            ancestral(student, noise(), 2)


def test_guided_teachers_and_stage_one_students_take_ancestral():
    cond = torch.tensor([0, 1, 2, 0])
    guided = GuidedDenoiser(Denoiser(Wave(), CosineSchedule()), null=3)
    free = Denoiser(Wave(), CosineSchedule(), w_range=(0.0, 4.0))
    for denoiser, nfe in ((guided, 6), (free, 3)):
        assert last(ancestral(denoiser, noise(), 3, cond, 1.0)).shape == (4, 3)
        assert denoiser.nfe == nfe
        with pytest.raises(ValueError, match="w = -1 is outside"):
            ancestral(denoiser, noise(), 3, cond, -1.0)
