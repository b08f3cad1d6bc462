"""Guidance rules: against their papers' own formulas in x and eps, diffusers, and exact answers."""

import math
from functools import partial

import pytest
import torch
from helpers import Wave, tiny_mlp
from torch import nn

from cfgdistill import (
    CosineSchedule,
    Denoiser,
    GuidedDenoiser,
    ddim,
    expand,
    last,
    pinwheel,
)
from cfgdistill.core import rules

SCHEDULE = CosineSchedule()
TOY = pinwheel()
TOY.means = TOY.means.double()
EXACT, NULL = TOY.denoiser(SCHEDULE), 3


def points(n=96, t=None):
    """Noised examples of the toy in float64: z, t, cond."""
    generator = torch.Generator().manual_seed(0)
    x, cond = TOY.sample(n, generator)
    eps = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    t = (
        0.05 + 0.9 * torch.rand(n, generator=generator).double()
        if t is None
        else x.new_full((n,), t)
    )
    return SCHEDULE.add_noise(x, eps, t), t, cond


Z, T, COND = points()
ALPHA, SIGMA = (expand(a, Z) for a in SCHEDULE.alpha_sigma(T))
CONDITIONAL, UNCONDITIONAL = EXACT(Z, T, COND), EXACT(Z, T, torch.full_like(COND, NULL))


def log_p(z, t, cond):
    """log p(c | z_t) of the toy, exactly: by Bayes from the densities of its noised Gaussians."""
    alpha, sigma = SCHEDULE.alpha_sigma(t)
    variance = alpha**2 * TOY.std**2 + sigma**2
    offset = z[:, None] - alpha[:, None, None] * TOY.means
    joint = -offset.square().sum(-1) / (2 * variance[:, None])
    own = joint.masked_fill(TOY.labels != cond[:, None], -math.inf)
    return own.logsumexp(1) - joint.logsumexp(1)


def close(a, b, atol=1e-9):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# ---- what each rule says --------------------------------------------------------------------


def test_no_rule_is_classifier_free_guidance():
    plain, named = (GuidedDenoiser(EXACT, NULL, r) for r in (None, rules.classifier_free))
    assert torch.equal(plain(Z, T, COND, 2.0).v, named(Z, T, COND, 2.0).v)


def test_in_an_interval_of_noise_guidance_is_as_ever_and_outside_there_is_none():
    said = GuidedDenoiser(EXACT, NULL, rules.interval)(Z, T, COND, (2.0, 0.28, 5.42)).v
    inside = (SIGMA / ALPHA > 0.28) & (SIGMA / ALPHA <= 5.42)
    assert 0 < inside.sum() < len(Z)
    guided = 3 * CONDITIONAL.v - 2 * UNCONDITIONAL.v
    close(said, torch.where(inside, guided, CONDITIONAL.v))


def test_outside_its_interval_a_rule_asks_once():
    guided = GuidedDenoiser(EXACT, NULL, rules.interval)
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    guided.nfe = 0
    last(ddim(guided, z, 8, COND[:4], (2.0, 0.5, 2.0)))
    # tan(pi t / 2) for t = 3/8, 4/8, 5/8 is 0.67, 1, 1.50; for 2/8 it is 0.41 and for 6/8 2.41
    assert guided.nfe == 5 + 2 * 3


def test_autoguidance_is_away_from_another_network_under_the_same_condition():
    weak = Denoiser(Wave(), SCHEDULE)
    guided = GuidedDenoiser(EXACT, NULL, partial(rules.autoguidance, weak=weak))
    bad = weak(Z, T, COND)
    guided.nfe = 0
    said = guided(Z, T, COND, 1.5)
    # as in EDM2's sampler: ref_Dx.lerp(Dx, guidance), guidance = 1 + w
    close(said.x, bad.x.lerp(CONDITIONAL.x, 2.5))
    assert guided.nfe == 2 and [*guided.others] == ["weak"]


def test_a_network_bound_to_a_rule_is_a_part_of_the_teacher():
    weak = tiny_mlp()
    guided = GuidedDenoiser(tiny_mlp(1), NULL, partial(rules.autoguidance, weak=weak)).double()
    assert next(weak.parameters()).dtype == torch.float64
    about = guided.describe()
    assert about["rule"] == "autoguidance" and about["weak"] == weak.describe()
    assert "rule" not in GuidedDenoiser(weak, NULL).describe()


@pytest.mark.parametrize("eta", [0.0, 0.3])
@pytest.mark.parametrize("radius", [0.2, math.inf])
def test_projected_guidance_is_that_of_its_paper_in_x(eta, radius):
    rule = partial(rules.projected, eta=eta, radius=radius)
    said = GuidedDenoiser(EXACT, NULL, rule)(Z, T, COND, 2.0).x
    d = CONDITIONAL.x - UNCONDITIONAL.x
    d = d * torch.minimum(torch.ones(len(Z), 1), radius / d.norm(dim=1, keepdim=True))
    unit = CONDITIONAL.x / CONDITIONAL.x.norm(dim=1, keepdim=True)
    parallel = (d * unit).sum(1, keepdim=True) * unit
    close(said, CONDITIONAL.x + 2 * (d - parallel + eta * parallel))


def test_zero_star_guides_against_the_multiple_of_the_unconditional_v_that_is_nearest():
    said = GuidedDenoiser(EXACT, NULL, rules.zero_star)(Z, T, COND, 1.0).v
    scale = [
        torch.linalg.lstsq(u[:, None], c[:, None]).solution.item()
        for u, c in zip(UNCONDITIONAL.v, CONDITIONAL.v, strict=True)
    ]
    nearest = torch.tensor(scale, dtype=torch.float64)[:, None] * UNCONDITIONAL.v
    close(said, 2 * CONDITIONAL.v - nearest)


