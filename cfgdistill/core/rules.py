"""Guidance rules: what is made of a few predictions, each as its paper writes it.

A rule is a function `rule(at, w) -> v` of a point and of the strengths asked for there. What else
it needs is bound to it beforehand: `partial(autoguidance, weak=network)`. All are written in v,
where a difference of two predictions is theirs in x but for a factor of -sigma, and in eps but for
one of alpha; so a rule that is linear may be written in any of the three.

Stage one distils every rule that is a function of (z, t, cond, w). One that depends on where the
step ends has a keyword `steps`, and is for stage two; one that remembers earlier steps is for none.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from cfgdistill.core.parameterization import Prediction
from cfgdistill.core.schedules import Example, Number, PerExample, Schedule, expand


class Point(NamedTuple):
    """All that a rule may depend on: z_t, its condition, and a denoiser to ask about it.

    z [b, *d]; t, alpha, sigma: [b, 1, ..., 1], as the weights that a rule gets; cond, null: the
    condition and what stands for none, one for each example. Where `known` is a dictionary,
    what the networks answered is kept there, and they are not asked again.
    """

    denoiser: Any
    z: Tensor
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    cond: Any
    null: Any
    known: dict | None = None

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    def predict(self, *conds, by=None) -> list[Prediction]:
        """The predictions under each of these conditions, by the denoiser or by another one.

        One call on a larger batch is faster than several calls, and it is several evaluations. A
        denoiser that takes a weight is asked at w = 0, where it is the conditional model itself.
        """
        if self.known is None or torch.is_grad_enabled():  # a graph is used once
            return self._ask(conds, by)
        asked = (self.z, self.t, *tree_leaves(conds))
        key = (by, *((a.data_ptr(), a.shape, a.stride()) for a in asked))
        if key not in self.known:  # as long as `asked` is kept, its memory is nobody else's
            self.known[key] = (asked, self._ask(conds, by))
        return self.known[key][1]

    def _ask(self, conds: tuple, by) -> list[Prediction]:
        model, n = self.denoiser if by is None else by, len(conds)
        z, t = torch.cat([self.z] * n), torch.cat([self.t.flatten()] * n)
        cond = tree_map(lambda *parts: torch.cat([self._precise(part) for part in parts]), *conds)
        w = None if getattr(model, "w_range", None) is None else 0.0
        said = model(z, t, cond, w)
        self.count(n - (by is None))
        return [Prediction(*parts) for parts in zip(*(a.chunk(n) for a in said), strict=True)]

    def _precise(self, a: Tensor) -> Tensor:
        """Embeddings at z's precision or above: autocast to bfloat16 refuses float16 in `cat`."""
        return a.to(torch.promote_types(a.dtype, self.z.dtype)) if a.is_floating_point() else a

    def count(self, evaluations: int) -> None:
        """Network evaluations per example that the denoiser has not counted itself."""
        self.denoiser.evaluations.add_(evaluations)


Rule = Callable[[Point, Tensor], Example]


def guide(cond, uncond, w):
    """(1 + w) cond - w uncond  (Ho & Salimans 2022, eq. 6). Numbers or tensors that broadcast."""
    return (1 + w) * cond - w * uncond


def classifier_free(at: Point, w: Tensor) -> Example:
    """(1 + w) v_c - w v_0  (Ho & Salimans 2022, eq. 6). Two evaluations."""
    cond, null = at.predict(at.cond, at.null)
    return guide(cond.v, null.v, w)


def interval(at: Point, w: Tensor) -> Example:
    """Guidance where low < sigma / alpha <= high only (Kynkaanniemi et al. 2024).

    Three strengths (w, low, high). Two evaluations inside and one outside. A few-step student
    averages over an edge inside one of its steps: put edges on its grid.
    """
    w, low, high = _unpack(at, w, "w", "low", "high")
    inside = (low < at.sigma / at.alpha) & (at.sigma / at.alpha <= high)
    if not inside.any():
        [cond] = at.predict(at.cond)
        return cond.v
    return classifier_free(at, w * inside)


