"""On Distillation of Guided Diffusion Models (Meng et al., CVPR 2023), implemented and taught.

The names of __all__ come from the light modules, when they are first asked for: so the command line
answers at once. `cfgdistill.unets`, `.data`, `.metrics`, `.stages` and `.plotting` bring in
diffusers, datasets, torchmetrics and matplotlib.
"""

from importlib import import_module

__version__ = "0.1.0"
HOMES = {
    "config": ("Recipe", "get_recipe"),
    "delivered": ("delivered_by_samples", "delivered_w"),
    "denoiser": ("Denoiser",),
    "distillation": (
        "diffusion_loss",
        "guidance_matching_loss",
        "progressive_loss",
        "progressive_target",
    ),
    "guidance": ("GuidedDenoiser", "guide"),
    "parameterization": ("Prediction", "convert"),
    "sampling": (
        *("ancestral", "ddim", "ddim_encode", "ddim_step"),
        *("implied_v", "last", "stochastic", "translate"),
    ),
    "schedules": ("CosineSchedule", "DiscreteSchedule", "Schedule"),
    "training": ("distill_progressively", "train"),
}
__all__ = sorted(name for names in HOMES.values() for name in names)  # noqa: PLE0605


def __getattr__(name: str):
    for home, names in HOMES.items():
        if name in names:
            globals()[name] = getattr(import_module(f"cfgdistill.{home}"), name)
            return globals()[name]
    raise AttributeError(f"module 'cfgdistill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