def test_wholly_rescaled_guidance_has_the_spread_of_the_conditional_prediction():
    guided = GuidedDenoiser(EXACT, NULL, partial(rules.rescaled, phi=1.0))
    said, plain = guided(Z, T, COND, 3.0).v, GuidedDenoiser(EXACT, NULL)(Z, T, COND, 3.0).v
    close(said.std(1), CONDITIONAL.v.std(1))
    close(nn.functional.cosine_similarity(said, plain), torch.ones(len(Z), dtype=torch.float64))


def test_guidance_by_the_exact_classifier_is_classifier_free_guidance():
    guided = GuidedDenoiser(EXACT, NULL, partial(rules.uphill, log_p=log_p))
    guided.nfe = 0
    with torch.no_grad():  # as the samplers call it
        close(guided(Z, T, COND, 2.0).v, GuidedDenoiser(EXACT, NULL)(Z, T, COND, 2.0).v)
    assert guided.nfe == 1 + 1 + 2 + 2  # and two of the pair that it was compared with


def test_guidance_by_the_exact_classifier_starts_from_pure_noise_as_well():
    z, t, cond = points(16, t=1.0)
    guided = GuidedDenoiser(EXACT, NULL, partial(rules.uphill, log_p=log_p))
    close(guided(z, t, cond, 2.0).v, GuidedDenoiser(EXACT, NULL)(z, t, cond, 2.0).v, atol=0.01)


def test_a_classifier_is_asked_for_the_label_and_its_weights_get_no_gradient():
    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(3, dtype=torch.float64))

        def forward(self, z, t):
            every = torch.arange(3).expand(len(z), 3)
            return torch.stack([log_p(z, t, c) for c in every.unbind(1)], 1) + self.shift + 5.0

    net = Logits()
    guided = GuidedDenoiser(EXACT, NULL, partial(rules.classifier, net=net))
    close(guided(Z, T, COND, 2.0).v, GuidedDenoiser(EXACT, NULL)(Z, T, COND, 2.0).v)
    assert net.shift.grad is None


def test_several_conditions_are_each_added_with_a_strength_of_its_own():
    guided = GuidedDenoiser(EXACT, NULL, rules.several)
    other = (COND + 1) % 3
    b = EXACT(Z, T, other).v
    guided.nfe = 0
    said = guided(Z, T, (COND, other), (2.0, torch.linspace(0, 1, len(Z)))).v
    assert guided.nfe == 3
    a, zero = CONDITIONAL.v, UNCONDITIONAL.v
    close(said, zero + 2 * (a - zero) + torch.linspace(0, 1, len(Z))[:, None] * (b - zero), 1e-6)


def test_one_condition_at_strength_1_plus_w_is_classifier_free_guidance():
    guided = GuidedDenoiser(EXACT, NULL, rules.several)
    alone, off = guided(Z, T, (COND,), (3.0,)).v, guided(Z, T, (COND, COND), (3.0, 0.0)).v
    close(alone, GuidedDenoiser(EXACT, NULL)(Z, T, COND, 2.0).v)
    close(alone, off)


def test_of_two_models_the_second_has_its_share_while_there_is_much_noise():
    single = Denoiser(Wave(), SCHEDULE)
    rule = partial(rules.sine, single=single, cond=2, share=0.7, since=0.4)
    said = GuidedDenoiser(EXACT, NULL, rule)(Z, T, COND, 1.0).x
    own = single(Z, T, torch.full_like(COND, 2)).x
    # SINE's guidance_ddim.py: e_uncond + scale ((1 - b) e + b e_single - e_uncond), scale = 1 + w
    mixed = torch.where(T[:, None] > 0.4, 0.3 * CONDITIONAL.x + 0.7 * own, CONDITIONAL.x)
    close(said, UNCONDITIONAL.x + 2 * (mixed - UNCONDITIONAL.x))


def plus_plus(z, steps, cond, strength):
    """CFG++ as its own code has it (`ddim_cfg++`): x of the guided, noise of the unconditional."""
    for i in range(steps, 0, -1):
        t, s = (z.new_full((len(z),), j / steps) for j in (i, i - 1))
        c, u = EXACT(z, t, cond), EXACT(z, t, torch.full_like(cond, NULL))
        x = u.x + strength * (c.x - u.x)
        alpha, sigma = SCHEDULE.alpha_sigma(s)
        z = expand(alpha, z) * x + expand(sigma, z) * u.eps
    return z


@pytest.mark.parametrize("steps", [1, 2, 7, 16])
def test_cfg_plus_plus_is_guidance_with_a_weight_that_depends_on_the_step(steps):
    z = torch.randn(64, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cond, known = COND[:64], plus_plus(z, steps, COND[:64], 0.6)
    as_a_rule = GuidedDenoiser(EXACT, NULL, partial(rules.plus_plus, steps=steps))
    close(last(ddim(as_a_rule, z, steps, cond, 0.6)), known)


def test_the_weights_of_cfg_plus_plus_are_an_interval_that_grows_with_the_steps():
    def scale(t, steps):
        t = torch.tensor([t], dtype=torch.float64)
        return 1 + rules.plus_plus_w(0.6, t, t - 1 / steps, SCHEDULE).item()

    assert scale(1.0, 8) == pytest.approx(0.6) and scale(1 / 8, 8) == pytest.approx(0.6)
    # 0.6 sin(pi/4) cos(pi/4 - pi/2N) / sin(pi/2N), at the middle of N = 4, 16, 64, 256 steps
    for steps, known in ((4, 1.02), (16, 3.35), (64, 12.5), (256, 49.2)):
        assert scale(0.5, steps) == pytest.approx(known, rel=0.01)
