"""Classifier-free guidance, and everything that is said with a guidance weight w.

w = 0 is no guidance. This is the convention of the paper and of Ho & Salimans 2022. diffusers'
`guidance_scale` is 1 + w; `w_from_scale` and `scale_from_w` stand at that border.
"""

import functools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from cfgdistill.core.denoiser import Condition, Denoiser, check_weights, ranges
from cfgdistill.core.parameterization import Prediction, convert
from cfgdistill.core.rules import Point, Rule, classifier_free, spread
from cfgdistill.core.schedules import (
    Example,
    Number,
    PerExample,
    Schedule,
    Strengths,
    Weights,
    expand,
    per_example,
    weights,
)


class GuidedDenoiser(nn.Module):
    """The guided teacher: a few predictions combined by a rule, with strengths w.

    null:  the condition that means "no condition": a label, one embedding [*c], or a dictionary of
           them for a network that takes several
    rule:  rule(at, w) -> v, as in `rules`; None: classifier-free guidance. Networks that are bound
           to it with functools.partial go where this one goes, and are part of what it is.

    Around a student that takes a weight, null is a negative prompt: (1 + w) S(c, 0) - w S(null, 0)
    is exactly the teacher that is guided away from it, for a student that is exact at w = 0. The
    steps of a few-step student cannot be so combined, and it is refused.
    """

    def __init__(self, denoiser: Denoiser, null: int | Condition, rule: Rule | None = None):
        super().__init__()
        _can_be_guided(denoiser)
        self.denoiser, self.null, self.rule = denoiser, null, rule or classifier_free
        settings = getattr(self.rule, "keywords", {})
        self.others = nn.ModuleDict({k: v for k, v in settings.items() if isinstance(v, nn.Module)})
        self.settings = {k: v for k, v in settings.items() if k not in self.others}

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    @property
    def shape(self) -> tuple[int, ...]:
        return self.denoiser.shape

    @property
    def steps(self) -> int | None:
        """The sampler steps that the rule depends on; None: it is for any number."""
        return self.settings.get("steps")

    @property
    def nfe(self) -> int:
        return self.denoiser.nfe

    @nfe.setter
    def nfe(self, count: int) -> None:
        self.denoiser.nfe = count

    def describe(self) -> dict:
        """What it is (JSON). An embedding is a computed number, and known with its data."""
        about = {"guided": self.denoiser.describe(), "null": tree_map(_said, self.null)}
        if self.rule is classifier_free:
            return about
        others = {k: v.describe() for k, v in self.others.items() if hasattr(v, "describe")}
        settings = {k: v if type(v) in (int, float) else _name(v) for k, v in self.settings.items()}
        return {**about, "rule": self.name, **settings, **others}

    @property
    def name(self) -> str:
        """What the rule is called."""
        return _name(getattr(self.rule, "func", self.rule))

    def forward(self, z: Example, t: Number, cond, w: Weights) -> Prediction:
        """z [b, *d], t [b], cond [b, ...], w [b] or [b, k] -> Prediction, each part [b, *d].

        Classifier-free guidance costs two evaluations; what another rule costs it says itself.
        """
        at, w = self._point(z, t, cond, w)
        return convert(self._v(at, w), z, at.alpha.flatten(), at.sigma.flatten(), "v")

    @torch.no_grad()
    def guidance(self, z: Example, t: Number, cond, w: Weights) -> tuple[Example, Example]:
        """The v that it says at w, and that of guidance itself: of w = 1, less that without any.

        A rule that asks its networks the same at every w costs no more than `forward`. Of several
        strengths it is that of the first, and the others stay as they are.
        """
        at, w = self._point(z, t, cond, w)
        at = at._replace(known={})
        one, none = w.clone(), w.clone()
        one.reshape(len(w), -1)[:, 0], none.reshape(len(w), -1)[:, 0] = 1, 0
        return self._v(at, w), self._v(at, one) - self._v(at, none)

    def _point(self, z: Example, t: Number, cond, w: Weights) -> tuple[Point, Strengths]:
        t = per_example(t, z)
        noise = (expand(a, z) for a in (t, *self.schedule.alpha_sigma(t)))
        return Point(self.denoiser, z, *noise, cond, spread(self.null, cond)), weights(w, z, t)

    def _v(self, at: Point, w: Strengths) -> Example:
        each = [expand(one, at.z) for one in w.unbind(1)] if w.ndim > 1 else [expand(w, at.z)]
        v = self.rule(at, torch.stack(each) if w.ndim > 1 else each[0])
        if self.rule is not classifier_free:
            self._check(v, at.z, at.t.flatten())
        return v

    def _check(self, v: Tensor, z: Example, t: PerExample) -> None:
        """One sentence about a rule that says what no rule may say."""
        if v.shape != z.shape:
            raise ValueError(
                f"The rule {self.name!r} turned {list(z.shape)} into {list(v.shape)}: let it "
                "return a v of the shape of z, and pass as many strengths as it takes."
            )
        if not (finite := v.isfinite().flatten(1).all(1)).all():
            raise ValueError(
                f"The rule {self.name!r} is not finite at t = {t[~finite][0]:g}: write it without "
                "a division by what is 0 there (alpha is at t = 1, and sigma at t = 0)."
            )

    def check(self, steps: int, cond, w: Weights | None, sampler: str = "ddim") -> None:
        """As `Denoiser.check`. A guided teacher takes any sensible w >= 0."""
        if cond is None or w is None:
            raise ValueError(
                "A guided teacher needs both a condition and a weight: pass cond and w."
            )
        if self.steps not in (None, steps):
            raise ValueError(
                f"The rule {self.name!r} was made for {self.steps} steps, not {steps}: sample with "
                f"steps={self.steps}, or bind steps={steps} to it."
            )
        inner = None if self.denoiser.w_range is None else 0.0
        conds = cond if isinstance(cond, tuple) else (cond,)
        for each in (*conds, spread(self.null, cond)):
            self.denoiser.check(steps, each, inner, sampler)
        check_weights(w, None, steps, sampler)


