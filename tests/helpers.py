"""Small networks and schedules that several tests share."""

import importlib.util
import math
from pathlib import Path

import torch
from torch import nn

from cfgdistill.core.denoiser import Denoiser
from cfgdistill.core.schedules import CosineSchedule, DiscreteSchedule, FlowSchedule
from cfgdistill.course.recipes import get_recipe
from cfgdistill.data.autoencoder import VAEEncoder
from cfgdistill.data.text import TextEncoder, build_text_encoder
from cfgdistill.teachers.mlp import MLP
from cfgdistill.teachers.unet import build_text_unet, build_unet
from cfgdistill.teachers.w_input import add_w_conditioning
from cfgdistill.training.optim import Optim
from cfgdistill.training.state import Run


def script(name: str):
    """data/<name>.py as a module."""
    path = Path(__file__).parents[1] / "data" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unet_of(recipe, **shape) -> Denoiser:
    """`build_unet` as a recipe has it; shape: channels, size and num_classes."""
    places = {"patch": recipe.patch, "attention": recipe.attention}
    return build_unet(**recipe.unet, **places, **shape)


def text_unet_of(recipe, **shape) -> Denoiser:
    """`build_text_unet`, likewise; shape: channels, size and text."""
    return build_text_unet(**recipe.unet, **shape)


class Wave(nn.Module):
    """A fixed pseudo-network: smooth, nonlinear, and different for every z, t, cond and w."""

    def forward(self, z, t, cond, w):
        def wide(a):
            return a.to(z).reshape(-1, *(1,) * (z.ndim - 1))

        phase = 1.7 * z + 2.3 * wide(t) + z.flip(-1).sin()
        if cond is not None:
            phase = phase + 0.9 * wide(cond)
        if w is not None:
            phase = phase + 0.4 * wide(w)
        return phase.sin()


def cosine_alphas_cumprod(T: int) -> torch.Tensor:
    """cos^2(pi t / 2) at t = (k + 1) / T, in float64; the last entry is exactly 0."""
    table = torch.cos(math.pi / 2 * (torch.arange(T, dtype=torch.float64) + 1) / T) ** 2
    table[-1] = 0.0
    return table


def linear_alphas_cumprod(T: int) -> torch.Tensor:
    """Ho et al. 2020: betas from 1e-4 to 0.02 (for T = 1000), so alpha_1 is not quite 0."""
    betas = torch.linspace(0.1 / T, 20 / T, T, dtype=torch.float64)
    return torch.cumprod(1 - betas, 0)


def schedules() -> dict:
    """One schedule of each kind."""
    discrete = DiscreteSchedule(linear_alphas_cumprod(1024))
    return {"cosine": CosineSchedule(), "discrete": discrete, "flow": FlowSchedule(3.0)}


def known_alpha_sigma(name: str, t: float) -> tuple[float, float]:
    """alpha_t and sigma_t of `schedules()`, worked out here (discrete: for multiples of 1/1024)."""
    if name == "cosine":
        return math.cos(math.pi / 2 * t), math.sin(math.pi / 2 * t)
    if name == "flow":  # a shift of 3 multiplies sigma / alpha = t / (1 - t) by 3
        angle = math.pi / 2 if t == 1 else math.atan(3 * t / (1 - t))
        return math.cos(angle), math.sin(angle)
    k = round(1024 * t)
    kept = 1.0 if k == 0 else linear_alphas_cumprod(1024)[k - 1].item()
    return math.sqrt(kept), math.sqrt(1 - kept)


def plan(**given) -> tuple[Optim, Run]:
    """What `train` is told, by the names of its entries."""
    run = {key: given.pop(key) for key in [*given] if key in Run.__dataclass_fields__}
    return Optim(**given), Run(**run)


def tiny_mlp(seed: int = 0, **about) -> Denoiser:
    """A small toy network with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MLP(width=16, features=4)
    return Denoiser(net, CosineSchedule(), "v", num_classes=3, **about)


# ---- for what stock diffusers is compared with ----

CAPTIONS = ["red apple", "green apple", "cat face"]
TINY = get_recipe("digits", "smoke", channels=(8, 16))


def with_w(teacher: Denoiser, high: float) -> Denoiser:
    """A stage-one student to which w matters."""
    student = add_w_conditioning(teacher, (0.0, high))
    generator = torch.Generator().manual_seed(1)
    weight = student.net.unet.time_embedding.cond_proj.weight
    weight.data = torch.randn(weight.shape, generator=generator) / 10
    return student


def tiny_text_student() -> tuple[Denoiser, TextEncoder, VAEEncoder]:
    """A student that draws 16 x 16 images from text, with w in [0, 8], all of random weights."""
    from diffusers import AutoencoderKL

    text = build_text_encoder(CAPTIONS, vocabulary=600, length=10, width=32)
    student = with_w(text_unet_of(TINY, channels=4, size=8, text=text.model), 8.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
        )
        images = 2 * torch.rand(8, 3, 16, 16) - 1
    text = TextEncoder(text.tokenizer, student.net.text)
    return student, text, VAEEncoder.measured(vae, [images])
