"""On Distillation of Guided Diffusion Models (Meng et al., CVPR 2023), implemented and taught.

Only the light modules are imported here; `cfgdistill.unets`, `.data`, `.metrics`, `.stages` and
`.plotting` bring in diffusers, datasets, torchmetrics and matplotlib when they are used.
"""

from cfgdistill.config import Recipe, get_recipe
from cfgdistill.delivered import delivered_by_samples, delivered_w
from cfgdistill.denoiser import Denoiser
from cfgdistill.distillation import (
    diffusion_loss,
    guidance_matching_loss,
    progressive_loss,
    progressive_target,
)
from cfgdistill.guidance import GuidedDenoiser, guide
from cfgdistill.parameterization import Prediction, convert
from cfgdistill.sampling import (
    ancestral,
    ddim,
    ddim_encode,
    ddim_step,
    implied_v,
    last,
    stochastic,
    translate,
)
from cfgdistill.schedules import CosineSchedule, DiscreteSchedule, Schedule
from cfgdistill.training import distill_progressively, train

__version__ = "0.1.0"
__all__ = [
    "CosineSchedule",
    "Denoiser",
    "DiscreteSchedule",
    "GuidedDenoiser",
    "Prediction",
    "Recipe",
    "Schedule",
    "ancestral",
    "convert",
    "ddim",
    "ddim_encode",
    "ddim_step",
    "delivered_by_samples",
    "delivered_w",
    "diffusion_loss",
    "distill_progressively",
    "get_recipe",
    "guidance_matching_loss",
    "guide",
    "implied_v",
    "last",
    "progressive_loss",
    "progressive_target",
    "stochastic",
    "train",
    "translate",
]