def autoguidance(at: Point, w: Tensor, *, weak) -> Example:
    """(1 + w) v - w v_weak, both under the condition (Karras et al. 2024). Two evaluations.

    weak: a denoiser that is worse in the same way: smaller, or trained for less long, on the same
    data with the same conditions.
    """
    [good], [bad] = at.predict(at.cond), at.predict(at.cond, by=weak)
    return guide(good.v, bad.v, w)


def projected(at: Point, w: Tensor, *, eta: float = 0.0, radius: float = math.inf) -> Example:
    """Guidance without its part along x_c, which oversaturates (APG, Sadat et al. 2024).

    d = x_c - x_0, shortened to a length of at most `radius`; x = x_c + w (d_perp + eta d_par). Two
    evaluations. A sensible radius grows with the square root of the dimension. Their momentum is a
    memory of earlier steps, and so no part of a rule.
    """
    cond, null = at.predict(at.cond, at.null)
    d = cond.v - null.v
    d = d * (radius / _norm(at.sigma * d)).clamp(max=1.0)
    return cond.v + w * (d - (1 - eta) * part_along(d, cond.x))


def zero_star(at: Point, w: Tensor) -> Example:
    """Guidance against the nearest multiple of v_0 (CFG-Zero*, Fan et al. 2025). Two evaluations.

    v_0 <- <v_c, v_0> / ||v_0||^2 v_0. That they start with steps of velocity 0 is no rule but a
    schedule of the sampler.
    """
    cond, null = at.predict(at.cond, at.null)
    return guide(cond.v, part_along(cond.v, null.v), w)


def rescaled(at: Point, w: Tensor, *, phi: float = 0.7) -> Example:
    """Guidance with a share phi of it brought to the spread of v_c (Lin et al. 2024, sec. 3.4).

    Two evaluations.
    """
    cond, null = at.predict(at.cond, at.null)
    v = guide(cond.v, null.v, w)
    return (phi * _std(cond.v) / _std(v) + 1 - phi) * v


def negative_prompt(at: Point, w: Tensor) -> Example:
    """(1 + w) v_c - w v_n, away from what is not wanted, for a student that is to know both.

    cond [b, 2, ...]: the condition and the negative one of each example. Two evaluations.
    """
    cond, negative = at.predict(*at.cond.unbind(1))
    return guide(cond.v, negative.v, w)


def uphill(at: Point, w: Tensor, *, log_p: Callable[[Tensor, PerExample, Any], Tensor]) -> Example:
    """v - w (sigma / alpha) grad_z log p(c | z, t)  (Dhariwal & Nichol 2021, alg. 2, in v).

    log_p(z, t, cond) -> [b]: of a classifier that knows noise, or a matcher's score of z and cond
    (GLIDE, Nichol et al. 2022). With the exact classifier it is `classifier_free`.
    Four evaluations: one, and of log_p one forwards and one backwards, which is as much as two. At
    t = 1, where z says nothing about c and both alpha and the gradient are 0, it is asked a little
    earlier.
    """
    [cond] = at.predict(at.cond)
    t = at.t.flatten().clamp(max=0.999)
    alpha, sigma = (expand(a, at.z) for a in at.schedule.alpha_sigma(t))
    with torch.enable_grad():  # the samplers and both stages work without
        z = at.z.detach().requires_grad_()
        [gradient] = torch.autograd.grad(log_p(z, t, at.cond).sum(), z)
    at.count(3)
    return cond.v - w * sigma / alpha * gradient


def classifier(at: Point, w: Tensor, *, net: Callable[[Tensor, PerExample], Tensor]) -> Example:
    """`uphill` for labels: net(z, t) -> logits [b, classes] of a classifier trained on noisy z."""

    def log_p(z, t, cond):
        return net(z, t).log_softmax(1).gather(1, cond[:, None])

    return uphill(at, w, log_p=log_p)


