"""Stage two: a student learns to do two of its teacher's steps in one, again and again."""

from collections.abc import Sequence

import torch

from cfgdistill.core.denoiser import ask
from cfgdistill.core.guidance import draw_w, drop_condition
from cfgdistill.core.losses import (
    Loss,
    Weighting,
    balance,
    beside,
    can_be_balanced,
    snr_plus_one,
    weighted_error,
)
from cfgdistill.core.names import one_of
from cfgdistill.core.samplers import ddim_step
from cfgdistill.core.schedules import (
    Example,
    Number,
    PerExample,
    Schedule,
    Weights,
    expand,
    per_example,
)


def implied_v(
    z_t: Example, z_s: Example, t: PerExample, s: PerExample, schedule: Schedule
) -> Example:
    """The v whose one step from z_t at time t lands on z_s at time s; t and s must differ.

    v = (z_s - cos(d) z_t) / sin(d), d = phi_s - phi_t. The same target as Salimans & Ho 2022,
    algorithm 2, but without their division by alpha or sigma: it holds at t = 1, at t = 0, and in
    both directions of time.
    """
    d = expand(schedule.angle(s) - schedule.angle(t), z_t)
    return ((z_s - d.cos() * z_t) / d.sin()).to(z_t.dtype)


@torch.no_grad()
def progressive_target(
    teacher,
    z: Example,
    t: Number,
    s: Number,
    cond=None,
    w: Weights | None = None,
    *,
    mid: Number | None = None,
) -> Example:
    """The v whose one step t -> s equals two teacher steps t -> mid -> s, [b, *d].

    Salimans & Ho 2022, algorithm 2, with the guidance weight held fixed on the way (Meng et
    al. 2023, stage two), unless it is w(t). mid is half-way unless given. t may lie below s: then
    it is the target of an encoder. Where mid = s there is no second step, and the target is the
    teacher's own v.
    """
    t, s, teacher = per_example(t, z), per_example(s, z), beside(teacher, z)
    mid = (t + s) / 2 if mid is None else per_example(mid, z)
    z_mid = ddim_step(ask(teacher, z, t, cond, w, mid), mid, teacher.schedule)
    z_s = ddim_step(ask(teacher, z_mid, mid, cond, w, s), s, teacher.schedule)
    z_s = torch.where(expand(mid == s, z), z_mid, z_s)
    return implied_v(z, z_s, t, s, teacher.schedule)


def progressive_loss(
    student,
    teacher,
    x: Example,
    cond,
    w: Weights | None,
    t: Number,
    s: Number,
    *,
    mid: Number | None = None,
    eps: Example | None = None,
    weighting: Weighting = snr_plus_one,
) -> PerExample:
    """Stage two of Meng et al. 2023: one student step does two teacher steps, [b]."""
    t = per_example(t, x)
    z = teacher.schedule.add_noise(x, torch.randn_like(x) if eps is None else eps, t)
    target = progressive_target(teacher, z, t, s, cond, w, mid=mid)
    pred = ask(student, z, t, cond, w, s)
    return weighted_error(pred, target, teacher.schedule.logsnr(t), weighting)


# How far one call of each sampler leads towards the data, in units of 1/N.
JUMPS = {"ddim": 1, "stochastic": 2, "ddim_encode": -1}


def stage_two_loss(
    teacher,
    steps: int,
    w_range: Sequence | None,
    *,
    sampler: str = "ddim",
    w_power: float = 1.0,
    balanced: bool = False,
    weighting: Weighting = snr_plus_one,
    drop: float = 0.0,
) -> Loss:
    """Progressive distillation to N = `steps` steps, from the times at which its sampler calls.

    One student step does two of its teacher's, which take 2N. From t = i/N, i uniform in 1 .. N,
    they lead down by 1/N for "ddim", and by 2/N for "stochastic", whose jumps are of double length
    (from 1/N to 0 it does one). For "ddim_encode" they lead up by 1/N from 0, ..., 1 - 1/N.
    Without a w range the networks take no w: plain progressive distillation. `drop` is the
    probability of the null label, for a student that is to be both halves of a guided pair.
    The teacher is put into its mode for use.
    """
    can_be_balanced(w_range, balanced)
    teacher.eval()
    jump = JUMPS[one_of("sampler", sampler, JUMPS)]

    def loss(student, x, cond, draw):
        continue_a_halving(teacher, steps, sampler)
        w = draw_w(draw, w_range, w_power) if w_range is not None else None
        if drop:
            cond = drop_condition(cond, teacher.num_classes, drop, draw.uniform())
        i = per_example(draw.integers(steps), x) + (jump > 0)
        t, mid, s = ((i - back).clamp_min(0) / steps for back in (0, jump / 2, jump))
        eps = draw.normal(x.shape[1:])
        losses = progressive_loss(
            student, teacher, x, cond, w, t, s, mid=mid, eps=eps, weighting=weighting
        )
        return balance(w) * losses if balanced else losses

    return loss


def continue_a_halving(teacher, steps: int, sampler: str) -> None:
    """ValueError where a student of `steps` steps would not do two steps of its teacher in one."""
    if getattr(teacher, "steps", None) not in (None, 2 * steps):
        raise ValueError(
            f"The teacher is a student of {teacher.steps} steps, and one of {steps} does not halve "
            f"them: start with {teacher.steps // 2}, or with a teacher of any number of steps."
        )
    if getattr(teacher, "sampler", None) not in (None, sampler):
        raise ValueError(
            f"The teacher was distilled for the sampler {teacher.sampler!r}, so its students "
            f"cannot be for {sampler!r}: start with a teacher that is for any sampler."
        )


def halvings(start: int) -> list[int]:
    """[start, start/2, ..., 1]; start must be a power of two."""
    if start < 1 or start & (start - 1):
        low = 2 ** max(start, 1).bit_length() // 2
        raise ValueError(
            f"steps must be a power of two, not {start}: each halving takes two steps at once. "
            f"Try {low} or {2 * low}."
        )
    return [start >> k for k in range(start.bit_length())]
