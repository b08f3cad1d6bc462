"""The targets of both stages: one student step is two teacher steps, exactly."""

import math

import pytest
import torch
from helpers import Wave, known_alpha_sigma, schedules

from cfgdistill import (
    CosineSchedule,
    Denoiser,
    GuidedDenoiser,
    convert,
    ddim_step,
    diffusion_loss,
    guidance_matching_loss,
    progressive_loss,
    progressive_target,
)
from cfgdistill.core.losses import balance, snr, snr_plus_one, teacher_loss, truncated_snr
from cfgdistill.core.stage_one import stage_one_loss
from cfgdistill.core.stage_two import stage_two_loss
from cfgdistill.training.randomness import Draw

COND, W = torch.tensor([0, 1, 2, 1]), torch.tensor([0.0, 0.7, 2.0, 4.0], dtype=torch.float64)


def noise(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, generator=generator, dtype=torch.float64)


def at(t):
    return torch.full((4,), t, dtype=torch.float64)


def step(name, z, v, t, s):
    """One DDIM step by its formula: x and eps from v, then alpha_s x + sigma_s eps."""
    (a_t, s_t), (a_s, s_s) = known_alpha_sigma(name, t), known_alpha_sigma(name, s)
    return a_s * (a_t * z - s_t * v) + s_s * (s_t * z + a_t * v)


def guided_v(z, t):
    """The guided pair's v by its formula; label 3 is null."""
    cond = Wave()(z, at(t), COND, None)
    uncond = Wave()(z, at(t), torch.full((4,), 3), None)
    return (1 + W[:, None]) * cond - W[:, None] * uncond


def guided_teacher(name="cosine"):
    return GuidedDenoiser(Denoiser(Wave(), schedules()[name]), null=3)


