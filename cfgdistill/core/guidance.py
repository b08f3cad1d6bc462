"""Classifier-free guidance, and everything that is said with a guidance weight w.

w = 0 is no guidance. This is the convention of the paper and of Ho & Salimans 2022. diffusers'
`guidance_scale` is 1 + w; `w_from_scale` and `scale_from_w` stand at that border.
"""

import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cfgdistill.core.denoiser import W_LIMIT, Denoiser, check_w
from cfgdistill.core.parameterization import Prediction, convert
from cfgdistill.core.schedules import Example, Number, PerExample, Schedule, expand, per_example


def guide(cond, uncond, w):
    """(1 + w) cond - w uncond  (Ho & Salimans 2022, eq. 6). Numbers or tensors that broadcast."""
    return (1 + w) * cond - w * uncond


class GuidedDenoiser(nn.Module):
    """The guided teacher: one conditional and one unconditional evaluation, combined with w.

    null: the condition that means "no condition": a label, or one embedding [*c].
    """

    def __init__(self, denoiser: Denoiser, null: int | Tensor):
        super().__init__()
        self.denoiser, self.null = denoiser, null

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    @property
    def nfe(self) -> int:
        return self.denoiser.nfe

    @nfe.setter
    def nfe(self, count: int) -> None:
        self.denoiser.nfe = count

    def describe(self) -> dict:
        """What it is (JSON). An embedding is a computed number, and known with its data."""
        null = torch.as_tensor(self.null)
        null = list(null.shape) if null.is_floating_point() else null.tolist()
        return {"guided": self.denoiser.describe(), "null": null}

    def forward(self, z: Example, t: Number, cond: Tensor, w: Number) -> Prediction:
        """z [b, *d], t [b], cond [b, ...], w [b] -> Prediction. Costs two evaluations."""
        t, w = per_example(t, z), per_example(w, z)
        null = torch.as_tensor(self.null, dtype=cond.dtype, device=cond.device).expand_as(cond)
        # One call on a doubled batch is faster than two calls, and it is two evaluations.
        both = self.denoiser(torch.cat([z, z]), torch.cat([t, t]), torch.cat([cond, null]))
        self.denoiser.evaluations.add_(1)
        v_cond, v_uncond = both.v.chunk(2)
        # x, eps and v are linear in each other given z, so the combination may be done in any.
        v = guide(v_cond, v_uncond, expand(w, z))
        return convert(v, z, *self.schedule.alpha_sigma(t), "v")

    def check(
        self, steps: int, cond: Tensor | None, w: Number | None, sampler: str = "ddim"
    ) -> None:
        """As `Denoiser.check`. A guided pair takes any sensible w >= 0."""
        if cond is None or w is None:
            raise ValueError(
                "A guided teacher needs both a condition and a weight: pass cond and w."
            )
        self.denoiser.check(steps, cond, None, sampler)
        check_w(w, 0.0, W_LIMIT)


def drop_condition(cond: Tensor, null: int | Tensor, p: float, u: PerExample) -> Tensor:
    """Replace each example's condition by null with probability p; u ~ U[0, 1], [b].

    This is how one network learns both halves of the guided pair (Ho & Salimans 2022, alg. 1).
    """
    null = torch.as_tensor(null, dtype=cond.dtype, device=cond.device).expand_as(cond)
    return torch.where(expand(u < p, cond), null, cond)


def sample_w(u: PerExample, w_range: tuple[float, float], power: float = 1.0) -> PerExample:
    """Guidance weights w = w_min + (w_max - w_min) u^power from u ~ U[0, 1], [b] -> [b].

    power = 1 is the paper's uniform w. A larger power draws small w more often, where a student
    must learn to leave the conditional model as it is: see notebook 03.
    """
    w_min, w_max = w_range
    return w_min + (w_max - w_min) * u**power


def embed_w(w: PerExample, dim: int) -> Float[Tensor, " b dim"]:
    """Fourier features of 1000 w, in float32: exactly what diffusers' pipelines feed to
    `timestep_cond`. (In bfloat16, 1000 w = 6000 would round to 6016.)
    """
    phase = 1000.0 * w.float()[:, None] * _frequencies(dim, w.device)
    return torch.cat([phase.sin(), phase.cos()], dim=1)


@functools.cache
def _frequencies(dim: int, device: torch.device) -> Float[Tensor, " half"]:
    numbers = torch.arange(dim // 2, dtype=torch.float32, device=device)
    return torch.exp(numbers * (-math.log(10000.0) / (dim // 2 - 1)))


def w_from_scale(guidance_scale: int | float) -> float:
    """diffusers' guidance_scale (1 = no guidance) as the paper's w (0 = no guidance)."""
    return guidance_scale - 1


def scale_from_w(w: int | float) -> float:
    """The paper's w as diffusers' guidance_scale."""
    return 1 + w
