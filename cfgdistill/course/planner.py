"""What it takes to train students of Stable Diffusion: GiB and hours, told before anything starts.

Nothing is downloaded and no GPU is needed. One update of the real U-Net runs on PyTorch's meta
device, where tensors have a shape and no memory, and what it would hold and compute is counted.
What is not counted there is said in `Plan`.
"""

import functools
import json
import weakref
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from cfgdistill.core.stage_two import halvings
from cfgdistill.course.recipes import Recipe
from cfgdistill.data.hub import name_and_revision, to_fetch
from cfgdistill.data.prompts import DISTINCT
from cfgdistill.teachers.files import shipped_name
from cfgdistill.teachers.unet import LORA_LAYERS, open_unet
from cfgdistill.training.progressive import times_as_long

# Of Stable Diffusion 1.5, where it is not what diffusers takes by default.
SD_1_5 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
T4 = 11.5  # TFLOP a second: diffusers' benchmark, 1.79 steps of 4 guided images, sampling in fp16
GIB = 2**30


class Plan(NamedTuple):
    """What a GPU has to have, by what it is for, and hours, by what they are spent on.

    Activations are those of one update, counted in the precision of the frozen weights. Not
    counted: what autocast keeps in single precision for normalisation, what the allocator rounds
    up, and the kernels themselves. Nobody has measured it here; leave a quarter of the card free.
    """

    gib: dict[str, float]
    hours: dict[str, float]


def plan(recipe: Recipe, unet: dict | None = None, tflops: float = T4) -> Plan:
    """Memory and time of both stages of a recipe of the data set "sd".

    unet:   the configuration of the base's U-Net; None: of Stable Diffusion 1.5
    tflops: what the GPU computes in a second when it is busy, which is far below its peak
    """
    if recipe.track != "sd":
        raise ValueError(
            f"Plans are for Stable Diffusion, and {recipe.dataset!r} needs none: its minutes stand "
            "in the table of recipes."
        )
    if not tflops > 0:
        raise ValueError(f"tflops={tflops} does not fit: a GPU computes more than nothing.")
    frozen, trained, activations, teacher, student = _count(
        json.dumps(unet or SD_1_5, sort_keys=True),
        unet["sample_size"] if unet else recipe.size // 8,
        recipe.lora,
        recipe.checkpointing,
        recipe.precision == "mixed",
    )
    batch = recipe.student_batch
    # Stage one keeps a running average; stage two has a teacher with changes of its own instead.
    gib = {
        "frozen weights": frozen,
        "what is trained": 4 * trained,
        "its gradients": 4 * trained,
        "Adam's moments": (2 if recipe.eight_bit else 8) * trained,
        "running average": 4 * trained,
        "activations": batch * activations,
    }
    halving = recipe.halving * sum(map(times_as_long, halvings(recipe.start)))
    operations = {  # both stages ask the teacher twice: with and without prompt, and step by step
        "pictures of its own": 2 * recipe.data_free * (recipe.images or DISTINCT) * teacher,
        "stage one": recipe.stage_one * batch * (student + 2 * teacher),
        "stage two": halving * batch * (student + 2 * teacher),
    }
    hours = {name: each / 1e12 / tflops / 3600 for name, each in operations.items()}
    return Plan({name: size / GIB for name, size in gib.items()}, hours)


def configuration(base: str) -> dict:
    """That of a pipeline's U-Net, without its weights; OSError where it cannot be had."""
    from diffusers import UNet2DConditionModel

    if shipped_name(base):
        return dict(open_unet(base).config)
    name, revision = name_and_revision(base)
    try:
        return dict(UNet2DConditionModel.load_config(name, subfolder="unet", revision=revision))
    except Exception as error:  # of the hub and of http, each with kinds of its own
        raise OSError(
            f"The configuration of {base!r} could not be had ({type(error).__name__}): "
            f"{to_fetch(base)}, name the folder of a pipeline, or leave base= out for Stable "
            "Diffusion 1.5."
        ) from error


@functools.cache
def _count(config: str, side: int, rank: int, checkpointing: bool, half: bool) -> tuple:
    """Bytes of the frozen weights, and how many numbers are trained; and for one example: bytes of
    activations at their most, FLOPs of an evaluation, and FLOPs of the student in an update."""
    from diffusers import UNet2DConditionModel

    dtype = torch.float16 if half and rank else torch.float32
    with torch.device("meta"), _as_on_a_gpu(dtype):
        net = UNet2DConditionModel.from_config(json.loads(config))
        frozen = sum(p.numel() for p in net.parameters())
        cond, t = torch.empty(2, 77, net.config.cross_attention_dim), torch.ones(2)
        z = torch.empty(2, net.config.in_channels, side, side)
        # A guided teacher is asked for both its answers at once, before the student is asked.
        # Memory by itself: what counts operations holds tensors until garbage is collected.
        with torch.no_grad(), Live(net) as teacher:
            net(z, t, cond)
        with torch.no_grad(), FlopCounterMode(display=False) as evaluation:
            net(z, t, cond)
        if rank:
            from peft import LoraConfig

            net.requires_grad_(False)
            net.add_adapter(LoraConfig(r=rank, target_modules=LORA_LAYERS))
        if checkpointing:
            net.enable_gradient_checkpointing()
        trained = [p for p in net.train().parameters() if p.requires_grad]
        # The second of two examples adds its activations; gradients and copies are there already.
        most = []
        for n in (1, 2):
            with Live(net) as student:
                net(z[:n], t[:n], cond[:n]).sample.sum().backward()
            most.append(student.most)
            net.zero_grad()
        with FlopCounterMode(display=False) as update:
            net(z[:1], t[:1], cond[:1]).sample.sum().backward()
    return (
        frozen * dtype.itemsize,
        sum(p.numel() for p in trained),
        max(teacher.most, most[1] - most[0]),
        evaluation.get_total_flops() / 2,
        update.get_total_flops(),
    )


@contextmanager
def _as_on_a_gpu(dtype: torch.dtype):
    """Layers are made of this type, and attention keeps no scores; the meta device's own would."""
    functional, before = torch.nn.functional, torch.get_default_dtype()
    kept = functional.scaled_dot_product_attention
    try:
        torch.set_default_dtype(dtype)
        functional.scaled_dot_product_attention = _fused
        yield
    finally:
        torch.set_default_dtype(before)
        functional.scaled_dot_product_attention = kept


def _fused(query, key, value, **how):
    made = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True)
    return made[0]


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are made, less those that are gone; `most` at once.

    A module's own parameters are not counted. Their gradients are.
    """

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.now = self.most = 0
        self.known = {p.untyped_storage()._cdata for p in module.parameters()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage) -> None:
        if (key := storage._cdata) not in self.known:
            self.known.add(key)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._drop, key, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size
