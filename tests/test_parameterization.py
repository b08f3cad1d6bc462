"""x, eps and v: three forms of one belief, checked against how z was made."""

import math

import pytest
import torch
from helpers import known_alpha_sigma, schedules

from cfgdistill import CosineSchedule, Prediction, convert
from cfgdistill.core.losses import snr, snr_plus_one, truncated_snr, weighted_error


def made(name, t, seed=0):
    """x, eps, v and the z they make, by the definitions alone."""
    generator = torch.Generator().manual_seed(seed)
    x, eps = torch.randn(2, 5, 3, 2, generator=generator, dtype=torch.float64)
    alpha, sigma = known_alpha_sigma(name, t)
    return x, eps, alpha * eps - sigma * x, alpha * x + sigma * eps, alpha, sigma


@pytest.mark.parametrize("name", schedules())
@pytest.mark.parametrize("prediction_type", ["v", "eps", "x"])
@pytest.mark.parametrize("t", [1 / 1024, 1 / 4, 1 / 2, 63 / 64])
def test_any_one_of_x_eps_v_gives_back_the_other_two(name, prediction_type, t):
    x, eps, v, z, alpha, sigma = made(name, t)
    output = {"x": x, "eps": eps, "v": v}[prediction_type]
    alpha, sigma = torch.tensor([[alpha] * 5, [sigma] * 5], dtype=torch.float64)
    pred = convert(output, z, alpha, sigma, prediction_type)
    for part, known in zip(pred, (x, eps, v), strict=True):
        torch.testing.assert_close(part, known, rtol=0, atol=1e-10)


def test_v_is_well_defined_at_both_ends_of_time():
    x, eps, _, _, _, _ = made("cosine", 0.5)
    ones, zeros = torch.ones(5).double(), torch.zeros(5).double()
    at_noise = convert(-x, eps, zeros, ones, "v")  # alpha = 0: v = -x and z = eps
    torch.testing.assert_close(at_noise, Prediction(x, eps, -x))
    at_data = convert(eps, x, ones, zeros, "v")  # sigma = 0: v = eps and z = x
    torch.testing.assert_close(at_data, Prediction(x, eps, eps))


@pytest.mark.parametrize("prediction_type", ["v", "eps", "x"])
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_every_conversion_stays_finite_at_both_ends_of_time(prediction_type, t):
    z, output = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    pred = convert(output, z, *CosineSchedule().alpha_sigma(torch.full((5,), t)), prediction_type)
    assert all(part.isfinite().all() for part in pred)


def test_one_conversion_by_hand():
    # alpha = 0.6, sigma = 0.8, x = 1, eps = 2: z = 2.2 and v = 0.6 * 2 - 0.8 * 1 = 0.4.
    alpha, sigma, z = torch.tensor([0.6]), torch.tensor([0.8]), torch.tensor([[2.2]])
    pred = convert(torch.tensor([[0.4]]), z, alpha, sigma, "v")
    torch.testing.assert_close(pred, Prediction(*(torch.tensor([[a]]) for a in (1.0, 2.0, 0.4))))


# ---- weightings: omega(logsnr) ||x - x_target||^2 without its division by zero -----------------


def errors(t):
    """The mean squared errors in x, eps and v of two beliefs about the same z, and the SNR."""
    generator = torch.Generator().manual_seed(1)
    z, first, second = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    alpha, sigma = known_alpha_sigma("cosine", t)
    a, s = torch.tensor([[alpha] * 4, [sigma] * 4], dtype=torch.float64)
    pred, target = convert(first, z, a, s, "v"), convert(second, z, a, s, "v")
    x, eps, v = ((p - q).square().mean(1) for p, q in zip(pred, target, strict=True))
    logsnr = torch.full((4,), 2 * math.log(alpha / sigma), dtype=torch.float64)
    return pred, target.v, logsnr, (alpha / sigma) ** 2, x, eps, v


TIMES = [0.03, 0.3, 0.5, 0.8, 0.99]


@pytest.mark.parametrize("t", TIMES)
def test_v_error_is_snr_plus_1_times_the_x_error(t):
    pred, target, logsnr, ratio, x, _, v = errors(t)
    torch.testing.assert_close(v, (1 + ratio) * x)
    torch.testing.assert_close(weighted_error(pred, target, logsnr, snr_plus_one), (1 + ratio) * x)


@pytest.mark.parametrize("t", TIMES)
def test_eps_error_is_snr_times_the_x_error(t):
    pred, target, logsnr, ratio, x, eps, _ = errors(t)
    torch.testing.assert_close(eps, ratio * x)
    torch.testing.assert_close(weighted_error(pred, target, logsnr, snr), ratio * x)


@pytest.mark.parametrize("t", TIMES)
def test_the_larger_of_x_and_eps_error_is_truncated_snr_times_the_x_error(t):
    pred, target, logsnr, ratio, x, eps, _ = errors(t)
    torch.testing.assert_close(torch.maximum(x, eps), max(ratio, 1) * x)
    torch.testing.assert_close(
        weighted_error(pred, target, logsnr, truncated_snr), max(ratio, 1) * x
    )


@pytest.mark.parametrize("weighting", [snr, truncated_snr, snr_plus_one])
def test_every_weighting_on_v_is_at_most_1_also_at_both_ends(weighting):
    weight = weighting(torch.tensor([-20.0, -1.0, 0.0, 1.0, 20.0]))
    assert (weight >= 0).all() and (weight <= 1).all()
