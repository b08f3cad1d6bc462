"""Stage two, the halving loop."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from torch import nn

from cfgdistill.core.denoiser import Denoiser
from cfgdistill.core.losses import Loss
from cfgdistill.core.stage_two import continue_a_halving, halvings, stage_two_loss
from cfgdistill.training.loop import train
from cfgdistill.training.optim import Optim
from cfgdistill.training.randomness import seeded
from cfgdistill.training.sharding import share_out
from cfgdistill.training.state import Run


def times_as_long(steps: int) -> int:
    """How much longer than others the halving to so many steps is trained."""
    return 3 if steps <= 4 else 1


def distill_progressively(
    teacher: Denoiser,
    data,
    optim: Optim,
    run: Run | None = None,
    *,
    start: int,
    sampler: str = "ddim",
    loss: Callable[..., Loss] = stage_two_loss,
    late_rate: float = 1.0,
    pretrained: bool = True,
) -> Iterator[Denoiser]:
    """The finished students of start, start/2, ..., 1 steps, one after the other.

    Each student starts as a copy of its teacher (unless not `pretrained`) and then is the next
    one's teacher. As in the released configurations of Salimans & Ho 2022: the rate falls to 0 in
    every halving, no EMA, and more updates for long steps: three times as many for 4 steps and
    fewer (theirs: twice for 2 and 1). With 2 steps and 1 the rate is `late_rate` times the other:
    the longer a step, the more its student has to change. `loss` is `stage_two_loss`, or a
    functools.partial with more of its arguments. A folder gets one sub-folder per student, steps-N,
    and runs are named likewise. A student that is not there although a later one is has done its
    work as a teacher: it is left out. A teacher that is itself a student goes on as it began: with
    its own sampler, from half as many steps.
    """
    run = run or Run()
    continue_a_halving(teacher, start, sampler)
    at = {n: run.folder and Path(run.folder) / f"steps-{n}" for n in halvings(start)}
    there = [n for n, place in at.items() if place and (place / "card.json").exists()]
    for steps, place in at.items():
        if there and steps > min(there) and steps not in there:
            continue
        student = teacher.for_steps(steps, sampler)
        if not pretrained:
            reset(student.net, run.seed)
        # A single stochastic step is the teacher's own single step: that student is a copy, and
        # Adam would only magnify the rounding errors of a loss of zero.
        copied = sampler == "stochastic" and steps == 1
        how = replace(
            optim,
            updates=0 if copied else optim.updates * times_as_long(steps),
            rate=optim.rate * (late_rate if steps <= 2 else 1),
        )
        name = f"steps-{steps}" if sampler == "ddim" else f"{sampler}-steps-{steps}"
        of_it = replace(run, name=name, folder=place, about={**run.about, "start": start})
        # Held by nobody once it has taught this one.
        taught = loss(share_out(teacher, run.device), steps, teacher.w_range, sampler=sampler)
        for _ in train(student, taught, data, how, of_it):
            pass
        del taught
        # The next one's teacher is a copy, for the caller may do with this one as it pleases.
        teacher = student.copy()
        yield student


def reset(net: nn.Module, seed: int = 0) -> None:
    """Random weights again, as before any training; what is frozen stays as it is."""
    with seeded(seed):
        for part in net.modules():
            own = [*part.parameters(recurse=False)]
            if hasattr(part, "reset_parameters") and any(p.requires_grad for p in own):
                part.reset_parameters()
