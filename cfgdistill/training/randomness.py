"""Random numbers that depend on where they are drawn alone, never on what was drawn before."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Draw:
    """The random numbers of one update: drawn for the whole batch; a process keeps its share.

    So what an example draws does not depend on how many processes share the batch. The numbers are
    made on the device, which never waits for them.
    """

    def __init__(self, where: tuple, batch: int, share: slice, device: str | torch.device):
        self.batch, self.share = batch, share
        self.made = {"generator": random_at(*where, device=device), "device": device}

    def uniform(self) -> Tensor:
        """U[0, 1], one per example."""
        return torch.rand(self.batch, **self.made)[self.share]

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """N(0, I) of the given shape for each example."""
        return torch.randn(self.batch, *shape, **self.made)[self.share]

    def integers(self, high: int) -> Tensor:
        """Whole numbers 0 .. high - 1, one per example."""
        return torch.randint(high, (self.batch,), **self.made)[self.share]


def random_at(*where, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator whose numbers depend on `where` alone, such as (seed, "teacher", 812)."""
    return torch.Generator(device).manual_seed(seed_at(*where))


def seed_at(*where) -> int:
    """A seed that depends on `where` alone."""
    digest = hashlib.sha256(repr(where).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's global random numbers start at `seed`; outside, they go on undisturbed.

    Those of the CPU, of every GPU of NVIDIA and of Apple's. Not by `torch.manual_seed`, which keeps
    a record of every call for each kind of device that is not in use.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    apple = torch.mps.get_rng_state() if mps else None
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if cuda else ()):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed_all(seed)
        if mps:
            torch.mps.manual_seed(seed)
        try:
            yield
        finally:
            if mps:
                torch.mps.set_rng_state(apple)
