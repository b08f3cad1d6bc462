"""A network for the toy's points in the plane."""

import math

import torch
from torch import Tensor, nn

from cfgdistill.core.guidance import embed_w
from cfgdistill.core.schedules import PerExample, Strengths
from cfgdistill.teachers.files import network


@network
class MLP(nn.Module):
    """A small network net(z, t, cond, w) for the toy: what a student is, without the images.

    strengths: how many w it takes, each with Fourier features of its own
    """

    def __init__(
        self,
        dim: int = 2,
        num_classes: int = 3,
        width: int = 128,
        features: int = 32,
        strengths: int = 1,
    ):
        super().__init__()
        self.config = {
            "net": "MLP",
            "dim": dim,
            "num_classes": num_classes,
            "width": width,
            "features": features,
        }
        self.features = features
        self.label = nn.Embedding(num_classes + 1, width)
        self.time = nn.Linear(2 * features, width)
        self.add_w(strengths)
        self.inner = nn.Linear(dim, width)
        self.layers = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(3))
        self.outer = nn.Linear(width, dim)

    def add_w(self, strengths: int) -> None:
        """An input for so many weights, on which the answer does not depend yet."""
        if strengths > 1:
            self.config["strengths"] = strengths
        self.w_proj = nn.Linear(self.features * strengths, self.label.embedding_dim, bias=False)
        nn.init.zeros_(self.w_proj.weight)

    def forward(self, z: Tensor, t: PerExample, cond: Tensor, w: Strengths | None) -> Tensor:
        k = torch.arange(1, self.features + 1, device=z.device) * (math.pi / 4)
        phase = t.float()[:, None] * k
        given = self.time(torch.cat([phase.sin(), phase.cos()], 1).to(z.dtype)) + self.label(cond)
        if w is not None:
            given = given + self.w_proj(embed_w(w, self.features).to(z.dtype))
        h = self.inner(z)
        for layer in self.layers:
            h = h + torch.nn.functional.silu(layer(torch.cat([h, given], 1)))
        return self.outer(h)
