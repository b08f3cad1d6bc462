"""Deterministic sampling: DDIM down from noise to data, up from data to noise, and its inverse.

The step is a rotation. With phi the schedule's angle and d = phi_s - phi_t,
alpha_s x + sigma_s eps = cos(d) z_t + sin(d) v. So a step is known by where it lands, and v can be
read back from the two ends: that is `implied_v`, the heart of progressive distillation.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from cfgdistill.parameterization import Prediction
from cfgdistill.schedules import Example, Number, PerExample, Schedule, expand, per_example


def ddim_step(pred: Prediction, s: PerExample, schedule: Schedule) -> Example:
    """z_s = alpha_s x + sigma_s eps  (Song et al. 2021, eq. 12 without noise)."""
    alpha, sigma = schedule.alpha_sigma(s)
    return expand(alpha, pred.x) * pred.x + expand(sigma, pred.x) * pred.eps


def implied_v(
    z_t: Example, z_s: Example, t: PerExample, s: PerExample, schedule: Schedule
) -> Example:
    """The v whose one step from z_t at time t lands on z_s at time s; t and s must differ.

    v = (z_s - cos(d) z_t) / sin(d), d = phi_s - phi_t. The same target as Salimans & Ho 2022,
    algorithm 2, but without their division by alpha or sigma: it holds at t = 1, at t = 0, and in
    both directions of time.
    """
    d = expand(schedule.angle(s) - schedule.angle(t), z_t)
    return (z_s - d.cos() * z_t) / d.sin()


def ddim(
    denoiser, z: Example, steps: int, cond: Tensor | None = None, w: Number | None = None
) -> Iterator[Example]:
    """From noise z [b, *d] at t = 1 down to data, in equal steps of time; yields every z.

    The last one is the sample. Costs `steps` calls of the denoiser.
    """
    denoiser.check(steps, cond, w)  # here, not in the generator: at the call, not at the first z
    return _walk(denoiser, z, [i / steps for i in range(steps, -1, -1)], cond, w)


def ddim_encode(
    denoiser, x: Example, steps: int, cond: Tensor | None = None, w: Number | None = None
) -> Iterator[Example]:
    """The same flow upwards: from data x [b, *d] at t = 0 to the noise that decodes to it."""
    denoiser.check(steps, cond, w)
    return _walk(denoiser, x, [i / steps for i in range(steps + 1)], cond, w)


def _walk(denoiser, z, times, cond, w):
    for t, s in pairwise(times):
        with torch.no_grad():  # not around the yield: there the caller's code runs
            z = ddim_step(denoiser(z, t, cond, w), per_example(s, z), denoiser.schedule)
        yield z


def last(iterator: Iterator) -> Tensor:
    """The last value of a sampler: the sample."""
    for value in iterator:  # noqa: B007
        pass
    return value
