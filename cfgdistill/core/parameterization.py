"""Three ways to say the same thing: x, eps and v.

Given z_t = alpha x + sigma eps, any one of the clean image x, the noise eps and the velocity
v = alpha eps - sigma x fixes the other two (Salimans & Ho 2022, section 4 and appendix D).
"""

import math
from typing import NamedTuple

from torch import Tensor

from cfgdistill.core.schedules import LOGSNR_LIMIT, Example, PerExample, expand

PREDICTION_TYPES = ("v", "eps", "x")


class Prediction(NamedTuple):
    """What a denoiser believes about z_t, in all three forms, each of the shape of z_t."""

    x: Tensor
    eps: Tensor
    v: Tensor


def convert(
    output: Example, z: Example, alpha: PerExample, sigma: PerExample, prediction_type: str
) -> Prediction:
    """A network's raw output [b, *d] as a Prediction; alpha and sigma are those of z, [b] each.

    At alpha = 0 an eps-prediction says nothing about x, and at sigma = 0 an x-prediction says
    nothing about eps: there the division is limited as if |logsnr| were 20. v has no such hole.
    Half-precision z is taken at its word, in float32, and gets answers in its own precision.
    """
    alpha, sigma = expand(alpha, z), expand(sigma, z)
    smallest = math.exp(-LOGSNR_LIMIT / 2)  # alpha at logsnr = -20, sigma at logsnr = 20
    if prediction_type == "v":
        v, x, eps = output, alpha * z - sigma * output, sigma * z + alpha * output
    elif prediction_type == "eps":
        eps, x = output, (z - sigma * output) / alpha.clamp_min(smallest)
        v = alpha * eps - sigma * x
    elif prediction_type == "x":
        x, eps = output, (z - alpha * output) / sigma.clamp_min(smallest)
        v = alpha * eps - sigma * x
    else:
        raise ValueError(
            f"prediction_type must be one of {PREDICTION_TYPES}, not {prediction_type!r}."
        )
    said = Prediction(x, eps, v)
    return said if alpha.dtype == z.dtype else Prediction(*(part.to(z.dtype) for part in said))
