"""Encoders: the flow upwards, distilled; reconstruction and translation between classes."""

import math

import pytest
import torch
from helpers import Wave, tiny_mlp
from torch import nn

from cfgdistill import (
    CosineSchedule,
    Denoiser,
    GuidedDenoiser,
    Optim,
    ddim,
    ddim_encode,
    ddim_step,
    distill_progressively,
    last,
    progressive_target,
    stochastic,
    translate,
)
from cfgdistill.core.stage_two import stage_two_loss
from cfgdistill.data.named import load_data
from cfgdistill.data.toy import GaussianMixture
from cfgdistill.training.randomness import Draw

SCHEDULE = CosineSchedule()
STD = 0.4
MEANS = torch.tensor([[1.5, -0.5], [-1.0, 0.75]], dtype=torch.float64)  # of classes A and B
A, B = torch.zeros(64).long(), torch.ones(64).long()


def two_classes():
    """The exact denoiser of N(mu_A, s^2) and N(mu_B, s^2)."""
    return GaussianMixture(MEANS, torch.arange(2), STD).denoiser(SCHEDULE)


def noise(n=64):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def random_numbers(batch=256):
    return Draw((0, "test", 0), batch, slice(None), torch.device("cpu"))


class Spy(Wave):
    """Keeps what it was asked."""

    def __init__(self):
        super().__init__()
        self.times, self.weights = [], []

    def forward(self, z, t, cond, w):
        self.times.append(t)
        self.weights.append(w)
        return super().forward(z, t, cond, w)


# ---- the loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize("N", [1, 2, 4])
def test_an_encoder_learns_at_0_up_to_1_minus_1_over_N_with_mid_half_a_step_above(N):
    model = Denoiser(Spy(), SCHEDULE)
    x, cond = torch.zeros(256, 2), torch.zeros(256).long()
    stage_two_loss(model, N, (0.0, 4.0), sampler="ddim_encode")(model, x, cond, random_numbers())
    t, mid, own = model.net.times  # two calls of the teacher, then the student's
    assert set(t.tolist()) == {i / N for i in range(N)}
    assert torch.equal(mid, t + 0.5 / N) and torch.equal(own, t)
    first, second, student = model.net.weights
    assert torch.equal(first, second) and torch.equal(first, student)


@pytest.mark.parametrize("N", [1, 2, 4])
def test_one_step_up_with_the_target_is_two_steps_of_ddim_encode(N):
    # At t = 0 that is the beginning of the teacher's own encoding in 2N steps.
    teacher, x = Denoiser(Wave(), SCHEDULE), noise()
    walk = list(ddim_encode(teacher, x, 2 * N))
    v = progressive_target(teacher, x, 0.0, 1 / N)
    turn = math.pi / 2 / N
    torch.testing.assert_close(math.cos(turn) * x + math.sin(turn) * v, walk[1])


class TwoSteps(nn.Module):
    """The encoder that one step of any N should be, worked out with two steps of its teacher."""

    def __init__(self, teacher, N):
        super().__init__()
        self.teacher, self.N = teacher, N

    def forward(self, z, t, cond, w):
        z_s = z
        for start in (t, t + 0.5 / self.N):
            z_s = ddim_step(self.teacher(z_s, start, cond, w), start + 0.5 / self.N, SCHEDULE)
        turn = math.pi / 2 / self.N
        return (z_s - math.cos(turn) * z) / math.sin(turn)


@pytest.mark.parametrize("N", [1, 2, 8])
def test_a_perfect_encoder_has_zero_loss_and_its_teacher_has_not(N):
    teacher = Denoiser(Wave(), SCHEDULE)
    loss = stage_two_loss(teacher, N, (0.0, 4.0), sampler="ddim_encode")
    x, cond = noise(256), torch.arange(256) % 3
    perfect = loss(Denoiser(TwoSteps(teacher, N), SCHEDULE), x, cond, random_numbers())
    assert perfect.max() < 1e-10 < 1e-4 < loss(teacher, x, cond, random_numbers()).mean()


# ---- what an exact encoder does -----------------------------------------------------------------


class Gain(nn.Module):
    """v = gain(t) z, with gains on a grid of n times: all that centred Gaussian data asks for."""

    def __init__(self, gains, n):
        super().__init__()
        self.gains, self.n = gains, n

    def forward(self, z, t, cond, w):
        return (
            torch.stack([z.new_tensor(self.gains[round(self.n * u)]) for u in t.tolist()])[:, None]
            * z
        )


