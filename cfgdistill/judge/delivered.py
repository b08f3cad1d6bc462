"""How much guidance a student gives when it is asked for w: whether the dial works.

A student that does less than it was asked is nearer to the data, as guidance costs diversity; so no
distance to the data says what these two measures say.
"""

from collections.abc import Mapping
from itertools import pairwise

import torch

from cfgdistill.core.schedules import Example

TIMES = (0.1, 1.0)  # below, the conditional and the unconditional prediction hardly differ


@torch.no_grad()
def delivered_w(
    student,
    teacher,
    data,
    w: int | float | tuple[float, ...],
    *,
    times: tuple[float, float] = TIMES,
    n: int = 2048,
    seed: int = 0,
    batch: int = 256,
) -> float:
    """The guidance weight that a network gives when it is asked for w; w for a perfect one.

    The teacher's answer lies on the line v_cond + w (v_cond - v_uncond). This is where on that line
    the student's answer is nearest: the projection of v_student - v_cond on v_cond - v_uncond, over
    all n examples together, from noised examples of `data` at t ~ U[times], the same for every w
    and every student of one seed. A teacher of another rule has another line: from what it says
    without guidance through what it says at w.

    student, teacher: called as (z, t, cond, w), on one device
    data:             `len(data)` and `data.batch(indices) -> x, cond`
    w:                of several strengths, a tuple, the first one is read, and the others stay
    ValueError where nothing lies between the teacher's answers with and without guidance.
    """
    generator, overlap, squared = torch.Generator().manual_seed(seed), 0.0, 0.0
    low, high = times
    first, *others = w if isinstance(w, tuple) else (w,)
    none, full = ((each, *others) if others else each for each in (0.0, first or 1.0))
    for rows in torch.randint(len(data), (n,), generator=generator).split(batch):
        x, cond = data.batch(rows)
        t = low + (high - low) * torch.rand(len(rows), generator=generator)
        eps = torch.randn(x.shape, generator=generator)
        x, cond, t, eps = (value.to(student.device) for value in (x, cond, t, eps))
        z = teacher.schedule.add_noise(x, eps, t)
        v_cond = teacher(z, t, cond, none).v
        direction = (teacher(z, t, cond, full).v - v_cond).double()
        answer = (student(z, t, cond, w).v - v_cond).double()
        overlap += (answer * direction).sum().item()
        squared += direction.square().sum().item()
    if squared == 0:
        raise ValueError(
            "The teacher says the same with and without its condition, so there is no guidance to "
            "deliver: train it with condition dropout, and for longer."
        )
    return (first or 1.0) * overlap / squared


@torch.no_grad()
def delivered_by_samples(x: Example, teacher: Mapping[float, Example]) -> float:
    """The w* at which a teacher's own samples from the same noise are nearest to samples x.

    teacher: {w: samples [b, *d]} for at least two w. Between two of them its samples are taken to
    move in straight lines; so w* lies between the smallest and the largest w that is given.
    """
    if len(teacher) < 2:
        raise ValueError("Samples of the teacher at one w alone show no direction: pass two.")
    weights = sorted(teacher)
    nearest, best = weights[0], float("inf")
    for low, high in pairwise(weights):
        start, along = teacher[low].double(), (teacher[high] - teacher[low]).double()
        offset, length = x.double() - start, along.square().sum().item()
        share = min(1.0, max(0.0, (offset * along).sum().item() / length)) if length else 0.0
        distance = (offset - share * along).square().sum().item()
        if distance < best:
            nearest, best = low + share * (high - low), distance
    return nearest
