"""DDIM as a rotation: down, up, and read back from its two ends."""

import math
import runpy

import pytest
import torch
from helpers import Wave, known_alpha_sigma, schedules

from cfgdistill import (
    CosineSchedule,
    Denoiser,
    convert,
    ddim,
    ddim_encode,
    ddim_step,
    implied_v,
    last,
    sampling,
)


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
    for name in ("ddim", "ddim_encode"):
        walk = samplers[name](Denoiser(Wave(), CosineSchedule()), z, 2)
        assert not any(step.requires_grad for step in walk)
        assert torch.is_grad_enabled()


def test_last_is_the_last():
    assert last(iter(torch.arange(4))) == 3