def distilled(sampler, start=64):
    """Students of 64, 32, ..., 1 steps, as exact as their targets, of centred data of std 0.4.

    The chain of halvings without a network: each gain is read off the target itself.
    """
    mixture = GaussianMixture(torch.zeros(1, 1), torch.zeros(1).long(), STD)
    teacher, one, N = mixture.denoiser(SCHEDULE), torch.ones(1, 1, dtype=torch.float64), start
    jump = -1 if sampler == "ddim" else 1
    students = {}
    while N >= 1:
        times = range(1, N + 1) if sampler == "ddim" else range(N)
        gains = {
            i * (start // N): progressive_target(teacher, one, i / N, (i + jump) / N).item()
            for i in times
        }
        teacher = Denoiser(Gain(gains, start), SCHEDULE, steps=N, sampler=sampler)
        students[N], N = teacher, N // 2
    return students


def test_every_distilled_encoder_does_what_the_first_teacher_does_in_twice_the_start():
    # Its product of 128 steps: cos(d) + sin(d) gain(t) each, gain = alpha sigma (1 - s^2) / q.
    known, d = 1.0, math.pi / 2 / 128
    for i in range(128):
        alpha, sigma = math.cos(i * d), math.sin(i * d)
        q = alpha**2 * STD**2 + sigma**2
        known *= math.cos(d) + math.sin(d) * alpha * sigma * (1 - STD**2) / q
    assert known == pytest.approx(1 / STD, rel=0.05)  # the exact flow maps s z to z
    x = noise()[:, :1]
    for N, encoder in distilled("ddim_encode").items():
        torch.testing.assert_close(last(ddim_encode(encoder, x, N)), known * x)


@pytest.mark.parametrize("N", [1, 4])
def test_a_distilled_pair_reconstructs_as_well_as_its_first_teachers_many_steps(N):
    # Also in one step. First order in the first teacher's step, whatever the student's.
    x, none, error = noise()[:, :1], torch.zeros(64).long(), []
    for start in (32, 64):
        encoder, decoder = distilled("ddim_encode", start)[N], distilled("ddim", start)[N]
        back = translate(encoder, decoder, x, none, none, N)
        error.append((back / x - 1).abs().max().item())
    assert error[1] < 0.03 and 1.9 < error[0] / error[1] < 2.1


def test_an_undistilled_pair_of_one_step_forgets_x_and_lands_on_the_mean():
    # At t = 0 the noise could be any, so E[v] = 0, and a quarter turn towards 0 is 0 for every x.
    x, model = MEANS[0] + STD * noise(), two_classes()
    z = last(ddim_encode(model, x, 1, A))
    torch.testing.assert_close(z, torch.zeros_like(x), rtol=0, atol=1e-7)
    back = translate(model, model, x, A, A, 1, w=None, w_encode=None)
    torch.testing.assert_close(back, MEANS[:1].expand(64, 2))


def test_the_error_of_encoding_a_gaussian_class_halves_when_the_steps_double():
    z = noise()
    error = [
        (last(ddim_encode(two_classes(), MEANS[0] + STD * z, steps, A)) - z).abs().max()
        for steps in (32, 64, 128, 256)
    ]
    for coarse, fine in zip(error, error[1:], strict=False):
        assert 1.9 < coarse / fine < 2.1


class OnePath(nn.Module):
    """Believes that eps = c x: then z_t = (alpha + c sigma) x, and one step is as exact as many."""

    def forward(self, z, t, cond, w):
        alpha, sigma = ((math.pi / 2 * t).cos()[:, None], (math.pi / 2 * t).sin()[:, None])
        c = 0.7
        return (c * alpha - sigma) / (alpha + c * sigma) * z


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_where_x_and_eps_are_known_from_z_encoding_is_exact_and_decoding_returns_x(steps):
    model, x = Denoiser(OnePath(), SCHEDULE), noise()
    z = last(ddim_encode(model, x, steps))
    torch.testing.assert_close(z, 0.7 * x)
    torch.testing.assert_close(last(ddim(model, z, steps)), x)


# ---- translation --------------------------------------------------------------------------------


def test_translation_moves_a_gaussian_class_by_the_difference_of_the_means():
    # mu_A + s z -> z -> mu_B + s z. The error of 512 steps is half that of 256.
    x = MEANS[0] + STD * noise()
    how = dict(w=None, w_encode=None)
    model = two_classes()
    moved = 2 * translate(model, model, x, A, B, 512, **how)
    moved = moved - translate(model, model, x, A, B, 256, **how)
    torch.testing.assert_close(moved, x + MEANS[1] - MEANS[0], rtol=0, atol=1e-4)


def test_translation_to_the_own_class_is_reconstruction():
    model, x = Denoiser(Wave(), SCHEDULE), noise()
    z = last(ddim_encode(model, x, 8, A, 1.5))
    known = last(ddim(model, z, 8, A, 1.5))
    assert torch.equal(translate(model, model, x, A, A, 8, w=1.5, w_encode=1.5), known)
    assert not torch.equal(translate(model, model, x, A, B, 8, w=1.5, w_encode=1.5), known)


def test_the_encoder_gets_the_source_and_its_w_and_the_decoder_the_target_and_its_own():
    x, asked = noise(), []

    class Listener(Wave):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, z, t, cond, w):
            asked.append((self.name, t[0].item(), cond[0].item(), w[0].item()))
            return super().forward(z, t, cond, w)

    pair = [Denoiser(Listener(name), SCHEDULE) for name in ("encoder", "decoder")]
    translate(*pair, x, A, B, 2, w=3.0, w_encode=0.5)
    up, down = [("encoder", t, 0, 0.5) for t in (0, 0.5)], [("decoder", t, 1, 3) for t in (1, 0.5)]
    assert asked == up + down and all(model.nfe == 2 for model in pair)
    asked.clear()
    translate(*pair, x, A, B, 2)
    assert {w for *_, w in asked} == {0.0}  # unguided unless told otherwise