def several(at: Point, w: Tensor) -> Example:
    """v_0 + sum_i w_i (v_i - v_0), for independent conditions (Liu et al. 2022).

    cond: a tuple of k conditions, each of them one that the denoiser takes; w: k strengths, all 0
    for no condition and all 1 for their product. k + 1 evaluations.
    """
    weights = _unpack(at, w, *(f"w_{i}" for i in range(len(at.cond))))
    *conds, null = at.predict(*at.cond, at.null)
    return null.v + sum(w * (c.v - null.v) for w, c in zip(weights, conds, strict=True))


def sine(
    at: Point, w: Tensor, *, single, cond: int | Tensor, share: float = 0.7, since: float = 0.4
) -> Example:
    """Two models guide together, one of which knows a single image (SINE, Zhang et al. 2023).

    Where t > since, v_c becomes (1 - share) v_c + share v_single, of the denoiser `single` under
    the condition `cond` that names its image. Three evaluations there, two elsewhere.
    """
    said, null = at.predict(at.cond, at.null)
    inside = at.t > since
    if not inside.any():
        return guide(said.v, null.v, w)
    [own] = at.predict(spread(cond, at.cond), by=single)
    return guide(torch.lerp(said.v, own.v, share * inside.to(own.v)), null.v, w)


def plus_plus(at: Point, w: Tensor, *, steps: int) -> Example:
    """CFG++ (Chung et al. 2024) in `steps` equal steps; w is their lambda, from 0 to 1.

    x of the guided and eps of the unconditional prediction are no v of one point. But where they
    lead in one step, guidance leads with a weight of its own: see `plus_plus_w`. Two evaluations.
    """
    t = at.t.flatten()
    return classifier_free(
        at, expand(plus_plus_w(w.flatten(), t, t - 1 / steps, at.schedule), at.z)
    )


def plus_plus_w(strength: Number, t: PerExample, s: PerExample, schedule: Schedule) -> PerExample:
    """The w whose guided step from t to s is the step of CFG++ at lambda = `strength`.

    1 + w = lambda sin(phi_t) cos(phi_s) / sin(phi_t - phi_s), with phi the schedule's angle. In the
    first step and the last it is lambda, so w < 0; between, it grows with the number of steps. So
    CFG++ is guidance in an interval, and with ever more steps there is nothing it tends to.
    """
    phi_t, phi_s = schedule.angle(t), schedule.angle(s)
    return strength * phi_t.sin() * phi_s.cos() / (phi_t - phi_s).sin() - 1


def spread(null, cond):
    """The condition `null`, one for each example of the batch `cond`."""
    if isinstance(cond, tuple):
        return spread(null, cond[0])
    return tree_map(
        lambda c, n: torch.as_tensor(n, dtype=c.dtype, device=c.device).expand_as(c), cond, null
    )


def _unpack(at: Point, w: Tensor, *names: str) -> Tensor:
    """Strengths [k, b, 1, ..., 1]; ValueError where they are not k."""
    w = w[None] if w.ndim == at.z.ndim else w  # a single one
    if len(w) != len(names):
        raise ValueError(
            f"This rule takes {len(names)} strengths: pass w as a tuple ({', '.join(names)})."
        )
    return w


def _inner(a: Example, b: Example) -> Tensor:
    """<a, b> of each example, [b, 1, ..., 1]."""
    return expand((a * b).flatten(1).sum(1), a)


def _norm(a: Example) -> Tensor:
    return _inner(a, a).sqrt()


def part_along(a: Example, b: Example) -> Example:
    """The part of a along b: <a, b> / ||b||^2 b."""
    return _inner(a, b) / _inner(b, b).clamp_min(1e-12) * b


def _std(a: Example) -> Tensor:
    return expand(a.flatten(1).std(1), a)
