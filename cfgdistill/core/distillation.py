"""The targets and losses of both stages. Nothing here trains: see `training`.

Losses are per example, [b]: the mean over an example's dimensions of omega * ||x - x_target||^2.
They are computed as v errors: since x = alpha z - sigma v, the x error is sigma^2 times the v
error, so a weighting omega(logsnr) of the paper becomes omega sigma^2 on v. In that form every
weighting below is bounded, also at t = 0 and t = 1 where omega itself is 0 or infinite.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cfgdistill.core.parameterization import Prediction
from cfgdistill.core.samplers import ddim_step, implied_v
from cfgdistill.core.schedules import Example, Number, PerExample, expand, per_example

Weighting = Callable[[PerExample], PerExample]


def snr(logsnr: PerExample) -> PerExample:
    """omega = SNR, the eps error: on v this is alpha^2."""
    return logsnr.sigmoid()


def truncated_snr(logsnr: PerExample) -> PerExample:
    """omega = max(SNR, 1), the larger of the x and the eps error: on v, max(alpha^2, sigma^2)."""
    return torch.maximum(logsnr.sigmoid(), (-logsnr).sigmoid())


def snr_plus_one(logsnr: PerExample) -> PerExample:
    """omega = SNR + 1, the v error itself."""
    return torch.ones_like(logsnr)


WEIGHTINGS = {"snr": snr, "truncated_snr": truncated_snr, "snr_plus_one": snr_plus_one}


def balance(w: PerExample) -> PerExample:
    """1 / (1 + w)^2, a factor on the loss that makes errors relative to the size of the target.

    Guidance multiplies the teacher's answer by up to 1 + w, and the squared error by its square.
    Without this factor the large w make nearly all of the gradient (see notebook 03).
    """
    return 1 / (1 + w).square()


def weighted_error(
    pred: Prediction, v: Example, logsnr: PerExample, weighting: Weighting
) -> PerExample:
    """omega(logsnr) ||x - x_target||^2, averaged over an example's dimensions, [b]."""
    # In the precision of logsnr, which is never half: squares would leave its range.
    return weighting(logsnr) * (pred.v - v).to(logsnr.dtype).square().flatten(1).mean(1)


def diffusion_loss(
    denoiser,
    x: Example,
    cond: Tensor | None,
    t: Number,
    *,
    eps: Example | None = None,
    weighting: Weighting = snr_plus_one,
) -> PerExample:
    """How far the denoiser is from the v that made z_t: the teacher's training loss, [b]."""
    t, eps = per_example(t, x), torch.randn_like(x) if eps is None else eps
    alpha, sigma = denoiser.schedule.alpha_sigma(t)
    pred = denoiser(denoiser.schedule.add_noise(x, eps, t), t, cond)
    v = expand(alpha, x) * eps - expand(sigma, x) * x
    return weighted_error(pred, v, denoiser.schedule.logsnr(t), weighting)


def _beside(teacher, x: Example):
    """The teacher, moved to where x is: `train` moves the student and the data, and knows no other.

    It may be any callable with a schedule; one that does not say where it is, is left there.
    """
    if getattr(teacher, "device", x.device) != x.device:
        teacher.to(x.device)
    return teacher


def guidance_matching_loss(
    student,
    teacher,
    x: Example,
    cond: Tensor | None,
    w: Number,
    t: Number,
    *,
    eps: Example | None = None,
    weighting: Weighting = snr_plus_one,
) -> PerExample:
    """Stage one of Meng et al. 2023: one network matches the guided pair at w, [b]."""
    t, teacher = per_example(t, x), _beside(teacher, x)
    z = teacher.schedule.add_noise(x, torch.randn_like(x) if eps is None else eps, t)
    with torch.no_grad():
        target = teacher(z, t, cond, w)
    return weighted_error(student(z, t, cond, w), target.v, teacher.schedule.logsnr(t), weighting)


@torch.no_grad()
def progressive_target(
    teacher,
    z: Example,
    t: Number,
    s: Number,
    cond: Tensor | None = None,
    w: Number | None = None,
    *,
    mid: Number | None = None,
) -> Example:
    """The v whose one step t -> s equals two teacher steps t -> mid -> s, [b, *d].

    Salimans & Ho 2022, algorithm 2, with the guidance weight held fixed on the way (Meng et
    al. 2023, stage two). mid is half-way unless given. t may lie below s: then it is the target of
    an encoder. Where mid = s there is no second step, and the target is the teacher's own v.
    """
    t, s, teacher = per_example(t, z), per_example(s, z), _beside(teacher, z)
    mid = (t + s) / 2 if mid is None else per_example(mid, z)
    z_mid = ddim_step(teacher(z, t, cond, w), mid, teacher.schedule)
    z_s = ddim_step(teacher(z_mid, mid, cond, w), s, teacher.schedule)
    z_s = torch.where(expand(mid == s, z), z_mid, z_s)
    return implied_v(z, z_s, t, s, teacher.schedule)


def progressive_loss(
    student,
    teacher,
    x: Example,
    cond: Tensor | None,
    w: Number | None,
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
    return weighted_error(student(z, t, cond, w), target, teacher.schedule.logsnr(t), weighting)