def test_guiding_the_decoder_moves_further_away_from_the_class_left_behind():
    guided, x = GuidedDenoiser(two_classes(), null=2), MEANS[0] + STD * noise()
    direction = (MEANS[1] - MEANS[0]) / (MEANS[1] - MEANS[0]).norm()
    moved = [
        ((translate(guided, guided, x, A, B, 64, w=w) - x) @ direction).mean() for w in (0, 1, 3)
    ]
    assert moved[0] < moved[1] < moved[2]


# ---- students -----------------------------------------------------------------------------------


def test_an_encoder_refuses_to_decode_and_a_decoder_to_encode_in_a_sentence():
    x = noise()
    encoder, decoder = (
        Denoiser(Wave(), SCHEDULE, steps=2, sampler=name) for name in ("ddim_encode", "ddim")
    )
    translate(encoder, decoder, x, A, A, 2)
    for other in (ddim, stochastic):
        with pytest.raises(
            ValueError,
            match=rf"for the sampler 'ddim_encode', not '{other.__name__}': "
            r"call ddim_encode, or load the student of the other sampler",
        ):
            other(encoder, x, 2)
    with pytest.raises(ValueError, match="for the sampler 'ddim', not 'ddim_encode'"):
        ddim_encode(decoder, x, 2)
    with pytest.raises(ValueError, match="for the sampler 'ddim', not 'ddim_encode'"):
        translate(decoder, encoder, x, A, A, 2)
    with pytest.raises(ValueError, match="distilled for 2 steps, not 4"):
        ddim_encode(encoder, x, 4)


class Table(nn.Module):
    """v = gain z with a parameter for each of the 8 times from 0 to 7/8."""

    def __init__(self, gains):
        super().__init__()
        self.gains = nn.Parameter(torch.tensor(gains))

    def forward(self, z, t, cond, w):
        return self.gains[(8 * t).round().long()][:, None] * z


def test_the_halving_loop_makes_an_encoder_that_does_8_steps_in_1():
    gains = [0.1, 0.4, -0.2, 0.3, 0.0, -0.5, 0.2, 0.6]
    teacher, d = Denoiser(Table(gains), SCHEDULE), math.pi / 2 / 8
    data = load_data("toy", images=300)
    how = dict(start=4, sampler="ddim_encode")
    students = list(distill_progressively(teacher, data, Optim(40, 16, 0.05), **how))
    assert [(s.steps, s.sampler) for s in students] == [(n, "ddim_encode") for n in (4, 2, 1)]
    known = math.prod(math.cos(d) + math.sin(d) * gain for gain in gains)
    x = noise()
    for student in students:
        z = last(ddim_encode(student, x, student.steps))
        torch.testing.assert_close(z, known * x, rtol=0.01, atol=0)


def test_an_encoder_keeps_its_w_range_and_its_classes():
    teacher, data = tiny_mlp(w_range=(0.0, 4.0)), load_data("toy", images=50)
    how = dict(start=2, sampler="ddim_encode")
    for student in distill_progressively(teacher, data, Optim(1, 8, 1e-3), **how):
        last(ddim_encode(student, noise().float(), student.steps, A, 4.0))
        with pytest.raises(ValueError, match="w = 5 is outside"):
            ddim_encode(student, noise().float(), student.steps, A, 5.0)
