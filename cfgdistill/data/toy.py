"""Two dimensions, where everything is known exactly: a Gaussian mixture and its best denoiser."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cfgdistill.core.denoiser import Denoiser
from cfgdistill.core.schedules import Schedule, expand


class GaussianMixture:
    """Equally likely round Gaussians, each with a class label; the null label is num_classes.

    means [k, d], labels [k], std: the standard deviation they share.
    """

    def __init__(self, means: Float[Tensor, " k d"], labels: Int[Tensor, " k"], std: float):
        self.means, self.labels, self.std = means, labels, std
        self.num_classes = int(labels.max()) + 1

    def sample(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, " n d"], Int[Tensor, " n"]]:
        """n points and their labels."""
        k = torch.randint(len(self.means), (n,), generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator)
        return self.means[k] + self.std * noise.to(self.means), self.labels[k]

    def denoiser(self, schedule: Schedule) -> Denoiser:
        """The exact denoiser: x = E[x | z_t, label], and over all classes for the null label."""
        net = _ExactV(self, schedule)
        return Denoiser(net, schedule, "v", num_classes=self.num_classes)


class _ExactV(nn.Module):
    """E[v | z_t, label], in closed form.

    One Gaussian of mean mu and variance s^2 has variance q = alpha^2 s^2 + sigma^2 at time t and
    E[v | z] = alpha sigma (1 - s^2) / q (z - alpha mu) - sigma mu. A mixture is the average of its
    components, weighted by the probability that z came from each.
    """

    def __init__(self, mixture: GaussianMixture, schedule: Schedule):
        super().__init__()
        self.std, self.num_classes, self.schedule = mixture.std, mixture.num_classes, schedule
        self.register_buffer("means", mixture.means, persistent=False)
        self.register_buffer("labels", mixture.labels, persistent=False)

    def forward(self, z, t, cond, w):
        if w is not None:
            raise ValueError("The exact denoiser takes no w: wrap it in GuidedDenoiser.")
        means = self.means.to(z)
        alpha, sigma = (expand(a, z) for a in self.schedule.alpha_sigma(t))
        variance = self.std**2
        q = alpha**2 * variance + sigma**2
        offset = z[:, None, :] - alpha[..., None] * means  # [b, k, d]
        log_weight = -offset.square().sum(-1) / (2 * q)
        if cond is not None:
            own = cond[:, None] == self.labels.to(cond.device)
            null = (cond == self.num_classes)[:, None]
            log_weight = log_weight.masked_fill(~(own | null), -math.inf)
        v = (alpha * sigma * (1 - variance) / q)[..., None] * offset - sigma[..., None] * means
        return (log_weight.softmax(1)[..., None] * v).sum(1)


def pinwheel() -> GaussianMixture:
    """The course's example: three classes of four overlapping blobs on three arms of a spiral."""
    arm = torch.arange(4) / 3
    angles = 2 * math.pi * torch.arange(3)[:, None] / 3 + 1.4 * arm
    radius = 0.35 + 1.1 * arm
    means = torch.stack([radius * angles.cos(), radius * angles.sin()], -1).reshape(-1, 2)
    return GaussianMixture(means, torch.arange(3).repeat_interleave(4), std=0.18)
