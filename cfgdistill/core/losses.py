"""How losses are weighted, and the loss of a teacher. Nothing here trains: see `training`.

Losses are per example, [b]: the mean over an example's dimensions of omega * ||x - x_target||^2.
They are computed as v errors: since x = alpha z - sigma v, the x error is sigma^2 times the v
error, so a weighting omega(logsnr) of the paper becomes omega sigma^2 on v. In that form every
weighting below is bounded, also at t = 0 and t = 1 where omega itself is 0 or infinite.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cfgdistill.core.denoiser import ranges
from cfgdistill.core.guidance import drop_condition
from cfgdistill.core.parameterization import Prediction
from cfgdistill.core.rules import part_along
from cfgdistill.core.schedules import Example, Number, PerExample, expand, per_example

Weighting = Callable[[PerExample], PerExample]
# model, x, cond, draw -> [b]; draw gives uniform() [b], normal(shape) and integers(high) [b].
Loss = Callable[..., Tensor]


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


def can_be_balanced(w_range: Sequence | None, balanced: bool) -> None:
    """ValueError where there is no one weight to balance a loss by."""
    if balanced and (w_range is None or len(ranges(w_range)) > 1):
        raise ValueError(
            "To balance a loss is to divide it by (1 + w)^2, for which there has to be one weight "
            "w: with several strengths, or none, leave balanced=False."
        )


def weighted_error(
    pred: Prediction,
    v: Example,
    logsnr: PerExample,
    weighting: Weighting,
    direction: Example | None = None,
    along: float = 0.0,
) -> PerExample:
    """omega(logsnr) ||x - x_target||^2, averaged over an example's dimensions, [b].

    The part of each example's error that lies in its own `direction` counts 1 + along times.
    """
    # In the precision of logsnr, which is never half: squares would leave its range.
    error = (pred.v - v).to(logsnr.dtype)
    squares = error.square()
    if direction is not None:
        squares = squares + along * part_along(error, direction.to(error.dtype)).square()
    return weighting(logsnr) * squares.flatten(1).mean(1)


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


def beside(teacher, x: Example):
    """The teacher, moved to where x is: `train` moves the student and the data, and knows no other.

    It may be any callable with a schedule; one that does not say where it is, is left there.
    """
    if getattr(teacher, "device", x.device) != x.device:
        teacher.to(x.device)
    return teacher


def against_others(loss: Loss, others: Tensor, null: int | Tensor) -> Loss:
    """A loss under pairs of conditions [b, 2, ...], for a student with negatives as an input.

    others: conditions [n, ...], one of which, at random, is the second of a pair; half the time it
    is null. The teacher is guided by the rule `negative_prompt`, or is such a student itself.
    """

    def paired(student, x, cond, draw):
        drawn = draw.integers(len(others)).to(others.device)
        other = others[drawn].to(cond.device)
        other = drop_condition(other, null, 0.5, draw.uniform())
        return loss(student, x, torch.stack([cond, other], 1), draw)

    return paired


def teacher_loss(
    null: int | Tensor, drop: float, weighting: Weighting = snr_plus_one, t_power: float = 1.0
) -> Loss:
    """The diffusion loss, with the condition replaced by null with probability `drop`.

    t = u^t_power with u ~ U[0, 1]: at 1 uniform, at 1/2 with density 2 t. The condition decides
    at the noisy end, so a smaller power makes the network listen sooner, at some cost in detail.
    """

    def loss(denoiser, x, cond, draw):
        cond, t = drop_condition(cond, null, drop, draw.uniform()), draw.uniform() ** t_power
        eps = draw.normal(x.shape[1:])
        return diffusion_loss(denoiser, x, cond, t, eps=eps, weighting=weighting)

    return loss
