"""Two dimensions, where the answers are known exactly."""

import math

import pytest
import torch

from cfgdistill import CosineSchedule, GuidedDenoiser, ddim, ddim_encode, last
from cfgdistill.data.toy import GaussianMixture, pinwheel
from cfgdistill.teachers.mlp import MLP

MEAN, STD = torch.tensor([[1.5, -0.5]], dtype=torch.float64), 0.4


def gaussian():
    return GaussianMixture(MEAN, torch.zeros(1, dtype=torch.long), STD).denoiser(CosineSchedule())


def noise(n=64):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def limit(sample):
    """What a first-order method tends to: the error of 512 steps is half that of 256."""
    return 2 * sample(512) - sample(256)


def test_the_flow_of_a_gaussian_class_maps_z_to_mu_plus_s_z():
    z = noise()
    x = limit(lambda steps: last(ddim(gaussian(), z, steps, torch.zeros(64).long())))
    torch.testing.assert_close(x, MEAN + STD * z, rtol=0, atol=1e-4)


def test_the_flow_upwards_maps_mu_plus_s_z_back_to_z():
    z = noise()
    x = MEAN + STD * z
    back = limit(lambda steps: last(ddim_encode(gaussian(), x, steps, torch.zeros(64).long())))
    torch.testing.assert_close(back, z, rtol=0, atol=1e-4)


def test_the_error_of_ddim_halves_when_the_steps_double():
    z = noise()
    error = [
        (last(ddim(gaussian(), z, steps, torch.zeros(64).long())) - MEAN - STD * z).abs().max()
        for steps in (32, 64, 128, 256)
    ]
    for coarse, fine in zip(error, error[1:], strict=False):
        assert 1.9 < coarse / fine < 2.1


def test_one_ddim_step_from_noise_lands_on_the_mean():
    x = last(ddim(gaussian(), noise(), 1, torch.zeros(64).long()))
    torch.testing.assert_close(x, MEAN.expand(64, 2))


MEANS, LABELS = [-1.2, -0.4, 0.3, 1.1], [0, 1, 0, 2]


def mixture_1d():
    means = torch.tensor(MEANS, dtype=torch.float64)[:, None]
    return GaussianMixture(means, torch.tensor(LABELS), 0.25).denoiser(CosineSchedule())


def posterior_mean(z, t, label):
    """E[x | z_t, label] by summing over a fine grid of x; label None: all of them."""
    x = torch.linspace(-4, 4, 20001, dtype=torch.float64)
    alpha, sigma = math.cos(math.pi / 2 * t), math.sin(math.pi / 2 * t)
    means = [m for m, own in zip(MEANS, LABELS, strict=True) if label in (None, own)]
    prior = sum(torch.exp(-((x - m) ** 2) / (2 * 0.25**2)) for m in means)
    weight = prior * torch.exp(-((z - alpha * x) ** 2) / (2 * sigma**2))
    return ((weight * x).sum() / weight.sum()).item()


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("label", [0, 1, 2, 3])
def test_the_exact_denoiser_is_the_posterior_mean_and_its_null_label_means_all_classes(t, label):
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    pred = mixture_1d()(z[:, None], t, torch.full((9,), label))
    known = [posterior_mean(a, t, None if label == 3 else label) for a in z.tolist()]
    torch.testing.assert_close(
        pred.x[:, 0], torch.tensor(known, dtype=torch.float64), rtol=0, atol=1e-8
    )


def test_without_a_condition_the_exact_denoiser_means_all_classes_too():
    z = noise()[:, :1]
    null = mixture_1d()(z, 0.4, torch.full((64,), 3))
    torch.testing.assert_close(mixture_1d()(z, 0.4), null)


def test_the_exact_v_is_the_average_v_of_data_noised_to_the_same_z():
    # Monte Carlo, near z = 0.5 at t = 1/2, where alpha = sigma: E[v | z] from draws of (x, eps).
    generator = torch.Generator().manual_seed(0)
    x, _ = pinwheel().sample(400_000, generator)
    x, eps = x[:, :1], torch.randn(400_000, 1, generator=generator)
    z, v = (x + eps) / math.sqrt(2), (eps - x) / math.sqrt(2)
    near = (z - 0.5).abs() < 0.02
    one_axis = GaussianMixture(pinwheel().means[:, :1], pinwheel().labels, pinwheel().std)
    exact = one_axis.denoiser(CosineSchedule())(torch.tensor([[0.5]]), 0.5).v.item()
    assert abs(v[near].mean().item() - exact) < 4 * (v[near].std() / near.sum().sqrt()).item()


def test_samples_have_the_mean_and_spread_of_their_class():
    mixture = pinwheel()
    x, labels = mixture.sample(30_000, torch.Generator().manual_seed(0))
    for label in range(3):
        own, means = x[labels == label], mixture.means[mixture.labels == label]
        assert abs(len(own) - 10_000) < 400
        torch.testing.assert_close(own.mean(0), means.mean(0), rtol=0, atol=0.02)
        variance = means.var(0, correction=0) + mixture.std**2
        torch.testing.assert_close(own.var(0), variance, rtol=0.05, atol=0.005)


def test_the_pinwheel_has_three_classes_of_four_blobs_a_third_of_a_turn_apart():
    mixture = pinwheel()
    assert mixture.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and mixture.num_classes == 3
    turn = 2 * math.pi / 3
    rotation = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    torch.testing.assert_close(mixture.means[:4] @ rotation, mixture.means[4:8])


def test_guidance_pushes_samples_away_from_the_other_classes():
    # Of a guided pair: cond 0 at +1 and class 1 at -1; w moves the sample further from class 1.
    mixture = GaussianMixture(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]), 0.5)
    guided = GuidedDenoiser(mixture.denoiser(CosineSchedule()), null=2)
    z, cond = torch.linspace(-2, 2, 9)[:, None], torch.zeros(9).long()
    x = [last(ddim(guided, z, 64, cond, w)).mean().item() for w in (0.0, 1.0, 3.0)]
    assert x[0] < x[1] < x[2]


def test_a_fresh_mlp_does_not_depend_on_w_and_can_learn_to():
    torch.manual_seed(0)
    net, z = MLP(width=16, features=4), torch.randn(5, 2)
    t, cond = torch.rand(5), torch.tensor([0, 1, 2, 3, 0])
    without = net(z, t, cond, None)
    with_w = net(z, t, cond, torch.tensor([0.0, 1, 2, 3, 4]))
    assert torch.equal(without, with_w)
    with_w.sum().backward()
    assert net.w_proj.weight.grad.abs().max() > 0


def test_an_mlp_is_rebuilt_from_its_config():
    net = MLP(width=16, features=4)
    config = dict(net.config)
    assert config.pop("net") == "MLP"
    MLP(**config).load_state_dict(net.state_dict())
