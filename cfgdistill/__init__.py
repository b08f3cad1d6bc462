"""On Distillation of Guided Diffusion Models (Meng et al., CVPR 2023), implemented and taught.

Every public name comes from here, and from its module when it is first asked for: so
`import cfgdistill` brings in nothing heavy but torch, and the command line answers at once.
"""

from importlib import import_module

__version__ = "0.1.0"
HOMES = {
    "core": ("rules",),
    "core.denoiser": ("Denoiser",),
    "core.editing": ("image_to_image", "inpaint", "strengths"),
    "core.guidance": (
        *("GuidedDenoiser", "drop_condition", "embed_w", "sample_w", "scale_from_w"),
        *("w_from_scale",),
    ),
    "core.losses": (
        *("against_others", "balance", "diffusion_loss", "snr", "snr_plus_one", "teacher_loss"),
        "truncated_snr",
    ),
    "core.parameterization": ("Prediction", "convert"),
    "core.rules": ("Point", "Rule", "guide"),
    "core.samplers": (
        *("ancestral", "ddim", "ddim_encode", "ddim_step", "last", "renoise", "stochastic"),
        "translate",
    ),
    "core.schedules": (
        *("CosineSchedule", "DiscreteSchedule", "FlowSchedule", "Schedule", "expand"),
        "per_example",
    ),
    "core.stage_one": ("guidance_matching_loss", "stage_one_loss"),
    "core.stage_two": (
        *("halvings", "implied_v", "progressive_loss", "progressive_target", "stage_two_loss"),
    ),
    "course.pretrained": ("use_pretrained",),
    "course.recipes": ("Recipe", "get_recipe", "recipe_like"),
    "data.base": ("Data",),
    "data.captioned": ("load_captioned",),
    "data.folder": ("from_folder", "from_hub"),
    "data.autoencoder": ("Autoencoder", "VAEEncoder", "autoencoder_loss"),
    "data.latents": ("Latents",),
    "data.named": ("load_data",),
    "data.text": ("TextEncoder",),
    "data.toy": ("GaussianMixture", "pinwheel"),
    "judge.delivered": ("delivered_by_samples", "delivered_w"),
    "judge.imagenet": ("ImageNetClassifier",),
    "judge.metrics": (
        *("Judge", "PrecisionRecall", "clip_score", "evaluate", "generate", "published_fid"),
        *("samples", "tabulate"),
    ),
    "teachers.drawing": ("sample",),
    "teachers.experts": ("Experts",),
    "teachers.files": ("load", "network"),
    "teachers.dit": ("DiT", "UNet2D", "class_denoiser"),
    "teachers.flow": ("Flow", "Flux", "flow_denoiser", "flow_matching"),
    "teachers.guiders": ("guider_rule",),
    "teachers.mlp": ("MLP",),
    "teachers.rescheduled": ("rescheduled",),
    "teachers.stable_diffusion": ("base_denoiser", "open_pipeline", "v_schedule"),
    "teachers.unet": ("build_text_unet", "build_unet"),
    "teachers.w_input": ("add_negative", "add_w_conditioning"),
    "training.loop": ("train",),
    "training.optim": ("Optim",),
    "training.progressive": ("distill_progressively",),
    "training.sharding": ("share_out",),
    "training.state": ("Run",),
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
