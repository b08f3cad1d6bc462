"""How networks take a guidance weight: an input that, so far, changes nothing.

Each kind of network knows where it belongs, and says so in its method `add_w(strengths)`:

ClassUNet, TextUNet   `time_cond_proj_dim` of diffusers: added to the time before its embedding
DiT, UNet2D           no slot in diffusers: added to the embedding of the label, see `LabelsAndW`
Flux                  `guidance_embeds` of diffusers, which is told the scale 1 + w
MLP                   added to the time and the label, as in DiT
Flow, Experts         as the networks inside them take it

All are zero at first, so a student starts as exactly the conditional teacher, for every w.
ClassUNet and TextUNet can also be told what they are guided away from: see `add_negative`.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cfgdistill.core.denoiser import Condition, Denoiser, ranges, unfreeze
from cfgdistill.core.guidance import embed_w
from cfgdistill.core.schedules import Example, Strengths

W_FEATURES = 64


def add_w_conditioning(teacher: Denoiser, w_range: Sequence) -> Denoiser:
    """A copy of the teacher's network with a w input that, so far, changes nothing.

    w_range: (low, high), or a pair for each of several strengths, whose features stand side by
    side. ValueError where the network does not say how it takes a weight.
    """
    if not hasattr(teacher.net, "add_w"):
        raise ValueError(
            f"A {type(teacher.net).__name__} does not say how it takes a guidance weight: give it "
            "a method add_w(strengths), which makes an input for so many that is 0 at first."
        )
    net = copy.deepcopy(teacher.net)
    net.add_w(len(ranges(w_range)))
    unfreeze(net)
    student = teacher.copy(net)
    student.w_range, student.steps, student.sampler, student.nfe = w_range, None, None, 0
    return student.to(next(teacher.parameters()).device).eval()


def add_negative(student: Denoiser, null: Condition | int) -> Denoiser:
    """The student itself, whose network now also takes what it is guided away from.

    Its conditions are then pairs [b, 2, ...] of what is wanted and what is not, and it is trained
    by the rule `negative_prompt` (see `against_others`); a condition alone has `null` beside it. So
    far the second one changes nothing. ValueError where the network does not say how it takes one.
    """
    if not (hasattr(student.net, "add_negative") and hasattr(student.net, "negative")):
        raise ValueError(
            f"A {type(student.net).__name__} does not say how it takes a negative condition: give "
            "it a method add_negative(null), which makes an input for it that is 0 at first, and "
            "an attribute `negative`, which is above 0 from then on."
        )
    if student.takes_negative:
        raise ValueError("This student takes a negative condition already: train it as it is.")
    if student.w_range is None:
        raise ValueError(
            "A negative condition stands beside a weight: give the network an input for w first, "
            "with add_w_conditioning."
        )
    student.net.add_negative(torch.as_tensor(null, device=student.device))
    return student


def w_projection(strengths: int, width: int) -> nn.Linear:
    """From the features of so many weights to what is added for them: 0, in float32.

    diffusers leaves its own `cond_proj` at random, and a student of it starts as a damaged teacher.
    """
    projection = nn.Linear(strengths * W_FEATURES, width, bias=False)
    nn.init.zeros_(projection.weight)
    return projection


def refuse_w(w: Strengths | None, takes: bool) -> None:
    """ValueError where a weight is missing, or is given to a network that takes none."""
    if w is not None and not takes:
        raise ValueError(
            "This network takes no w: wrap it in GuidedDenoiser, or give it a w input with "
            "add_w_conditioning."
        )
    if w is None and takes:
        raise ValueError("This network needs a guidance weight: pass w.")


def w_features(w: Strengths | None, like: Example, features: int | None) -> Tensor | None:
    """What a projection of so many features in all is given; None for a network without one."""
    refuse_w(w, bool(features))
    if w is None:
        return None
    return embed_w(w, features // (1 if w.ndim == 1 else w.shape[1])).to(like.dtype)


class LabelsAndW(nn.Embedding):
    """An embedding of labels, to which one of w is added: it is asked with both, as a pair.

    Networks of diffusers without an input for w pass what they are given as class_labels on to
    their embeddings as it is; so a pair reaches this one, which stands in the place of theirs.
    """

    def __init__(self, table: nn.Embedding, strengths: int):
        super().__init__(*table.weight.shape, _weight=table.weight.data)
        self.cond_proj = w_projection(strengths, table.embedding_dim)

    def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
        labels, features = given
        return super().forward(labels) + self.cond_proj(features)
