"""Images from any model, in one call."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

import cfgdistill.core.samplers as samplers
from cfgdistill.core.denoiser import Denoiser, ranges
from cfgdistill.core.guidance import GuidedDenoiser
from cfgdistill.core.names import one_of
from cfgdistill.core.rules import spread
from cfgdistill.core.samplers import last
from cfgdistill.core.schedules import Weights
from cfgdistill.training.environment import flag
from cfgdistill.training.randomness import random_at

STEPS = 64  # of a model that takes any number
SAMPLERS = ("ddim", "stochastic", "ancestral")


def sampler_of(net: Denoiser, name: str | None = None) -> Callable:
    """The sampler of this name; None: the model's own, or `ddim`. ValueError for another name."""
    return getattr(samplers, one_of("sampler", name or net.sampler or "ddim", SAMPLERS))


@torch.no_grad()
def sample(
    model,
    cond: Sequence | Tensor | int | str,
    w: Weights | None = None,
    *,
    seed: int = 0,
    steps: int | None = None,
    negative: int | str | None = None,
    sampler: str | None = None,
) -> Tensor:
    """Images [b, c, H, W] in [-1, 1], one for each condition, on the CPU.

    model:     what `load` gave, or a trained denoiser, guided or not; one without an input for w is
               guided with its null, at two evaluations a step
    cond:      labels, class names or prompts; or tokens or embeddings, as a tensor [b, l, ...]
    w:         guidance weight, a tuple of several strengths, or a function of t; None: 1, or the
               nearest that the model has learnt
    seed:      image i depends on the seed and on i alone
    steps:     None: those that a student was distilled for, else 64
    negative:  what the images shall not be: a label, a class name or a prompt. A student that was
               trained for it is told; others are guided away from it in the place of the null:
               (1 + w) S(c, 0) - w S(n, 0), two evaluations a step: see `GuidedDenoiser`, which
               refuses it with 2 steps or 1
    sampler:   "ddim", "stochastic" or "ancestral"; None: the model's own, or "ddim"

    ValueError, with one sentence, for what the model does not know, before any work.
    """
    net = model.denoiser if isinstance(model, GuidedDenoiser) else model
    meaning = net.meaning
    if meaning is None:
        raise ValueError(
            "This model does not say what its conditions and samples mean, for it was saved by an "
            "earlier version or trained on data without a meaning: call ddim with tensors."
        )
    given = [cond] if isinstance(cond, int | str) else list(cond)
    if not given:
        raise ValueError("There is nothing to draw: pass a label, a name or a prompt.")
    ready = isinstance(cond, Tensor) and cond.ndim > 1
    given = [one.item() if isinstance(one, Tensor) and not ready else one for one in given]
    conds = cond if ready else meaning.conditions(given)
    walk = sampler_of(net, sampler)
    steps = steps or net.steps or STEPS
    if w is None:
        usual = tuple(min(max(1.0, low), high) for low, high in ranges(net.w_range or (1.0, 1.0)))
        w = usual if len(usual) > 1 else usual[0]
    other = None if negative is None else meaning.conditions([negative])[0]
    if other is not None and net.takes_negative:
        model, conds = net, torch.stack([conds, spread(other, conds)], 1)
    elif other is not None:
        model = GuidedDenoiser(net, other)
    elif isinstance(model, Denoiser) and net.w_range is None:
        model = GuidedDenoiser(net, meaning.null)
    model.check(steps, conds, w, walk.__name__)
    parts, images = torch.arange(len(conds)).split(meaning.at_once), []
    with meaning.asked():
        for rows in tqdm(parts, "batches", leave=False, disable=flag("CI") or flag("TQDM_DISABLE")):
            generators = [random_at(seed, "sample", i) for i in rows.tolist()]
            z = _draw(model, conds[rows].to(model.device), steps, w, walk, generators)
            images.append(meaning.decode(z).cpu())
    return torch.cat(images)


def _draw(model, cond: Tensor, steps: int, w: Weights, walk: Callable, generators: list) -> Tensor:
    """What the sampler makes of noise from one generator for each image."""
    noise = torch.stack([torch.randn(model.shape, generator=g, device="cpu") for g in generators])
    added = {} if walk is samplers.ddim else {"generator": generators}
    z = last(walk(model, noise.to(model.device), steps, cond, w, **added))
    if not z.isfinite().all():
        raise ValueError(f"With w = {w} the samples are no numbers: try a smaller w.")
    return z
