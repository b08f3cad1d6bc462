"""Sampling: DDIM down from noise to data and up again, its inverse, and two samplers with noise.

The step is a rotation. With phi the schedule's angle and d = phi_s - phi_t,
alpha_s x + sigma_s eps = cos(d) z_t + sin(d) v. So a step is known by where it lands, and v can be
read back from the two ends: that is `implied_v`, the heart of progressive distillation.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from cfgdistill.core.denoiser import ask
from cfgdistill.core.parameterization import Prediction
from cfgdistill.core.schedules import (
    Example,
    PerExample,
    Schedule,
    Weights,
    expand,
    per_example,
    weights,
)

# One for all examples together, or one for each, so that an example does not depend on the others.
Generator = torch.Generator | Sequence[torch.Generator] | None


def ddim_step(pred: Prediction, s: PerExample, schedule: Schedule) -> Example:
    """z_s = alpha_s x + sigma_s eps  (Song et al. 2021, eq. 12 without noise)."""
    alpha, sigma = schedule.alpha_sigma(s)
    z_s = expand(alpha, pred.x) * pred.x + expand(sigma, pred.x) * pred.eps
    return z_s.to(pred.x.dtype)


def ddim(
    denoiser, z: Example, steps: int, cond=None, w: Weights | None = None
) -> Iterator[Example]:
    """From noise z [b, *d] at t = 1 down to data, in equal steps of time; yields every z.

    The last one is the sample. Costs `steps` calls of the denoiser. w may be a function of time,
    w(t [b]) -> a weight or [b] of them, which asks nothing of a student but its range.
    """
    denoiser.check(steps, cond, w)  # here, not in the generator: at the call, not at the first z
    return walk(denoiser, z, [i / steps for i in range(steps, -1, -1)], cond, w)


def ddim_encode(
    denoiser, x: Example, steps: int, cond=None, w: Weights | None = None
) -> Iterator[Example]:
    """The same flow upwards: from data x [b, *d] at t = 0 to the noise that decodes to it."""
    denoiser.check(steps, cond, w, "ddim_encode")
    return walk(denoiser, x, [i / steps for i in range(steps + 1)], cond, w)


def walk(denoiser, z, times, cond, w, after_step=None) -> Iterator[Example]:
    """DDIM from each of `times` to the next; after_step(z, s), where given, may change every z."""
    for t, s in pairwise([per_example(t, z) for t in times]):
        with torch.no_grad():  # not around the yield: there the caller's code runs
            z = ddim_step(ask(denoiser, z, t, cond, _at(w, z, t), s), s, denoiser.schedule)
            if after_step is not None:
                z = after_step(z, s)
        yield z


def _at(w: Weights | None, z: Example, t: PerExample) -> Tensor | None:
    return None if w is None else weights(w, z, t)


def translate(
    encoder,
    decoder,
    x: Example,
    source,
    target,
    steps: int,
    *,
    w: Weights | None = 0.0,
    w_encode: Weights | None = 0.0,
) -> Example:
    """Style transfer (Meng et al. 2023): encode x under `source`, decode as `target`.

    w guides the decoder, w_encode the encoder; they may be one many-step model or two students of
    `steps` steps. With target = source and equal weights it is a reconstruction. Costs `steps`
    calls of each.
    """
    z = last(ddim_encode(encoder, x, steps, source, w_encode))
    return last(ddim(decoder, z, steps, target, w))


def renoise(
    z_k: Example, eps: Example, k: PerExample, s: PerExample, schedule: Schedule
) -> Example:
    """Noise z_k at time k up to time s > k, such that z_s is distributed as if noised from data.

    z_s = (alpha_s / alpha_k) z_k + sigma_{s|k} eps, with sigma_{s|k}^2 = sigma_s^2 -
    (alpha_s / alpha_k)^2 sigma_k^2, which is (1 - exp(logsnr_s - logsnr_k)) sigma_s^2.
    """
    (alpha_k, sigma_k), (alpha_s, sigma_s) = schedule.alpha_sigma(k), schedule.alpha_sigma(s)
    ratio = alpha_s / alpha_k
    variance = sigma_s**2 - ratio**2 * sigma_k**2
    z_s = expand(ratio, z_k) * z_k + expand(variance.clamp_min(0).sqrt(), z_k) * eps
    return z_s.to(z_k.dtype)


def stochastic(
    denoiser,
    z: Example,
    steps: int,
    cond=None,
    w: Weights | None = None,
    generator: Generator = None,
) -> Iterator[Example]:
    """The N-step stochastic sampler of Meng et al. 2023: a jump of double length, then some noise.

    From t = i/N, DDIM to t - 2/N and noise back up to t - 1/N; from t = 1/N, DDIM to 0. Yields
    every z; the last one is the sample. Costs `steps` calls. N = 1 is `ddim`. The noise comes from
    `generator`, on the CPU, so that it is the same on every device: from one generator, or from a
    list of them, one for each example.
    """
    denoiser.check(steps, cond, w, "stochastic")
    return _jump_and_renoise(denoiser, z, steps, cond, w, generator)


def ancestral(
    denoiser,
    z: Example,
    steps: int,
    cond=None,
    w: Weights | None = None,
    generator: Generator = None,
) -> Iterator[Example]:
    """DDPM's sampler: z_s is drawn from q(z_s | z_t, x) at the predicted x, in equal steps of time.

    Its variance is (sigma_s / sigma_t)^2 (1 - alpha_t^2 / alpha_s^2)  (Ho et al. 2020, alg. 2; Song
    et al. 2021, eq. 16 with eta = 1). A baseline: no student is trained for it. Arguments and cost
    as for `stochastic`.
    """
    denoiser.check(steps, cond, w, "ancestral")
    return _ancestral(denoiser, z, steps, cond, w, generator)


def _ancestral(denoiser, z, steps, cond, w, generator):
    for i in range(steps, 0, -1):
        with torch.no_grad():
            t, s = (per_example(j / steps, z) for j in (i, i - 1))
            (alpha_t, sigma_t), (alpha_s, sigma_s) = map(denoiser.schedule.alpha_sigma, (t, s))
            variance = (sigma_s / sigma_t) ** 2 * (1 - (alpha_t / alpha_s) ** 2)
            kept = (sigma_s**2 - variance).clamp_min(0).sqrt()
            pred = ask(denoiser, z, t, cond, _at(w, z, t), s)
            z_s = expand(alpha_s, z) * pred.x + expand(kept, z) * pred.eps
            if i > 1:
                z_s = z_s + expand(variance.sqrt(), z) * _noise_like(z, generator)
            z = z_s.to(z.dtype)
        yield z


def _noise_like(z, generator):
    dtype = torch.promote_types(z.dtype, torch.float32)  # the same numbers in every precision
    how = {"dtype": dtype, "device": "cpu"}
    if generator is None or isinstance(generator, torch.Generator):
        return torch.randn(z.shape, generator=generator, **how).to(z)
    if len(generator) != len(z):
        raise ValueError(f"{len(generator)} generators for {len(z)} examples: pass one for each.")
    return torch.stack([torch.randn(z.shape[1:], generator=g, **how) for g in generator]).to(z)


def _jump_and_renoise(denoiser, z, steps, cond, w, generator):
    schedule = denoiser.schedule
    for i in range(steps, 0, -1):
        with torch.no_grad():
            t, k, s = (per_example(max(i - jump, 0) / steps, z) for jump in (0, 2, 1))
            z = ddim_step(ask(denoiser, z, t, cond, _at(w, z, t), k), k, schedule)
            if i > 1:
                z = renoise(z, _noise_like(z, generator), k, s, schedule)
        yield z


def last(iterator: Iterator) -> Tensor:
    """The last value of a sampler: the sample."""
    for value in iterator:  # noqa: B007
        pass
    return value