def intervals(N, direction):
    """The N student intervals (t, mid, s) of decoding or of encoding."""
    for i in range(1, N + 1):
        high, low = i / N, (i - 1) / N
        t, s = (high, low) if direction == "decode" else (low, high)
        yield t, (high + low) / 2, s


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("name", schedules())
@pytest.mark.parametrize("N", [1, 2, 4, 8, 64])
def test_one_step_with_the_progressive_target_is_two_teacher_steps(N, name, direction):
    teacher, schedule = guided_teacher(name), schedules()[name]
    for i, (t, mid, s) in enumerate(intervals(N, direction)):
        z = noise(seed=i)
        z_mid = step(name, z, guided_v(z, t), t, mid)
        z_s = step(name, z_mid, guided_v(z_mid, mid), mid, s)
        v = progressive_target(teacher, z, t, s, COND, W)
        torch.testing.assert_close(step(name, z, v, t, s), z_s, rtol=0, atol=1e-10)
        own = ddim_step(convert(v, z, *schedule.alpha_sigma(at(t)), "v"), at(s), schedule)
        torch.testing.assert_close(own, z_s, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", schedules())
@pytest.mark.parametrize("N", [1, 2, 4, 8, 64])
def test_in_the_last_interval_the_target_is_the_teachers_second_prediction(N, name):
    teacher, z, t, mid = guided_teacher(name), noise(), 1 / N, 0.5 / N
    z_mid = step(name, z, guided_v(z, t), t, mid)
    (a_t, s_t), (a_m, s_m) = known_alpha_sigma(name, t), known_alpha_sigma(name, mid)
    second = a_m * z_mid - s_m * guided_v(z_mid, mid)
    x = a_t * z - s_t * progressive_target(teacher, z, t, 0.0, COND, W)
    torch.testing.assert_close(x, second, rtol=0, atol=1e-10)


def test_elsewhere_the_target_is_not_the_teachers_second_prediction():
    z, t, mid, s = noise(), 0.5, 0.375, 0.25  # a mistake of a public implementation
    z_mid = step("cosine", z, guided_v(z, t), t, mid)
    (a_t, s_t), (a_m, s_m) = known_alpha_sigma("cosine", t), known_alpha_sigma("cosine", mid)
    second = a_m * z_mid - s_m * guided_v(z_mid, mid)
    x = a_t * z - s_t * progressive_target(guided_teacher(), z, t, s, COND, W)
    assert (x - second).abs().max() > 0.05


class Spy(Wave):
    """Keeps the times and weights at which it was asked."""

    def __init__(self):
        super().__init__()
        self.t, self.w = [], []

    def forward(self, z, t, cond, w):
        self.t.append(t.tolist())
        self.w.append(None if w is None else w.tolist())
        return super().forward(z, t, cond, w)


def test_the_teacher_is_asked_at_t_and_then_at_mid_with_the_same_w():
    teacher = Denoiser(Spy(), CosineSchedule())
    t, s = torch.tensor([1.0, 0.75, 0.5, 0.25]).double(), torch.tensor([0.5, 0.25, 0, 0]).double()
    progressive_target(teacher, noise(), t, s, COND, W)
    assert teacher.net.t == [[1.0, 0.75, 0.5, 0.25], [0.75, 0.5, 0.25, 0.125]]
    assert teacher.net.w == [W.tolist(), W.tolist()]


class PerfectStudent(torch.nn.Module):
    """Its v is the v whose one step does two guided teacher steps, by the x form of the paper."""

    def __init__(self, N):
        super().__init__()
        self.N = N

    def forward(self, z, t, cond, w):
        t = t[0].item()
        mid, s = t - 0.5 / self.N, t - 1 / self.N
        z_mid = step("cosine", z, guided_v(z, t), t, mid)
        z_s = step("cosine", z_mid, guided_v(z_mid, mid), mid, s)
        (a_t, s_t), (a_s, s_s) = known_alpha_sigma("cosine", t), known_alpha_sigma("cosine", s)
        x = (z_s - s_s / s_t * z) / (a_s - s_s / s_t * a_t)
        return (a_t * z - x) / s_t


@pytest.mark.parametrize("N", [1, 2, 4, 8])
@pytest.mark.parametrize("weighting", [snr, truncated_snr, snr_plus_one])
def test_a_perfect_student_has_zero_progressive_loss(N, weighting):
    student = Denoiser(PerfectStudent(N), CosineSchedule())
    for t, _, s in intervals(N, "decode"):
        loss = progressive_loss(
            student, guided_teacher(), noise(1), COND, W, t, s, eps=noise(2), weighting=weighting
        )
        assert loss.shape == (4,) and loss.max() < 1e-20


@pytest.mark.parametrize("weighting", [snr, truncated_snr, snr_plus_one])
def test_any_other_student_has_not(weighting):
    student = Denoiser(Wave(), CosineSchedule())
    loss = progressive_loss(
        student, guided_teacher(), noise(1), COND, W, 0.5, 0.25, eps=noise(2), weighting=weighting
    )
    assert (loss > 1e-4).all()


class GuidedWave(Wave):
    """One network with a w input that does exactly what the guided pair does."""

    def forward(self, z, t, cond, w):
        cond, uncond = super().forward(z, t, cond, None), super().forward(z, t, cond * 0 + 3, None)
        return (1 + w[:, None]) * cond - w[:, None] * uncond


def test_a_student_that_is_the_guided_pair_has_zero_stage_one_loss():
    student, t = Denoiser(GuidedWave(), CosineSchedule()), torch.tensor([0.0, 0.3, 0.8, 1.0])
    loss = guidance_matching_loss(student, guided_teacher(), noise(1), COND, W, t, eps=noise(2))
    assert loss.max() < 1e-25


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
@pytest.mark.parametrize(
    ("weighting", "omega"),
    [
        (snr, lambda ratio: ratio),
        (truncated_snr, lambda ratio: max(ratio, 1)),
        (snr_plus_one, lambda ratio: ratio + 1),
    ],
)
def test_stage_one_loss_is_the_weighted_distance_to_the_guided_x(t, weighting, omega):
    a, s = known_alpha_sigma("cosine", t)
    x, eps = noise(1), noise(2)
    z = a * x + s * eps
    target = a * z - s * guided_v(z, t)
    student = a * z - s * Wave()(z, at(t), COND, W)
    known = omega((a / s) ** 2) * (student - target).square().mean(1)
    loss = guidance_matching_loss(
        Denoiser(Wave(), CosineSchedule()),
        guided_teacher(),
        x,
        COND,
        W,
        t,
        eps=eps,
        weighting=weighting,
    )
    torch.testing.assert_close(loss, known)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_diffusion_loss_is_snr_plus_1_times_the_distance_to_the_data(t):
    a, s = known_alpha_sigma("cosine", t)
    x, eps = noise(1), noise(2)
    z = a * x + s * eps
    guess = a * z - s * Wave()(z, at(t), COND, None)
    known = (1 + (a / s) ** 2) * (guess - x).square().mean(1)
    loss = diffusion_loss(Denoiser(Wave(), CosineSchedule()), x, COND, at(t), eps=eps)
    torch.testing.assert_close(loss, known)


class Affine(torch.nn.Module):
    """One parameter, to see where gradients flow."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, z, t, cond, w):
        return self.a * z


def test_gradients_reach_the_student_and_not_the_teacher():
    teacher, student = (Denoiser(Affine(), CosineSchedule()) for _ in range(2))
    student.net.a.data += 0.1
    progressive_loss(student, teacher, noise(), None, None, 1.0, 0.5).sum().backward()
    guidance_matching_loss(student, teacher, noise(), None, 0.0, 0.5).sum().backward()
    assert teacher.net.a.grad is None and student.net.a.grad.abs() > 0


def test_losses_draw_their_own_noise_when_given_none():
    denoiser = Denoiser(Wave(), CosineSchedule())
    first, second = (diffusion_loss(denoiser, noise(), COND, at(0.5)) for _ in range(2))
    assert not torch.equal(first, second)


# ---- the three losses of `training`: which t, s and w they ask for -----------------------------


def draws(batch=4096):
    return Draw((0, "test", 0), batch, slice(None), torch.device("cpu"))


def big(batch=4096):
    return torch.zeros(batch, 2), torch.zeros(batch).long()


@pytest.mark.parametrize("N", [1, 2, 8])
def test_stage_two_visits_every_interval_of_N_equally_often_and_all_of_the_w_range(N):
    teacher = Denoiser(Spy(), CosineSchedule())
    stage_two_loss(teacher, N, (1.0, 3.0))(teacher, *big(), draws())
    (t, mid, own), w = teacher.net.t, teacher.net.w[0]
    assert own == t  # the student is asked where its teacher was
    counts = torch.bincount((torch.tensor(t) * N).long(), minlength=N + 1)
    assert counts[0] == 0 and (counts[1:] - 4096 / N).abs().max() < 5 * math.sqrt(4096 / N)
    torch.testing.assert_close(torch.tensor(t) - torch.tensor(mid), torch.full((4096,), 0.5 / N))
    assert 1 <= min(w) < 1.05 and 2.95 < max(w) <= 3
    assert teacher.net.w[0] == teacher.net.w[1] == teacher.net.w[2]


def test_a_power_of_w_reaches_both_stages():
    student = Denoiser(Spy(), CosineSchedule())
    teacher = GuidedDenoiser(Denoiser(Wave(), CosineSchedule()), 3)
    stage_one_loss(teacher, (0.0, 4.0), w_power=2.0)(student, *big(), draws())
    stage_two_loss(Denoiser(Wave(), CosineSchedule()), 2, (0.0, 4.0), w_power=2.0)(
        student, *big(), draws()
    )
    for w in student.net.w:
        assert abs(sum(w) / 4096 - 4 / 3) < 0.1  # the mean of 4 u^2; that of 4 u is 2


def test_stage_one_draws_t_and_w_uniformly_and_independently():
    student = Denoiser(Spy(), CosineSchedule())
    teacher = GuidedDenoiser(Denoiser(Wave(), CosineSchedule()), 3)
    stage_one_loss(teacher, (0.0, 4.0))(student, *big(), draws())
    t, w = torch.tensor(student.net.t[0]), torch.tensor(student.net.w[0])
    for u in (t, w / 4):
        assert u.min() < 0.01 and u.max() > 0.99 and abs(u.mean() - 0.5) < 0.02
    assert abs(torch.corrcoef(torch.stack([t, w]))[0, 1]) < 0.05


def test_the_teacher_is_trained_without_its_condition_as_often_as_it_should():
    class Labels(Wave):
        def forward(self, z, t, cond, w):
            self.dropped = (cond == 3).float().mean().item()
            return super().forward(z, t, cond, w)

    teacher = Denoiser(Labels(), CosineSchedule())
    teacher_loss(3, 0.1)(teacher, *big(), draws())
    assert abs(teacher.net.dropped - 0.1) < 0.02


@pytest.mark.parametrize("power, mean", [(1.0, 1 / 2), (0.5, 2 / 3), (0.25, 4 / 5)])
def test_a_power_of_t_moves_the_teachers_times_towards_the_noise(power, mean):
    teacher = Denoiser(Spy(), CosineSchedule())
    teacher_loss(3, 0.1, t_power=power)(teacher, *big(), draws())
    t = torch.tensor(teacher.net.t[0])  # the mean of u^p is 1 / (1 + p)
    assert abs(t.mean() - mean) < 0.02 and t.min() < 0.2 and t.max() < 1


def test_balance_is_a_sixteenth_at_w_3_by_hand():
    torch.testing.assert_close(
        balance(torch.tensor([0.0, 1.0, 3.0])), torch.tensor([1, 1 / 4, 1 / 16])
    )


def test_the_balanced_stage_one_loss_is_the_plain_one_over_1_plus_w_squared():
    student = Denoiser(Spy(), CosineSchedule())
    teacher = GuidedDenoiser(Denoiser(Wave(), CosineSchedule()), 3)
    plain = stage_one_loss(teacher, (0.0, 4.0))(student, *big(64), draws(64))
    balanced = stage_one_loss(teacher, (0.0, 4.0), balanced=True)(student, *big(64), draws(64))
    w = torch.tensor(student.net.w[0])
    torch.testing.assert_close(balanced, plain / (1 + w) ** 2)


class Halves(Wave):
    """Guidance of which a student may see half: v_cond = 0, and v_uncond = -(1, 1)."""

    def forward(self, z, t, cond, w):
        return torch.where((cond == 3)[:, None], -torch.ones_like(z), torch.zeros_like(z))


class SeesHalf(Wave):
    """A student that gives k w of the half of the guidance that it sees."""

    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, z, t, cond, w):
        return self.k * w[:, None] * torch.tensor([1.0, 0.0])


@pytest.mark.parametrize(
    # The k of the least loss, by hand: (1 + along) / (1 + along / 2). Half of k is delivered.
    ("along", "best"),
    [(0.0, 1.0), (1.0, 4 / 3), (3.0, 1.6), (8.0, 1.8)],
)
def test_a_student_that_knows_half_of_the_guidance_is_led_to_deliver_more_of_it(along, best):
    teacher = GuidedDenoiser(Denoiser(Halves(), CosineSchedule()), 3)

    def loss(k):
        student = Denoiser(SeesHalf(k), CosineSchedule())
        x, cond = big(64)
        return stage_one_loss(teacher, (0.0, 4.0), along=along)(
            student, x.double(), cond, draws(64)
        ).mean()

    low, middle, high = loss(0.0), loss(1.0), loss(2.0)  # a parabola in k
    lowest = 1 + (low - high) / (2 * (low - 2 * middle + high))
    assert float(lowest) == pytest.approx(best, abs=1e-6)


def test_a_student_that_is_the_guided_pair_has_none_of_the_extra_loss_either():
    student, t = Denoiser(GuidedWave(), CosineSchedule()), torch.tensor([0.0, 0.3, 0.8, 1.0])
    teacher, x, eps = guided_teacher(), noise(1), noise(2)
    loss = guidance_matching_loss(student, teacher, x, COND, W, t, eps=eps, along=3.0)
    assert loss.max() < 1e-25


class Wrong(Wave):
    """Any student that is wrong."""

    def forward(self, z, t, cond, w):
        return torch.ones_like(z)


def test_where_there_is_no_guidance_no_error_lies_along_it():
    teacher, null = guided_teacher(), torch.full((4,), 3)
    how = dict(x=noise(1), cond=null, w=W, t=at(0.5), eps=noise(2))
    student = Denoiser(Wrong(), CosineSchedule())
    plain, more = (
        guidance_matching_loss(student, teacher, along=along, **how) for along in (0.0, 3.0)
    )
    assert plain.min() > 0
    torch.testing.assert_close(plain, more, rtol=0, atol=0)


def test_errors_along_the_guidance_need_a_teacher_that_says_which_way_it_guides():
    with pytest.raises(ValueError, match="pass a GuidedDenoiser, or leave along=0"):
        stage_one_loss(Denoiser(GuidedWave(), CosineSchedule()), (0.0, 4.0), along=1.0)


def test_without_a_w_range_stage_two_is_plain_progressive_distillation():
    teacher = Denoiser(Wave(), CosineSchedule())
    x, cond = big(8)
    loss = stage_two_loss(teacher, 2, None)(teacher, x, cond, draws(8))
    draw = draws(8)
    i = draw.integers(2).float() + 1
    by_hand = progressive_loss(
        teacher, teacher, x, cond, None, i / 2, (i - 1) / 2, eps=draw.normal((2,))
    )
    torch.testing.assert_close(loss, by_hand)
