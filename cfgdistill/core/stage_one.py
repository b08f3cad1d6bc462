"""Stage one: one network with an input w learns what the guided pair says."""

from collections.abc import Sequence

import torch

from cfgdistill.core.guidance import draw_w
from cfgdistill.core.losses import (
    Loss,
    Weighting,
    balance,
    beside,
    can_be_balanced,
    snr_plus_one,
    weighted_error,
)
from cfgdistill.core.schedules import Example, Number, PerExample, Weights, per_example


def refuse_steps(teacher) -> None:
    """ValueError where what a teacher says depends on its steps, which stage one does not know."""
    if getattr(teacher, "steps", None) is not None:
        raise ValueError(
            f"What this teacher says at a point is made for {teacher.steps} steps and depends on "
            "where the step ends, so it is no function of z, t, cond and w for a network to learn: "
            f"distil it by stage two, from {teacher.steps // 2} steps on."
        )


def guidance_matching_loss(
    student,
    teacher,
    x: Example,
    cond,
    w: Weights,
    t: Number,
    *,
    eps: Example | None = None,
    weighting: Weighting = snr_plus_one,
    along: float = 0.0,
) -> PerExample:
    """Stage one of Meng et al. 2023: one network matches the guided pair at w, [b].

    The guidance may be of any rule, if it depends on nothing but z, t, cond and w.

    Least squares gives less of what it cannot predict: a network that knows a part R^2 of the
    guidance delivers R^2 w at its best. With `along` = k, errors in the direction of the guidance
    count 1 + k times, and it delivers (1 + k) R^2 / (1 + k R^2) of w; an exact one is still exact.
    The teacher then has to be a `GuidedDenoiser`. This is ours, and not in the paper.
    """
    refuse_steps(teacher)
    t, teacher = per_example(t, x), beside(teacher, x)
    z = teacher.schedule.add_noise(x, torch.randn_like(x) if eps is None else eps, t)
    with torch.no_grad():
        v, direction = (
            teacher.guidance(z, t, cond, w) if along else (teacher(z, t, cond, w).v, None)
        )
    logsnr = teacher.schedule.logsnr(t)
    return weighted_error(student(z, t, cond, w), v, logsnr, weighting, direction, along)


def stage_one_loss(
    teacher,
    w_range: Sequence,
    *,
    w_power: float = 1.0,
    balanced: bool = False,
    weighting: Weighting = snr_plus_one,
    along: float = 0.0,
) -> Loss:
    """Guidance matching at random w (see `sample_w`) and t ~ U[0, 1]; `balanced`: see `balance`,
    and `along`: see `guidance_matching_loss`.

    The teacher may be guided by any rule but one that depends on the steps; w_range is (low, high),
    or a pair for each of its several strengths. It is put into its mode for use: its dropout is no
    part of what it knows.
    """
    refuse_steps(teacher)
    can_be_balanced(w_range, balanced)
    if along and not hasattr(teacher, "guidance"):
        raise ValueError(
            "Errors along the guidance cannot count more for a teacher that does not say which way "
            "it guides: pass a GuidedDenoiser, or leave along=0."
        )
    teacher.eval()

    def loss(student, x, cond, draw):
        w, t = draw_w(draw, w_range, w_power), draw.uniform()
        eps = draw.normal(x.shape[1:])
        losses = guidance_matching_loss(
            student, teacher, x, cond, w, t, eps=eps, weighting=weighting, along=along
        )
        return balance(w) * losses if balanced else losses

    return loss
