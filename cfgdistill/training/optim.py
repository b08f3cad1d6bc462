"""How the weights of a model are moved."""

import importlib.util
from dataclasses import KW_ONLY, asdict, dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Optim:
    """Adam without weight decay, on gradients clipped to norm 1.

    The learning rate rises over the first `warm_up` updates to `rate` and falls linearly to 0;
    parameters whose name contains a key of `faster` learn that many times faster (the first key
    that fits). With `ema` > 0 the model ends with the running average of its weights. `batch` is
    the size over all processes together. `eight_bit` keeps Adam's moments in 8 bits where
    bitsandbytes is installed and there is a GPU.
    """

    updates: int
    batch: int
    rate: float
    _: KW_ONLY
    warm_up: int = 50
    faster: dict[str, float] = field(default_factory=dict)
    ema: float = 0.0
    eight_bit: bool = False

    def rate_at(self, done: int) -> float:
        """The learning rate of the update after so many."""
        return self.rate * min(1, (done + 1) / self.warm_up) * (1 - done / self.updates)

    def adam(self, trained: dict[str, Tensor]) -> torch.optim.Optimizer:
        """The optimizer of these parameters by name; its groups have a `factor` on the rate."""
        groups: dict[float, list] = {}
        for name, parameter in trained.items():
            factor = next((times for part, times in self.faster.items() if part in name), 1.0)
            groups.setdefault(factor, []).append(parameter)
        given = [{"params": group, "factor": factor} for factor, group in groups.items()]
        if (
            self.eight_bit
            and torch.cuda.is_available()
            and importlib.util.find_spec("bitsandbytes")
        ):
            from bitsandbytes.optim import AdamW8bit

            return AdamW8bit(given, lr=self.rate, weight_decay=0.0)
        return torch.optim.AdamW(given, lr=self.rate, weight_decay=0.0, fused=True)

    def about(self) -> dict:
        """What a model's card has of it: all that its weights depend on."""
        said = asdict(self)
        del said["eight_bit"]
        if self.warm_up == 50:  # said where it differs, so that older cards still hold
            del said["warm_up"]
        return said
