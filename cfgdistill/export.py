"""A finished student as a folder that stock diffusers loads, without this package.

A w-conditioned U-Net is what diffusers' pipelines call a guidance-distilled one: they feed
guidance_scale - 1 = w to `timestep_cond` and evaluate it once per step.
"""

import json
from pathlib import Path

import torch

from cfgdistill.denoiser import Denoiser
from cfgdistill.encoders import TextEncoder, VAEEncoder
from cfgdistill.schedules import Schedule
from cfgdistill.unets import TIMESTEPS, ClassUNet, TextUNet

CLASS_PIPELINE = Path(__file__).with_name("class_pipeline.py")


def stock_scheduler(schedule: Schedule):
    """diffusers' DDIMScheduler on exactly our schedule and grid, t = i/N as (k + 1) / 1024."""
    from diffusers import DDIMScheduler

    t = torch.arange(TIMESTEPS + 1, dtype=torch.float64) / TIMESTEPS
    kept = schedule.alpha_sigma(t)[0].square()
    return DDIMScheduler(
        TIMESTEPS,
        trained_betas=(1 - kept[1:] / kept[:-1]).tolist(),
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
        steps_offset=1,
    )


def export(
    student: Denoiser,
    folder: str | Path,
    *,
    vae: VAEEncoder | None = None,
    text: TextEncoder | None = None,
    class_names: tuple[str, ...] = (),
    about: dict | None = None,
) -> Path:
    """Write `student` as a stock diffusers pipeline, with a model card; the folder's path.

    A text student needs its autoencoder and its text encoder, and becomes a
    StableDiffusionPipeline. A class-conditional student of pixels becomes a pipeline of its own,
    whose code lies in the folder. `about` (JSON) goes into the model card: data, cost, results.
    """
    if student.w_range is None or student.sampler not in (None, "ddim"):
        raise ValueError(
            "Only a network with an input for w that samples by DDIM can be exported: the student "
            "of stage one, or one of stage two distilled with sampler='ddim'."
        )
    if student.prediction_type != "v":
        raise ValueError(
            f"This student predicts {student.prediction_type}, and the stock scheduler is set for "
            "v: export a student with prediction_type='v'."
        )
    if getattr(student.net, "timesteps", TIMESTEPS) != TIMESTEPS:
        raise ValueError(
            f"This network counts {student.net.timesteps} time steps and the stock scheduler "
            f"{TIMESTEPS}: distil a teacher that does too, such as stable_diffusion.v_teacher."
        )
    folder = Path(folder)
    scheduler = stock_scheduler(student.schedule)
    if isinstance(student.net, TextUNet):
        _text_pipeline(student, scheduler, vae, text).save_pretrained(folder)
    elif isinstance(student.net, ClassUNet):
        _save_class_pipeline(student, scheduler, class_names, folder)
    else:
        raise ValueError("Only image models can be exported, not those of points.")
    (folder / "README.md").write_text(model_card(student, about or {}))
    return folder


def _text_pipeline(student, scheduler, vae, text):
    from diffusers import StableDiffusionPipeline

    if vae is None or text is None:
        raise ValueError(
            "A text-to-image student needs its autoencoder and text encoder: pass vae and text."
        )
    return StableDiffusionPipeline(
        vae=vae.folded(),
        text_encoder=text.model,
        tokenizer=text.tokenizer,
        unet=student.net.stock(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _save_class_pipeline(student, scheduler, class_names, folder):
    student.net.unet.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "class_pipeline.py").write_text(CLASS_PIPELINE.read_text())
    index = {
        "_class_name": ["class_pipeline", "ClassConditionalPipeline"],
        "_diffusers_version": "0.39.0",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "class_names": list(class_names),
        "patch": student.net.patch,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))


def model_card(student: Denoiser, about: dict) -> str:
    """What a user must know: steps, w range, and what this pipeline does not do."""
    low, high = student.w_range
    steps = f"exactly {student.steps}" if student.steps else "any number of"
    text = isinstance(student.net, TextUNet)
    lines = [
        "---",
        "library_name: diffusers",
        f"tags: [{'text-to-image' if text else 'unconditional-image-generation'}, distillation]",
        "---",
        "# A distilled, guided diffusion model",
        "",
        'Made with cfgdistill after "On Distillation of Guided Diffusion Models" (Meng et al., CVPR 2023).',  # noqa: E501
        "",
        f"- **Steps**: {steps} (`num_inference_steps`), one network evaluation each.",
        f"- **Guidance**: w in [{low:g}, {high:g}], that is `guidance_scale` = 1 + w in "
        f"[{1 + low:g}, {1 + high:g}]; the weight is an input of the network.",
        "- **Negative prompts have no effect**: there is no second evaluation to put them in.",
        f"- **Scheduler**: DDIM, trailing spacing on {TIMESTEPS} training steps, v-prediction, "
        "zero terminal SNR. Keep the one that comes with it.",
        "",
        "## How it was made",
        "",
    ]
    lines += [f"- {key}: {json.dumps(value)}" for key, value in about.items()]
    return "\n".join(lines) + "\n"
