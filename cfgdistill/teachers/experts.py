"""Experts by noise level (eDiff-I, Balaji et al. 2022): networks that share the work by time."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.utils._pytree import tree_map

from cfgdistill.core.denoiser import Denoiser
from cfgdistill.core.schedules import Example, PerExample, Strengths
from cfgdistill.teachers.files import build, network


@network
class Experts(nn.Module):
    """Denoisers as one network net(z, t, cond, w) -> v, whatever each of them predicts itself.

    edges:     times that rise from 0 to 1, both excluded: the first denoiser is asked up to the
               first of them, the next one from there up to the second, and so on
    denoisers: one more than edges, on one schedule

    Denoiser(Experts((0.5,), (low, high)), low.schedule) is then distilled like any other. Two half
    steps of a teacher may well be those of two experts.
    """

    def __init__(self, edges: Sequence[float], denoisers: Sequence[Denoiser]):
        super().__init__()
        if len(denoisers) != len(edges) + 1:
            raise ValueError(
                f"{len(edges)} edges lie between {len(edges) + 1} experts, not {len(denoisers)}: "
                "pass one expert for each interval of time."
            )
        if not all(low < high for low, high in pairwise((0, *edges, 1))):
            raise ValueError(f"Edges must rise from 0 to 1, both excluded, and {edges} do not.")
        if any(each.schedule.describe() != denoisers[0].schedule.describe() for each in denoisers):
            raise ValueError("Experts must be on one schedule: train them from one teacher, say.")
        self.denoisers = nn.ModuleList(denoisers)
        self.edges = [*edges]

    @property
    def config(self) -> dict:
        experts = [denoiser.describe() for denoiser in self.denoisers]
        return {"net": "Experts", "edges": self.edges, "denoisers": experts}

    @classmethod
    def from_config(cls, edges: list[float], denoisers: list[dict]) -> "Experts":
        return cls(edges, [build(described) for described in denoisers])

    @property
    def shape(self) -> tuple[int, ...]:
        return self.denoisers[0].shape

    def add_w(self, strengths: int) -> None:
        for denoiser in self.denoisers:
            denoiser.net.add_w(strengths)

    def forward(self, z: Example, t: PerExample, cond, w: Strengths | None) -> Example:
        """z [b, *d], t [b], cond and w as the experts take them."""
        which, v = torch.bucketize(t, t.new_tensor(self.edges)), torch.empty_like(z)
        for i in which.unique().tolist():
            rows = which == i
            given = tree_map(lambda a, rows=rows: None if a is None else a[rows], (z, t, cond, w))
            v[rows] = self.denoisers[i](*given).v
        return v
