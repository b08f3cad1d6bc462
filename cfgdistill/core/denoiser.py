"""The one call every model answers: `denoiser(z, t, cond, w) -> Prediction(x, eps, v)`.

cond is a tensor [b, ...], or a dictionary or list of such tensors for networks that take several.
"""

import copy
from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cfgdistill.core.parameterization import PREDICTION_TYPES, Prediction, convert
from cfgdistill.core.schedules import Example, Number, Schedule, Weights, per_example, weights

Condition = Tensor | tuple | list | dict  # of tensors [b, ...]


class Denoiser(nn.Module):
    """A network, the schedule it lives on, and what its output means.

    net:              net(z, t, cond, w) -> Tensor of the shape of z
    prediction_type:  "v", "eps" or "x"
    steps:            the sampler steps it was distilled for; None: any number (continuous time)
    sampler:          the sampler it was distilled for: "ddim", "stochastic" or, upwards,
                      "ddim_encode"; None: any
    w_range:          the guidance weights it was trained for, (low, high), or one such pair for
                      each of several strengths; None: no limits are known
    num_classes:      labels run from 0 to num_classes - 1, and num_classes itself is the null
                      label; None: the condition is not a label

    `meaning` says what its conditions and its samples mean, where that is known: class names or
    prompts, and a decoder (see `data.meaning`). `nfe` counts network evaluations per example since
    it was last set to 0. A network whose answer depends on where a step ends, as those of shortcut
    models and MeanFlow, says `takes_s = True` and is called as net(z, t, cond, w, s). One that is
    told what it is guided away from says `negative`, above 0, and takes pairs, cond [b, 2, ...].
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        schedule: Schedule,
        prediction_type: str = "v",
        *,
        steps: int | None = None,
        sampler: str | None = None,
        w_range: Sequence | None = None,
        num_classes: int | None = None,
    ):
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type must be one of {PREDICTION_TYPES}, not {prediction_type!r}."
            )
        self.net, self.schedule, self.prediction_type = net, schedule, prediction_type
        self.steps, self.sampler = steps, sampler
        self.w_range, self.num_classes = w_range, num_classes
        self.meaning = None
        # A tensor: torch.compile would take a number for a constant, and compile every call anew.
        self.evaluations = torch.zeros((), dtype=torch.long, device="cpu")

    @property
    def nfe(self) -> int:
        return self.evaluations.item()

    @nfe.setter
    def nfe(self, count: int) -> None:
        self.evaluations.fill_(count)

    @property
    def device(self) -> torch.device:
        """Where the network is, and so where z and cond have to be."""
        first = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one z; ValueError where the network does not say it."""
        if not hasattr(self.net, "shape"):
            raise ValueError(
                f"A {type(self.net).__name__} does not say the shape of its z: give it a `shape`, "
                "such as (3, 32, 32), or call a sampler with noise of your own."
            )
        return tuple(self.net.shape)

    @property
    def takes_s(self) -> bool:
        return getattr(self.net, "takes_s", False)

    @property
    def takes_negative(self) -> bool:
        """Whether its conditions may be pairs of one and what it is guided away from."""
        return bool(getattr(self.net, "negative", 0))

    def forward(
        self,
        z: Example,
        t: Number,
        cond: Condition | None = None,
        w: Weights | None = None,
        s: Number | None = None,
    ) -> Prediction:
        """z [b, *d], t [b] in [0, 1], cond [b, ...], w [b] or [b, k] -> Prediction, parts [b, *d].

        w may be a function of t, such as guidance in an interval: a network that takes a weight
        takes another one in every call. s [b] is where the step ends, if the network asks for it.
        """
        t = per_example(t, z)
        w = None if w is None else weights(w, z, t)
        for part in tree_leaves(cond):
            if part is not None and len(part) != len(z):
                raise ValueError(
                    f"{len(part)} conditions for {len(z)} examples: pass one for each."
                )
        if w is not None and self.w_range is not None:
            check_number(1 if w.ndim == 1 else w.shape[1], self.w_range)
        self.evaluations.add_(1)
        end = (per_example(s, z),) if s is not None and self.takes_s else ()
        output = self.net(z, t, cond, w, *end)
        if output.shape != z.shape:
            raise ValueError(
                f"The network turned {list(z.shape)} into {list(output.shape)}: "
                "a denoiser's output must have the shape of its input."
            )
        # Under autocast the network may answer in half precision; the rest stays in z's.
        output = output.to(z.dtype)
        return convert(output, z, *self.schedule.alpha_sigma(t), self.prediction_type)

    def for_steps(self, steps: int, sampler: str = "ddim") -> "Denoiser":
        """A copy with weights of its own, to be distilled to `steps` steps; same schedule.

        Its weights can be trained, whether or not this model is frozen: see `unfreeze`.
        """
        student = self.copy()
        student.steps, student.sampler, student.nfe = steps, sampler, 0
        unfreeze(student.net)
        return student

    def copy(self, net: nn.Module | None = None) -> "Denoiser":
        """A copy with weights of its own, or around `net`; same schedule, same meaning."""
        shared = {id(part): part for part in (self.schedule, self.meaning)}
        if net is not None:
            shared[id(self.net)] = net
        return copy.deepcopy(self, shared)

    def describe(self) -> dict:
        """What is needed, beside the weights, to build this denoiser again (JSON)."""
        return {
            "net": self.net.config,
            "schedule": self.schedule.describe(),
            "prediction_type": self.prediction_type,
            "steps": self.steps,
            "sampler": self.sampler,
            "w_range": self.w_range,
            "num_classes": self.num_classes,
        }

    def check(
        self, steps: int, cond: Condition | None, w: Weights | None, sampler: str = "ddim"
    ) -> None:
        """One sentence about a request this model was not trained for, before any work is done."""
        if self.sampler is not None and sampler != self.sampler:
            raise ValueError(
                f"This student was distilled for the sampler {self.sampler!r}, not {sampler!r}: "
                f"call {self.sampler}, or load the student of the other sampler."
            )
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}.")
        if self.steps is not None and steps != self.steps:
            raise ValueError(
                f"This student was distilled for {self.steps} steps, not {steps}: "
                f"sample with steps={self.steps}, or load the student of {steps} steps, if there "
                "is one."
            )
        check_labels(cond, self.num_classes)
        if self.w_range is not None:
            if w is None:
                said = " and ".join(f"[{low:g}, {high:g}]" for low, high in ranges(self.w_range))
                raise ValueError(f"This network takes a guidance weight: pass w in {said}.")
            check_weights(w, self.w_range, steps, sampler)


