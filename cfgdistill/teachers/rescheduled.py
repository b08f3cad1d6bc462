"""A denoiser that lives on one schedule, seen on another one: how eps becomes v by distillation."""

from torch import Tensor, nn

from cfgdistill.core.denoiser import Denoiser
from cfgdistill.core.schedules import Example, PerExample, Schedule, Strengths


class Rescheduled(nn.Module):
    """What a denoiser believes about x, as net(z, t, cond, w) -> x on another schedule.

    Both schedules preserve variance. So where signal and noise are in the same proportion z is the
    same, and so is what is known about x: the denoiser is asked at its own time of that proportion.
    Where z is noisier than anything on its own schedule, it is asked at its noisiest time, t = 1:
    there it takes z for what a sampler on its own schedule starts from. Both z have the variance of
    x and of eps, which is one, so nothing is to be scaled.
    """

    def __init__(self, base: Denoiser, schedule: Schedule):
        super().__init__()
        self.base, self.schedule = base, schedule

    @property
    def config(self) -> dict:
        return {"net": "Rescheduled", "base": self.base.describe()}

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def forward(self, z: Example, t: PerExample, cond, w: Strengths | None) -> Tensor:
        """z [b, *d], t [b] on the new schedule; cond and w as the base takes them."""
        return self.base(z, self.base.schedule.time(self.schedule.angle(t)), cond, w).x


def rescheduled(base: Denoiser, schedule: Schedule) -> Denoiser:
    """`base`, which lives on a `DiscreteSchedule`, as a denoiser on another schedule.

    On the new schedule it says v as well as any other, also if it says eps on its own. Guided, it
    is the guided base: guidance at a point is the same in x, eps and v.
    """
    how = {"w_range": base.w_range, "num_classes": base.num_classes}
    return Denoiser(Rescheduled(base, schedule), schedule, "x", **how)
