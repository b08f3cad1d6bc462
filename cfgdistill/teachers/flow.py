"""Flow matching, as SD3 and FLUX are trained: networks that say u = eps - x on a straight path.

On z = (1 - tau) x + tau eps such a network fixes x = z - tau u and eps = z + (1 - tau) u, as v does
on ours. So it is a teacher like all others, on another clock and at another scale.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cfgdistill.core.denoiser import Denoiser
from cfgdistill.core.schedules import Example, FlowSchedule, PerExample, Strengths, expand
from cfgdistill.teachers.files import build_network, network


@network
class Flow(nn.Module):
    """A network of flow matching as net(z, t, cond, w) -> v.

    velocity: net(z, tau, cond, w) -> u, with z on the straight path and tau in [0, 1]
    schedule: the `FlowSchedule` that the denoiser around it lives on
    """

    def __init__(self, velocity: Callable[..., Tensor], schedule: FlowSchedule):
        super().__init__()
        self.velocity, self.schedule = velocity, schedule

    @property
    def config(self) -> dict:
        return {"net": "Flow", "shift": self.schedule.shift, "velocity": self.velocity.config}

    @classmethod
    def from_config(cls, shift: float, velocity: dict) -> "Flow":
        return cls(build_network(velocity), FlowSchedule(shift))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.velocity.shape

    def forward(self, z: Example, t: PerExample, cond, w: Strengths | None) -> Example:
        """z [b, *d] of variance one, t [b], cond and w as the network takes them."""
        tau = expand(self.schedule.tau(t), z)
        length = torch.hypot(1 - tau, tau)
        u = self.velocity((length * z).to(z.dtype), tau.flatten(), cond, w)
        # v = alpha eps - sigma x, with alpha = (1 - tau) / length and sigma = tau / length.
        return (1 - 2 * tau) * z + length * u


def flow_denoiser(
    velocity: Callable[..., Tensor], shift: float = 1.0, *, num_classes: int | None = None
) -> Denoiser:
    """A network u = velocity(z, tau, cond, w) of flow matching as a denoiser on t = i/N.

    shift: of the times that its samplers visit, as in diffusers' FlowMatchEulerDiscreteScheduler,
    whose steps with sigmas i/N are then those of `ddim`. Training is uniform in the shifted times.
    """
    schedule = FlowSchedule(shift)
    return Denoiser(Flow(velocity, schedule), schedule, "v", num_classes=num_classes)


def flow_matching(logsnr: PerExample) -> PerExample:
    """omega = (1 + sqrt(SNR))^2, the error of u: on v, as in `losses`, (alpha + sigma)^2."""
    return 1 + 2 * (logsnr.sigmoid() * (-logsnr).sigmoid()).sqrt()
