"""Flow matching behind our call: the same points as on the straight path, on one with rotations."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from helpers import Wave

from cfgdistill import FlowSchedule, GuidedDenoiser, ddim, guide, last
from cfgdistill.core.losses import diffusion_loss
from cfgdistill.core.stage_two import progressive_target
from cfgdistill.teachers.flow import Flow, flow_denoiser, flow_matching

TIMES = torch.linspace(0, 1, 17, dtype=torch.float64)


class Exact(torch.nn.Module):
    """u = eps - x for one known pair, whatever is asked."""

    def __init__(self, x, eps):
        super().__init__()
        self.x, self.eps = x, eps

    def forward(self, z, tau, cond, w):
        return self.eps - self.x


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_x_and_eps_are_recovered_at_every_time_both_ends_included(shift):
    x, eps = noise(17, 3), noise(17, 3, seed=1)
    denoiser = flow_denoiser(Exact(x, eps), shift)
    tau = shift * TIMES / (1 + (shift - 1) * TIMES)
    straight = (1 - tau)[:, None] * x + tau[:, None] * eps
    z = straight / (tau**2 + (1 - tau) ** 2).sqrt()[:, None]
    torch.testing.assert_close(denoiser.schedule.add_noise(x, eps, TIMES), z)
    pred = denoiser(z, TIMES)
    torch.testing.assert_close(pred.x, x)
    torch.testing.assert_close(pred.eps, eps)


def test_the_network_is_asked_on_the_straight_path_at_its_own_time():
    asked = []
    denoiser = flow_denoiser(lambda *given: asked.append(given) or torch.zeros_like(given[0]), 3.0)
    x, eps, t = noise(17, 3), noise(17, 3, seed=1), TIMES
    denoiser(denoiser.schedule.add_noise(x, eps, t), t, torch.arange(17), 2.0)
    z, tau, cond, w = asked[0]
    torch.testing.assert_close(tau, 3 * t / (1 + 2 * t))
    torch.testing.assert_close(z, (1 - tau)[:, None] * x + tau[:, None] * eps)
    assert cond.tolist() == [*range(17)] and w.tolist() == [2.0] * 17


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 8, 28])
def test_ddim_is_the_euler_sampler_of_diffusers(shift, steps):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[i / steps for i in range(steps, 0, -1)])
    net, z = Wave(), noise(4, 3).float()
    known, cond = z, torch.arange(4)
    for k in scheduler.timesteps:  # 1000 tau
        known = scheduler.step(net(known, k.expand(4) / 1000, cond, None), k, known).prev_sample
    ours = last(ddim(flow_denoiser(net, shift), z, steps, cond))
    torch.testing.assert_close(ours, known, atol=1e-5, rtol=1e-5)


def test_a_shift_lowers_the_log_snr_by_two_logarithms_of_it_and_shifts_multiply():
    t = TIMES[1:-1]
    plain, shifted = FlowSchedule(), FlowSchedule(3.0)
    torch.testing.assert_close(shifted.logsnr(t), plain.logsnr(t) - 2 * math.log(3))
    torch.testing.assert_close(FlowSchedule(2.0).tau(FlowSchedule(1.5).tau(t)), shifted.tau(t))
    assert plain.alpha_sigma(TIMES[[0, -1]])[0].tolist() == [1.0, 0.0]
    for shift in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="shift must be a positive number"):
            FlowSchedule(shift)


def test_guidance_is_linear_in_u():
    net, z, cond = Wave(), noise(5, 3), torch.arange(5)
    guided = GuidedDenoiser(flow_denoiser(net, 3.0), 7)

    def combined(z, tau, cond, w):
        return guide(net(z, tau, cond, None), net(z, tau, torch.full_like(cond, 7), None), 2.5)

    known = flow_denoiser(combined, 3.0)
    for mine, theirs in zip(guided(z, 0.4, cond, 2.5), known(z, 0.4, cond), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_two_steps_in_one_are_the_mean_of_two_velocities():
    # On an even grid of tau: u of the long step is the average of the two short ones.
    net, z, N = Wave(), noise(6, 3), 2
    denoiser = flow_denoiser(net)
    straight = z  # at t = 1 both paths are pure noise
    first = net(straight, torch.full((6,), 1.0).double(), None, None)
    second = net(straight - first / (2 * N), torch.full((6,), 0.75).double(), None, None)
    v = progressive_target(denoiser, z, 1.0, 0.5)
    x, eps = -v, z  # at alpha = 0
    torch.testing.assert_close(eps - x, (first + second) / 2)


def test_the_weighting_of_flow_matching_is_the_error_of_u():
    net, x, eps, t = Wave(), noise(17, 3), noise(17, 3, seed=1), TIMES
    denoiser = flow_denoiser(net, 3.0)
    ours = diffusion_loss(denoiser, x, None, t, eps=eps, weighting=flow_matching)
    tau = denoiser.schedule.tau(t)
    u = net((1 - tau)[:, None] * x + tau[:, None] * eps, tau, None, None)
    inner = slice(1, -1)  # at the ends the log-SNR is clipped
    torch.testing.assert_close(ours[inner], (u - (eps - x)).square().mean(1)[inner])
    torch.testing.assert_close(ours, (u - (eps - x)).square().mean(1), atol=0, rtol=1e-3)


def test_a_flow_says_the_shape_of_its_network():
    net = Wave()
    net.shape = (2, 3)
    assert Flow(net, FlowSchedule()).shape == (2, 3)
