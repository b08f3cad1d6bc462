"""A second device, for tests on machines that have but one.

`with elsewhere():` makes every tensor that is moved to "meta", or made there, one that computes on
the CPU and says that it is on "meta". As between a CPU and a GPU, an operation on tensors of both
fails, and, as on Apple's GPUs, there is no float64. Accelerate chooses this device, too.
"""

from contextlib import contextmanager
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

ELSEWHERE = torch.device("meta")
COPY, TO = torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default


class There(torch.Tensor):
    """A tensor whose numbers are those of `here`, on the CPU."""

    is_meta = False  # else torch believes that there are none

    @staticmethod
    def __new__(cls, here):
        if here.dtype == torch.float64:
            raise TypeError("Cannot convert a tensor to float64: this device has none.")
        where = (here.shape, here.stride(), here.storage_offset())
        return cls._make_wrapper_subclass(cls, *where, dtype=here.dtype, device=ELSEWHERE)

    def __init__(self, here):
        self.here = here

    def __repr__(self):
        return f"There({self.here!r})"

    def tolist(self):
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Constants(TorchFunctionMode):
    """torch.tensor(1, device="meta") never asks `_Operations`."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, device = kwargs or {}, (kwargs or {}).get("device")
        if function in (torch.tensor, torch.as_tensor) and device == ELSEWHERE:
            return function(*args, **{**kwargs, "device": None}).to(ELSEWHERE)
        return function(*args, **kwargs)


def _run(function, args, kwargs):
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [a for a in tensors if isinstance(a, There)]
    if there and function not in (COPY, TO):
        if any(a.ndim > 0 for a in tensors if not isinstance(a, There)):
            raise RuntimeError(f"{function} got tensors of two devices, the CPU and another.")
    device = kwargs.get("device")
    moved = torch.device(device) == ELSEWHERE if device is not None else bool(there)
    if function is COPY:
        moved = isinstance(args[0], There)
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    same = {id(a.here): a for a in there}  # an operation in place answers what it was given
    args, kwargs = tree_map_only(There, lambda a: a.here, (args, kwargs))
    made = function(*args, **kwargs)
    if not moved:
        return made
    return tree_map_only(torch.Tensor, lambda a: same[id(a)] if id(a) in same else There(a), made)


@contextmanager
def elsewhere():
    """Everything that goes to Accelerate's device goes elsewhere, and computes the same numbers."""
    import torch.optim.optimizer as optimizer
    from accelerate.state import AcceleratorState

    import cfgdistill.core.guidance as guidance
    import cfgdistill.training.randomness as randomness

    fused, random_at = optimizer._get_fused_kernels_supported_devices(), randomness.random_at
    own = {
        (optimizer, "_get_fused_kernels_supported_devices"): lambda: [*fused, ELSEWHERE.type],
        (randomness, "random_at"): lambda *where, device="cpu": random_at(*where),
    }
    AcceleratorState._reset_state(True)
    guidance._frequencies.cache_clear()  # of a device that was only called the same
    try:
        with mock.patch.dict("os.environ", ACCELERATE_TORCH_DEVICE=ELSEWHERE.type):
            with _Operations(), _Constants(), _patched(own):
                yield
    finally:
        AcceleratorState._reset_state(True)
        guidance._frequencies.cache_clear()


@contextmanager
def _patched(changes):
    before = {(module, name): getattr(module, name) for module, name in changes}
    for (module, name), value in changes.items():
        setattr(module, name, value)
    yield
    for (module, name), value in before.items():
        setattr(module, name, value)
