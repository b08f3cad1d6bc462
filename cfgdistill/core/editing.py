"""Editing with a distilled model, in 2 to 4 evaluations: image to image, and inpainting.

Both start or stay on the grid t = i/N that a student of N steps was trained on. Style transfer
needs no more than `samplers.translate` with a distilled encoder.
"""

from collections.abc import Iterator

from torch import Tensor

from cfgdistill.core.samplers import walk
from cfgdistill.core.schedules import Example, PerExample, Weights, per_example


def strengths(steps: int) -> list[float]:
    """How far up an edit may start with N steps: 1/N, 2/N, ..., 1. Strength i/N costs i calls."""
    return [i / steps for i in range(1, steps + 1)]


def image_to_image(
    denoiser,
    x: Example,
    eps: Example,
    steps: int,
    strength: float,
    cond=None,
    w: Weights | None = None,
) -> Iterator[Example]:
    """SDEdit (Meng et al. 2022) on the grid of N steps; yields every z, the last is the image.

    Noise x [b, *d] (pixels or latents) with eps up to t = strength, and denoise from there under
    another condition. At strength 1 nothing of x is left. As diffusers' img2img pipelines do it.
    """
    denoiser.check(steps, cond, w)
    start = _grid_index(steps, strength)
    times = [i / steps for i in range(start, -1, -1)]
    z = denoiser.schedule.add_noise(x, eps, per_example(times[0], x))
    return walk(denoiser, z, times, cond, w)


def inpaint(
    denoiser,
    x: Example,
    mask: Tensor,
    eps: Example,
    steps: int,
    strength: float = 1.0,
    cond=None,
    w: Weights | None = None,
) -> Iterator[Example]:
    """Repaint x [b, *d] where mask [b, 1, h, h] is 1 and keep it where it is 0; yields every z.

    After every step, what is to be kept is put back as x noised with eps to the time that was
    reached, as diffusers' inpainting pipelines do for networks without inputs of their own for it.
    """
    denoiser.check(steps, cond, w)
    start = _grid_index(steps, strength)
    if mask.shape != (len(x), 1, *x.shape[2:]):
        raise ValueError(
            f"The mask is {list(mask.shape)} for examples {list(x.shape)}: pass "
            f"{[len(x), 1, *x.shape[2:]]}, scaled to the size of what is painted (for latents, "
            "theirs)."
        )
    times, mask = [i / steps for i in range(start, -1, -1)], mask.to(x)

    def keep(z: Example, s: PerExample) -> Example:
        return mask * z + (1 - mask) * denoiser.schedule.add_noise(x, eps, s)

    z = denoiser.schedule.add_noise(x, eps, per_example(times[0], x))
    return walk(denoiser, z, times, cond, w, after_step=keep)


def _grid_index(steps: int, strength: float) -> int:
    """Strength as a number of steps; ValueError where it is not on the grid."""
    start = round(strength * steps)
    if not 1 <= start <= steps or abs(strength * steps - start) > 1e-6:
        near = ", ".join(f"{value:g}" for value in strengths(min(steps, 8)))
        raise ValueError(
            f"strength {strength:g} is not among those that {steps} steps allow: choose i/{steps}"
            + (f", that is {near}." if steps <= 8 else f" with i from 1 to {steps}.")
        )
    return start
