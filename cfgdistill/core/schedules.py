"""Noise schedules: how much signal and how much noise is in z_t.

Time t runs from 0 (data) to 1 (pure noise), and every schedule here preserves variance:
z_t = alpha_t x + sigma_t eps with alpha_t^2 + sigma_t^2 = 1.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

PerExample = Float[Tensor, " b"]
Example = Float[Tensor, " b *d"]
Number = int | float | Tensor  # one number for all examples, or a tensor [b] with one for each
Strengths = PerExample | Float[Tensor, " b k"]  # guidance weights, or k strengths for each example
# What is asked for: a weight, k strengths as a tuple or a tensor [b, k], or w(t) -> one of these.
Weights = Number | Sequence[Number] | Callable[[PerExample], object]

LOGSNR_LIMIT = 20.0  # as in the official progressive-distillation code; log(alpha_1) is -inf


def expand(a: Shaped[Tensor, " b"], like: Shaped[Tensor, " b *d"]) -> Tensor:
    """[b] -> [b, 1, ..., 1], so that one number per example multiplies a whole example."""
    return a.reshape(-1, *(1,) * (like.ndim - 1))


def per_example(value: Number, like: Example) -> PerExample:
    """A Number as a [b] tensor beside `like`: in float32, or float64 where `like` is.

    Never in half precision, in which t = 255/256 is 1 and w = 0.3 is 0.3008, whatever z is in.
    """
    if not like.is_floating_point():
        raise ValueError(
            f"z and x must be floating-point numbers, not {like.dtype}: scale images to [-1, 1], "
            "as whole numbers 0 .. 255 are by x / 127.5 - 1."
        )
    dtype = torch.promote_types(like.dtype, torch.float32)
    if not isinstance(value, Tensor):  # made on the device, which need not wait for it
        return like.new_full((len(like),), value, dtype=dtype)
    value = value.to(like.device, dtype)
    if value.ndim > 1 or value.ndim == 1 and len(value) != len(like):
        raise ValueError(
            f"{list(value.shape)} does not fit a batch of {len(like)} examples: "
            f"pass one number, or a tensor of shape [{len(like)}]."
        )
    return value if value.ndim else value.expand(len(like))


def weights(w: Weights, like: Example, t: PerExample) -> Strengths:
    """Guidance weights at time t, as `per_example` gives them; several strengths as [b, k]."""
    if callable(w):
        w = w(t)
    if isinstance(w, Tensor) and w.ndim == 2 and w.shape[1] > 1:
        w = w.unbind(1)
    if isinstance(w, Sequence):
        each = [per_example(one, like) for one in w]
        return each[0] if len(each) == 1 else torch.stack(each, 1)
    return per_example(w, like)


class Schedule(ABC):
    """alpha_t and sigma_t, and what follows from them."""

    @abstractmethod
    def alpha_sigma(self, t: PerExample) -> tuple[PerExample, PerExample]:
        """Signal and noise level at time t in [0, 1]: [b] -> [b], [b]."""

    def angle(self, t: PerExample) -> PerExample:
        """phi_t = atan2(sigma_t, alpha_t), from 0 (data) to pi/2 (noise), in radians."""
        alpha, sigma = self.alpha_sigma(t)
        return torch.atan2(sigma, alpha)

    def logsnr(self, t: PerExample) -> PerExample:
        """log(alpha_t^2 / sigma_t^2), clipped to [-20, 20]."""
        alpha, sigma = self.alpha_sigma(t)
        return 2 * (alpha.log() - sigma.log()).clamp(-LOGSNR_LIMIT / 2, LOGSNR_LIMIT / 2)

    def snr(self, t: PerExample) -> PerExample:
        """alpha_t^2 / sigma_t^2, within the same bounds as `logsnr`."""
        return self.logsnr(t).exp()

    def add_noise(self, x: Example, eps: Example, t: PerExample) -> Example:
        """z_t = alpha_t x + sigma_t eps."""
        alpha, sigma = self.alpha_sigma(per_example(t, x))
        return (expand(alpha, x) * x + expand(sigma, x) * eps).to(x.dtype)

    def describe(self) -> str | dict:
        """What is needed to build this schedule again (JSON): its name, or its table."""
        return type(self).__name__


class CosineSchedule(Schedule):
    """alpha_t = cos(pi t / 2), sigma_t = sin(pi t / 2): the angle is linear in time."""

    def alpha_sigma(self, t: PerExample) -> tuple[PerExample, PerExample]:
        # cos(pi/2) is -4.4e-8 in float32. Written as a sine, alpha_1 is exactly 0.
        return torch.sin(math.pi / 2 * (1 - t)), torch.sin(math.pi / 2 * t)

    def angle(self, t: PerExample) -> PerExample:
        return math.pi / 2 * t


class FlowSchedule(Schedule):
    """The straight path of flow matching, z = (1 - tau) x + tau eps, at the same signal to noise.

    tau = shift t / (1 + (shift - 1) t) is the time shift of SD3 (Esser et al. 2024, section 5.3.2),
    which lowers the log-SNR by 2 log(shift). Divided by sqrt((1 - tau)^2 + tau^2), the path
    preserves variance, and so its steps are rotations like all others: see `teachers.flow`.
    """

    def __init__(self, shift: float = 1.0):
        if not 0 < shift < math.inf:
            raise ValueError(f"shift must be a positive number, not {shift}: 1 is no shift.")
        self.shift = float(shift)

    def tau(self, t: PerExample) -> PerExample:
        """How much noise there is on the straight path: sigma / (alpha + sigma)."""
        return self.shift * t / (1 + (self.shift - 1) * t)

    def alpha_sigma(self, t: PerExample) -> tuple[PerExample, PerExample]:
        tau = self.tau(t)
        length = torch.hypot(1 - tau, tau)
        return (1 - tau) / length, tau / length

    def describe(self) -> dict:
        return {"name": "FlowSchedule", "shift": self.shift}


class DiscreteSchedule(Schedule):
    """The table of a discrete-time model such as Stable Diffusion, read as a continuous schedule.

    Entry k of `alphas_cumprod` (T entries) is alpha_t^2 at t = (k + 1) / T; t = 0 is clean data.
    Between entries the angle is interpolated. `made_of` (JSON) says what a computed table was
    computed from, by which the schedule is then known; see `checkpoints.identity`.
    """

    def __init__(self, alphas_cumprod: Float[Tensor, " T"], made_of: dict | None = None):
        if alphas_cumprod.min() < 0 or alphas_cumprod.max() > 1:
            raise ValueError("alphas_cumprod must lie in [0, 1]: pass the products, not the betas.")
        self.alphas_cumprod, self.made_of = alphas_cumprod.double(), made_of
        angles = torch.acos(self.alphas_cumprod.sqrt())
        self.angles = torch.cat([angles.new_zeros(1), angles])
        self._copies: dict[tuple, Tensor] = {}  # of the angles, where they were asked for

    def angle(self, t: PerExample) -> PerExample:
        angles = self._angles(t)
        position = t * (len(angles) - 1)
        low = position.floor().long().clamp(0, len(angles) - 2)
        return torch.lerp(angles[low], angles[low + 1], position - low)

    def time(self, phi: PerExample) -> PerExample:
        """The inverse of `angle`: t at which the angle is phi, and 1 where the table ends below."""
        angles = self._angles(phi)
        low = (torch.searchsorted(angles, phi) - 1).clamp(0, len(angles) - 2)
        position = low + (phi - angles[low]) / (angles[low + 1] - angles[low])
        return (position / (len(angles) - 1)).clamp_max(1.0)

    def _angles(self, like: PerExample) -> Tensor:
        """The table, kept where it was asked for before, so that a GPU need not wait for it."""
        if (like.device, like.dtype) not in self._copies:
            self._copies[like.device, like.dtype] = self.angles.to(like)
        return self._copies[like.device, like.dtype]

    def alpha_sigma(self, t: PerExample) -> tuple[PerExample, PerExample]:
        phi = self.angle(t)
        return torch.sin(math.pi / 2 - phi), torch.sin(phi)

    def describe(self) -> dict:
        about = {"alphas_cumprod": self.alphas_cumprod.tolist()}
        return about if self.made_of is None else {**about, "made_of": self.made_of}

    def zero_terminal_snr(self) -> "DiscreteSchedule":
        """alpha shifted until alpha_1 = 0, and scaled so that its first entry stays as it is.

        Lin et al. 2024 (arXiv 2305.08891), algorithm 1. Stable Diffusion's own table ends at
        alpha_1 = 0.068: there z_1 still shows the mean of the image, which a sampler that starts
        from pure noise does not know.
        """
        alpha = self.alphas_cumprod.sqrt()
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        return self._made(alpha.square(), {"zero_terminal_snr": True})

    def resampled(self, entries: int) -> "DiscreteSchedule":
        """The same angles as a table of another number of entries."""
        t = torch.arange(1, entries + 1, dtype=torch.float64) / entries
        return self._made(self.alpha_sigma(t)[0].square(), {"entries": entries})

    def _made(self, table: Float[Tensor, " T"], how: dict) -> "DiscreteSchedule":
        return DiscreteSchedule(table, None if self.made_of is None else {**self.made_of, **how})
