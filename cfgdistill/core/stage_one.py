"""Stage one: one network with an input w learns what the guided pair says."""

import torch
from torch import Tensor

from cfgdistill.core.guidance import sample_w
from cfgdistill.core.losses import Loss, Weighting, balance, beside, snr_plus_one, weighted_error
from cfgdistill.core.schedules import Example, Number, PerExample, per_example


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
    t, teacher = per_example(t, x), beside(teacher, x)
    z = teacher.schedule.add_noise(x, torch.randn_like(x) if eps is None else eps, t)
    with torch.no_grad():
        target = teacher(z, t, cond, w)
    return weighted_error(student(z, t, cond, w), target.v, teacher.schedule.logsnr(t), weighting)


def stage_one_loss(
    teacher,
    w_range: tuple[float, float],
    *,
    w_power: float = 1.0,
    balanced: bool = False,
    weighting: Weighting = snr_plus_one,
) -> Loss:
    """Guidance matching at random w (see `sample_w`) and t ~ U[0, 1]; `balanced`: see `balance`.

    The teacher is put into its mode for use: its dropout is no part of what it knows.
    """
    teacher.eval()

    def loss(student, x, cond, draw):
        w, t = sample_w(draw.uniform(), w_range, w_power), draw.uniform()
        eps = draw.normal(x.shape[1:])
        losses = guidance_matching_loss(
            student, teacher, x, cond, w, t, eps=eps, weighting=weighting
        )
        return balance(w) * losses if balanced else losses

    return loss
