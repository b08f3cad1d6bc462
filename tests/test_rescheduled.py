"""A base seen on another schedule: how eps becomes v by distillation."""

import pytest
import torch

from cfgdistill import CosineSchedule, DiscreteSchedule, GuidedDenoiser, ddim_step, rescheduled
from cfgdistill.core.schedules import expand
from cfgdistill.core.stage_one import guidance_matching_loss
from cfgdistill.data.toy import GaussianMixture, pinwheel
from cfgdistill.teachers.w_input import add_w_conditioning

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
OWN = DiscreteSchedule((1 - BETAS).cumprod(0))  # Stable Diffusion's, which ends at alpha = 0.068
MENDED = OWN.zero_terminal_snr().resampled(1024)
CLEANER = 0.87  # up to this time the mended schedule is less noisy than the end of the base's own


def saying_eps(denoiser):
    """The same denoiser, to which nothing but eps is known, as to Stable Diffusion's U-Net."""
    said = denoiser.forward

    class Eps(torch.nn.Module):
        def forward(self, z, t, cond, w):
            return said(z, t, cond, w).eps

    return type(denoiser)(Eps(), denoiser.schedule, "eps", num_classes=denoiser.num_classes)


def given(n=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return z, torch.randint(0, 4, (n,), generator=generator)  # 3 is the null label


@pytest.mark.parametrize("schedule", [MENDED, CosineSchedule()], ids=["mended", "cosine"])
def test_where_the_base_knows_the_noise_it_is_the_exact_v_denoiser_of_the_new_schedule(schedule):
    base, exact = saying_eps(pinwheel().denoiser(OWN)), pinwheel().denoiser(schedule)
    seen = rescheduled(base, schedule)
    z, cond = given()
    for t in (0.01, 0.1, 0.3, 0.5, 0.7, CLEANER):
        for found, known in zip(seen(z, t, cond), exact(z, t, cond), strict=True):
            torch.testing.assert_close(found, known, atol=1e-9, rtol=1e-9)


def test_on_its_own_schedule_it_is_the_base_itself():
    base = saying_eps(pinwheel().denoiser(OWN))
    seen, (z, cond) = rescheduled(base, OWN), given()
    t = torch.linspace(0.001, 1, len(z), dtype=torch.float64)
    for found, known in zip(seen(z, t, cond), base(z, t, cond), strict=True):
        torch.testing.assert_close(found, known, atol=1e-9, rtol=1e-9)


def test_guided_it_is_the_guided_base_of_equal_noise():
    base, (z, cond) = saying_eps(pinwheel().denoiser(OWN)), given()
    seen = GuidedDenoiser(rescheduled(base, MENDED), 3)
    exact = GuidedDenoiser(pinwheel().denoiser(MENDED), 3)
    for w in (0.0, 2.0, 14.0):
        found, known = seen(z, 0.6, cond, w), exact(z, 0.6, cond, w)
        torch.testing.assert_close(found.v, known.v, atol=1e-9, rtol=1e-9)
    assert seen.nfe == 6


def test_above_its_noisiest_level_it_believes_what_it_believed_there():
    """x = mu + g (z - alpha_1 mu) with the gain g of the base's last entry, for one Gaussian.

    The truth at alpha = 0 is x = mu: the base takes noise for seven percent of an image.
    """
    mu, std = torch.tensor([[1.5, -0.5]], dtype=torch.float64), 0.4
    base = saying_eps(GaussianMixture(mu, torch.zeros(1, dtype=torch.long), std).denoiser(OWN))
    seen, (z, _) = rescheduled(base, MENDED), given()
    alpha = OWN.alphas_cumprod[-1].sqrt()
    gain = alpha * std**2 / (alpha**2 * std**2 + 1 - alpha**2)
    assert alpha.item() == pytest.approx(0.0683, abs=1e-4)
    assert gain.item() == pytest.approx(0.011, abs=1e-3)
    x = mu + gain * (z - alpha * mu)
    for t in (0.9, 0.97, 1.0):
        here = MENDED.alpha_sigma(torch.full((len(z),), t, dtype=torch.float64))
        alpha_t, sigma_t = (expand(a, z) for a in here)
        said = seen(z, t, torch.zeros(64).long())
        torch.testing.assert_close(said.x, x, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(said.v, (alpha_t * z - x) / sigma_t, atol=1e-9, rtol=1e-9)
    assert torch.equal(said.v, -said.x)  # at t = 1
    before, after = (seen(z, t, torch.zeros(64).long()).v for t in (CLEANER, CLEANER + 0.02))
    assert (before - after).abs().max() < 0.05  # and no jump where its own schedule ends


def test_a_student_that_says_v_and_is_exact_has_no_loss_against_a_base_that_says_eps():
    base, student = saying_eps(pinwheel().denoiser(OWN)), pinwheel().denoiser(MENDED)
    teacher, exact = (GuidedDenoiser(d, 3) for d in (rescheduled(base, MENDED), student))
    x, cond = pinwheel().sample(64, torch.Generator().manual_seed(0))
    t = torch.linspace(0.01, CLEANER, 64, dtype=torch.float64)
    w = torch.linspace(0, 14, 64, dtype=torch.float64)
    assert guidance_matching_loss(exact, teacher, x.double(), cond, w, t).max() < 1e-15
    noisiest = guidance_matching_loss(exact, teacher, x.double(), cond, w, 1.0)
    assert noisiest.max() > 1e-4  # of which the base knows no better


def test_from_equal_noise_on_both_take_the_same_steps_to_the_same_samples():
    base, (z, cond) = saying_eps(pinwheel().denoiser(OWN)), given()
    seen, theirs = rescheduled(base, MENDED), z
    times = CLEANER * torch.linspace(1, 0, 9, dtype=torch.float64)[:, None]
    for t, s in zip(times, times[1:], strict=False):
        z = ddim_step(seen(z, t[0], cond), s.expand(64), MENDED)
        own_t, own_s = (OWN.time(MENDED.angle(one)) for one in (t, s))
        theirs = ddim_step(base(theirs, own_t[0], cond), own_s.expand(64), OWN)
        torch.testing.assert_close(z, theirs, atol=1e-9, rtol=1e-9)
    assert (z - given()[0]).abs().max() > 1


def test_students_are_made_from_networks_and_not_from_a_base_seen_elsewhere():
    seen = rescheduled(saying_eps(pinwheel().denoiser(OWN)), MENDED)
    with pytest.raises(ValueError, match="does not say how it takes a guidance weight"):
        add_w_conditioning(seen, (0.0, 4.0))