def _said(null: int | Tensor) -> int | list:
    null = torch.as_tensor(null)
    return list(null.shape) if null.is_floating_point() else null.tolist()


def _name(thing) -> str:
    return getattr(thing, "__name__", type(thing).__name__)


FEWEST_STEPS = 4  # of a student whose answers can be combined


def _can_be_guided(denoiser) -> None:
    """A student with a weight of its own can be guided away from something, if it has the steps."""
    if getattr(denoiser, "w_range", None) is None:
        return
    if denoiser.steps is not None and denoiser.steps < FEWEST_STEPS:
        raise ValueError(
            f"A student of {denoiser.steps} steps cannot be guided, nor take a negative prompt, by "
            "combining two of its answers, for steps this long are no velocities (its error on "
            "digits would be 1.31 with 1 step and 0.29 with 2, against 0.12 with 4, and 0.43 "
            "without any negative): take a student of 4 steps or more, or, but for "
            "Stable Diffusion, train one that takes the negative as an input (negatives=True)."
        )
    known = ranges(denoiser.w_range)
    if len(known) > 1 or not known[0][0] <= 0 <= known[0][1]:
        raise ValueError(
            "To be guided, or to take a negative prompt, a student must know w = 0 and no other "
            f"strength, for there it is the conditional model; this one was trained for "
            f"{denoiser.w_range}: train one on a range of w that begins with 0."
        )


def drop_condition(cond: Condition, null: int | Condition, p: float, u: PerExample) -> Condition:
    """Replace each example's condition by null with probability p; u ~ U[0, 1], [b].

    This is how one network learns both halves of the guided pair (Ho & Salimans 2022, alg. 1).
    """
    null = spread(null, cond)
    return tree_map(lambda c, none: torch.where(expand(u < p, c), none, c), cond, null)


def sample_w(u: PerExample, w_range: tuple[float, float], power: float = 1.0) -> PerExample:
    """Guidance weights w = w_min + (w_max - w_min) u^power from u ~ U[0, 1], [b] -> [b].

    power = 1 is the paper's uniform w. A larger power draws small w more often, where a student
    must learn to leave the conditional model as it is: see notebook 03.
    """
    w_min, w_max = w_range
    return w_min + (w_max - w_min) * u**power


def draw_w(draw, w_range: Sequence, power: float = 1.0) -> Tensor:
    """`sample_w` of one range, [b], or of each of k ranges, [b, k], with u from a draw."""
    drawn = [sample_w(draw.uniform(), tuple(pair), power) for pair in ranges(w_range)]
    return drawn[0] if len(drawn) == 1 else torch.stack(drawn, 1)


def embed_w(w: Strengths, dim: int) -> Float[Tensor, " b dim"] | Float[Tensor, " b {k*dim}"]:
    """Fourier features of 1000 w, in float32: exactly what diffusers' pipelines feed to
    `timestep_cond`. (In bfloat16, 1000 w = 6000 would round to 6016.) Of k strengths, those of one
    after the other.
    """
    if w.ndim == 2:
        return torch.cat([embed_w(one, dim) for one in w.unbind(1)], 1)
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