def ask(model, z: Example, t: Number, cond, w: Weights | None, s: Number) -> Prediction:
    """The one call, for a step from t to s: only a model that `takes_s` is told where it ends."""
    return model(z, t, cond, w, s) if getattr(model, "takes_s", False) else model(z, t, cond, w)


def unfreeze(net: nn.Module) -> None:
    """Whatever a student of this network trains can be trained, though its teacher was frozen.

    A network with parts that no student trains says so in `net.trains(name of a parameter)`.
    Otherwise a network that is frozen as a whole is trained as a whole, and one that is frozen in
    part stays so. Dropout is no part of a student: it learns what its teacher says, which has none.
    """
    parameters = dict(net.named_parameters())
    partly = any(parameter.requires_grad for parameter in parameters.values())
    trains = getattr(net, "trains", lambda name: not partly or parameters[name].requires_grad)
    for name, parameter in parameters.items():
        parameter.requires_grad_(trains(name))
    for part in net.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0


W_LIMIT = 1000.0  # of a model without a range; (1 + w) times a prediction is nonsense long before


def check_w(w: Number, low: float, high: float, name: str = "w") -> None:
    """Guidance weights must lie in [low, high]."""
    smallest, largest = (w, w) if not isinstance(w, Tensor) else (w.min().item(), w.max().item())
    if not low <= smallest <= largest <= high:  # so written, NaN is refused as well
        worst = largest if largest > high else smallest
        raise ValueError(
            f"{name} = {worst:g} is outside [{low:g}, {high:g}]: choose a guidance weight in that "
            "range (w = 0 is no guidance; diffusers' guidance_scale is 1 + w)."
        )


def ranges(w_range: Sequence) -> Sequence[Sequence[float]]:
    """A range (low, high), or several of them, as several."""
    return w_range if isinstance(w_range[0], Sequence) else (w_range,)


def check_number(given: int, w_range: Sequence) -> None:
    """As many strengths must be given as there are ranges."""
    taken = len(ranges(w_range))
    if given != taken:
        how = "the one number it is" if taken == 1 else f"a tuple of {taken}"
        raise ValueError(
            f"This network takes {taken} guidance strength{'s' * (taken > 1)}, not {given}: pass w "
            f"as {how}."
        )


def check_weights(w: Weights, w_range: Sequence | None, steps: int, sampler: str = "ddim") -> None:
    """A weight, each of several strengths, or w(t) wherever a sampler asks, must be in its range.

    Without a range, as for guided teachers, they may be any that make sense.
    """
    if callable(w):
        for i in range(steps):  # upwards from 0, else down to the step before it
            t = torch.tensor([(i if sampler == "ddim_encode" else i + 1) / steps])
            check_weights(w(t), w_range, steps)
        return
    each = w.unbind(1) if isinstance(w, Tensor) and w.ndim == 2 else w
    each = each if isinstance(each, Sequence) else (each,)
    known = ranges(w_range or ((0.0, W_LIMIT),) * len(each))
    check_number(len(each), known)
    for i, (one, (low, high)) in enumerate(zip(each, known, strict=True)):
        check_w(one, low, high, "w" if len(each) == 1 else f"w[{i}]")


def check_labels(cond: Condition | None, num_classes: int | None) -> None:
    """Class labels must lie in 0 .. num_classes, the last one being the null label."""
    if num_classes is None:
        return
    if cond is None:
        raise ValueError(
            f"This network needs class labels: pass cond with values in 0 .. {num_classes - 1} "
            f"({num_classes} is the null label)."
        )
    if cond.is_floating_point() or cond.min() < 0 or cond.max() > num_classes:
        raise ValueError(
            f"Labels must be whole numbers in 0 .. {num_classes - 1} ({num_classes} is the null "
            f"label), not {cond.min().item()} .. {cond.max().item()}."
        )
