"""A finished student as a folder that stock diffusers loads, without this package.

A w-conditioned U-Net is what diffusers' pipelines call a guidance-distilled one: they feed
guidance_scale - 1 = w to `timestep_cond` and evaluate it once per step.
"""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from cfgdistill.core.denoiser import Denoiser, check_weights, ranges
from cfgdistill.core.guidance import embed_w
from cfgdistill.core.schedules import Schedule
from cfgdistill.data.autoencoder import VAEEncoder
from cfgdistill.data.hub import name_and_revision
from cfgdistill.data.text import TextEncoder
from cfgdistill.teachers.dit import DiT, UNet2D
from cfgdistill.teachers.files import shipped_name
from cfgdistill.teachers.flow import Flow
from cfgdistill.teachers.unet import TIMESTEPS, ClassUNet, TextUNet

MARK = "Made with cfgdistill"
MADE_WITH = f'{MARK} after "On Distillation of Guided Diffusion Models" (Meng et al., CVPR 2023).'


def stock_scheduler(schedule: Schedule, entries: int = TIMESTEPS):
    """diffusers' DDIMScheduler on exactly our schedule and grid, t = i/N as (k + 1) / entries."""
    from diffusers import DDIMScheduler

    t = torch.arange(entries + 1, dtype=torch.float64) / entries
    kept = schedule.alpha_sigma(t)[0].square()
    return DDIMScheduler(
        entries,
        trained_betas=(1 - kept[1:] / kept[:-1]).tolist(),
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
        steps_offset=1,
    )


def check_student(student: Denoiser) -> None:
    """ValueError for what is no finished student of guidance and of DDIM."""
    if student.w_range is None or student.sampler not in (None, "ddim"):
        raise ValueError(
            "Only a network with an input for w that samples by DDIM can be exported: the student "
            "of stage one, or one of stage two distilled with sampler='ddim'."
        )
    if student.takes_negative:
        raise ValueError(
            "This student takes a negative condition as an input, which no format here has a place "
            "for: sample it with cfgdistill, or export the student without one."
        )


def check_exported(student: Denoiser) -> None:
    """ValueError for what stock pipelines could not sample from."""
    check_student(student)
    if len(ranges(student.w_range)) > 1:
        raise ValueError(
            f"This student takes {len(ranges(student.w_range))} strengths, and stock pipelines ask "
            "for one, guidance_scale: distil one with a single w_range to export it."
        )
    if student.prediction_type != "v":
        raise ValueError(
            f"This student predicts {student.prediction_type}, and the stock scheduler is set for "
            "v: export a student with prediction_type='v'."
        )
    if isinstance(student.net, TextUNet) and student.schedule.alpha_sigma(torch.ones(1))[0] > 1e-3:
        raise ValueError(
            "This student's schedule does not end in noise, and what is exported says that it "
            "does: give the student one that ends there, such as v_schedule."
        )
    if isinstance(student.net, TextUNet) and student.net.timesteps % (student.steps or 1):
        raise ValueError(
            f"The stock scheduler counts in {student.net.timesteps} whole steps, as this network "
            f"does, and the times of a student of {student.steps} steps lie between them: export "
            "a student of fewer, or distil with entries=1024."
        )


def export(
    student: Denoiser,
    folder: str | Path,
    *,
    vae: VAEEncoder | None = None,
    text: TextEncoder | None = None,
    class_names: tuple[str, ...] = (),
    w: float | None = None,
    half: bool = False,
    about: dict | None = None,
) -> Path:
    """Write `student` as a stock diffusers pipeline, with a model card; the folder's path.

    A text student needs its autoencoder and its text encoder, and becomes a
    StableDiffusionPipeline. A class-conditional student becomes a pipeline of its own, whose code
    lies in the folder, with `vae` or the autoencoder that it knows itself, if its samples are
    latents. `about` (JSON) goes into the model card: data, cost, results.
    With `w`, a text student has that one guidance weight for good, and no input for it: for tools
    that know no such input. They call it with guidance_scale=1.
    With `half`, all weights are written in half precision, at half the size.

    The folder is new, empty or an earlier export, which is replaced when all is written: OSError
    where anything else lies in it, or where there is no room.
    """
    check_exported(student)
    if w is not None:
        check_weights(w, student.w_range, 1)
        if not isinstance(student.net, TextUNet):
            raise ValueError(
                "The pipeline of a class-conditional student takes w itself: leave w out."
            )
    if half and not isinstance(student.net, TextUNet):
        raise ValueError("Only text-to-image pipelines are written in half: leave half out.")
    if isinstance(student.net, TextUNet):
        pipeline = text_pipeline(student, vae, text, w)
    elif isinstance(student.net, ClassUNet | DiT | UNet2D):
        pipeline = _class_pipeline(student, vae, class_names)
    elif isinstance(student.net, Flow):
        raise ValueError(
            "The network of a flow-matching student is stock diffusers' own: save it alone, with "
            "student.net.velocity.transformer.save_pretrained(folder), and sample it with "
            f"FlowMatchEulerDiscreteScheduler(shift={student.schedule.shift:g})."
        )
    else:
        raise ValueError("Only image models can be exported, not those of points.")
    card = model_card(student, about or {}, class_names, w, half=half)
    if half:
        pipeline = copy.deepcopy(pipeline).to(torch.float16)

    def write(made: Path) -> None:
        pipeline.save_pretrained(made)
        if hasattr(pipeline, "tokenizer"):
            _as_others_know_it(made, pipeline.tokenizer)
        (made / "README.md").write_text(card, encoding="utf-8")

    return put(write, folder, marked="README.md")


def put(write: Callable[[Path], object], folder: str | Path, *, marked: str) -> Path:
    """What `write(made)` leaves in a folder, put into `folder`; an earlier export is replaced.

    `marked` is the file of it that says `MARK`. OSError as for `export`.
    """
    from safetensors import SafetensorError

    folder = Path(folder)
    try:
        _put(write, folder.absolute(), marked)
    except FileExistsError:
        raise
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{folder} could not be written ({error}); what was there before is untouched. Free "
            "some space, or choose another folder."
        ) from error
    return folder


def _put(write: Callable[[Path], object], folder: Path, marked: str) -> None:
    """Everything beside, then in its place: a reader never sees half an export."""
    there = folder.exists()
    if not there:
        folder.parent.mkdir(parents=True, exist_ok=True)
    before = {p.relative_to(folder) for p in folder.rglob("*") if not p.is_dir()}
    mark = folder / marked
    ours = mark.exists() and MARK in mark.read_text(encoding="utf-8", errors="replace")
    with TemporaryDirectory(dir=folder if there else folder.parent, suffix=".tmp") as beside:
        made = Path(beside) / "made"
        made.mkdir()
        write(made)
        files = {p.relative_to(made): p for p in made.rglob("*") if p.is_file()}
        others = before - files.keys() if ours else before
        if others:
            raise FileExistsError(
                f"{folder} is neither empty nor an earlier export: it holds {min(others)}. "
                "Choose another folder."
            )
        for file in files.values():  # safetensors makes files that only their owner may read
            file.chmod((made / marked).stat().st_mode)
        if not there:
            made.rename(folder)
            return
        for name, file in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            os.replace(file, folder / name)


def _as_others_know_it(folder: Path, tokenizer) -> None:
    """The text encoder's keys and the vocabulary's files as in every public Stable Diffusion.

    transformers 5.6 and later write neither, and read both.
    """
    from safetensors.torch import load_file, save_file

    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    if not any(key.startswith("text_model.") for key in tensors):
        save_file({f"text_model.{k}": v for k, v in tensors.items()}, file, {"format": "pt"})
    tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))  # vocab.json, merges.txt


def text_pipeline(student, vae, text, w: float | None = None):
    """A text student as a StableDiffusionPipeline; with w, at that one for good."""
    from diffusers import StableDiffusionPipeline

    if vae is None or text is None:
        raise ValueError(
            "A text-to-image student needs its autoencoder and text encoder: pass vae and text."
        )
    unet = student.net.stock()
    return StableDiffusionPipeline(
        vae=vae.folded(),
        text_encoder=text.model,
        tokenizer=text.tokenizer,
        unet=unet if w is None else fold_w(unet, w),
        scheduler=stock_scheduler(student.schedule, student.net.timesteps),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
def fold_w(unet, w: float):
    """A copy of a diffusers U-Net that takes no `timestep_cond`, and says what `unet` says at w.

    The projection of w is added to the features of the time, in front of a linear layer: at one w
    it is a part of that layer's bias.
    """
    unet = copy.deepcopy(unet)
    embedding = unet.time_embedding
    embedding.linear_1.bias += added_by_w(unet, w)
    embedding.cond_proj = None
    unet.register_to_config(time_cond_proj_dim=None)
    return unet


def added_by_w(unet, w: float) -> Tensor:
    """What the projection of w is behind the linear layer that follows, in float32."""
    embedding = unet.time_embedding
    features = embed_w(torch.tensor([float(w)]), embedding.cond_proj.in_features)[0]
    projected = embedding.cond_proj(features.to(embedding.cond_proj.weight))
    return embedding.linear_1.weight.float() @ projected.float()


def _class_pipeline(student, vae, class_names):
    from cfgdistill.export.class_pipeline import ClassConditionalPipeline

    net, vae = student.net, vae or getattr(student.meaning, "vae", None)
    return ClassConditionalPipeline(
        stock_scheduler(student.schedule),
        **{"transformer" if isinstance(net, DiT) else "unet": net.stock()},
        vae=None if vae is None else vae.folded(),
        steps=student.steps,
        w_range=student.w_range,
        class_names=class_names,
        patch=getattr(net, "patch", 1),
        timesteps=net.timesteps,
    )


def _base(student: Denoiser) -> str | None:
    """The pipeline that a student was made from, also where it has all weights of its own."""
    return getattr(student.net, "base", None) or getattr(student.meaning, "base", None)


def model_card(
    student: Denoiser,
    about: dict,
    class_names: tuple[str, ...] = (),
    w: float | None = None,
    *,
    as_lora: bool = False,
    half: bool = False,
    single_file: str | None = None,
) -> str:
    """What a user must know: how it is called, and what this pipeline does not do.

    single_file: the name of the file, where it is one for tools with the original's names
    """
    low, high = student.w_range
    scale = 1 + min(max(1.0, low), high) if w is None else 1
    steps = f"exactly {student.steps}" if student.steps else "any number of"
    text, base = isinstance(student.net, TextUNet), _base(student)
    # On the hub: neither a folder nor a model of this package says anything there.
    entries = student.net.timesteps if text else TIMESTEPS
    named = base is not None and not Path(base).exists() and shipped_name(base) is None
    call = f"num_inference_steps={student.steps or 16}, guidance_scale={scale:g}"
    licence = "unknown" if base is None else "other\nlicense_name: same-as-base-model"
    lines = [
        "---",
        "library_name: diffusers",
        f"license: {licence}",
        *([f"base_model: {json.dumps(name_and_revision(base)[0])}"] if named else []),
        f"tags: [{'text-to-image' if text else 'unconditional-image-generation'}, distillation]",
        "---",
        "# A distilled, guided diffusion model",
        "",
    ]
    code = [
        "```python",
        *(["import torch"] if half else []),
        f"from diffusers import {'DDIMScheduler, ' if as_lora else ''}DiffusionPipeline",
        "",
        'folder = "."  # where this file lies',
    ]
    lines += [] if single_file else code
    if single_file:
        lines += [
            f"`{single_file}` goes where your tool keeps checkpoints of Stable Diffusion. The "
            "file cannot say how it is to be sampled, so you do:",
            "",
            f"- **Steps** {student.steps or 8}, **cfg 1**, scheduler `simple`, sampler `ddim` or "
            "`euler`, and an empty negative prompt.",
            "- **v-prediction and zero terminal SNR**: in ComfyUI the node ModelSamplingDiscrete "
            "behind the loader, with `v_prediction` and `zsnr`.",
        ]
    elif as_lora:
        place = base if named else "the pipeline that the student was made from"
        lines += [
            f"pipe = DiffusionPipeline.from_pretrained({json.dumps(place)})",
            "pipe.load_lora_weights(folder)",
            'pipe.scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")',
            f'image = pipe("red heart", {call}).images[0]',
            "```",
            "",
            "A LoRA file for this base alone. It goes with the scheduler in this folder, which "
            f"counts {entries} steps and ends in noise, and not with the base's own.",
        ]
    elif text:
        dtype = ", torch_dtype=torch.float16" if half else ""
        lines += [
            f"pipe = DiffusionPipeline.from_pretrained(folder{dtype})",
            f'image = pipe("red heart", {call}).images[0]',
            "```",
            "",
            "The pipeline's own defaults, 50 steps and `guidance_scale` 7.5, are not this model's.",
        ]
    else:
        label = repr(class_names[0]) if class_names else "0"
        lines += [
            "pipe = DiffusionPipeline.from_pretrained(",
            "    folder, custom_pipeline=folder, trust_remote_code=True",
            ")",
            f"image = pipe([{label}], {call}).images[0]",
            "```",
            "",
            "`class_pipeline.py` in this folder is the code that is trusted there. Steps and "
            "guidance may be left out.",
        ]
    lines += [
        "",
        MADE_WITH,
        "",
        f"- **Steps**: {steps} (`num_inference_steps`), one network evaluation each.",
        f"- **Guidance**: w in [{low:g}, {high:g}], that is `guidance_scale` = 1 + w in "
        f"[{1 + low:g}, {1 + high:g}]; the weight is an input of the network."
        if w is None
        else f"- **Guidance**: w = {w:g} for good. It is part of the weights, so call with "
        "`guidance_scale=1`: more would guide a second time.",
    ]
    if text:
        lines += [
            "- **Negative prompts have no effect**: they need a second evaluation at every step, "
            "which this pipeline does not make. cfgdistill's own `sample(negative=...)` does.",
            "- **Safety checker**: the base's own, if the pipeline has one."
            if as_lora
            else "- **No safety checker**: this pipeline has none, whatever its base came with. "
            "Look at what it draws before you show it to others.",
        ]
    else:
        names = f": {', '.join(class_names)}" if class_names else ""
        lines += [f"- **Classes**: 0 to {student.num_classes - 1}{names}."]
    lines += [
        f"- **Scheduler**: DDIM, trailing spacing on {entries} training steps, v-prediction, "
        "zero terminal SNR. Keep the one that comes with it.",
        "- **Licence**: "
        + (
            "the weights were made from those of the base model, so its licence holds for them."
            if base
            else "whoever trained the model says which; the data's own licence is to be heeded."
        ),
        "",
        "## How it was made",
        "",
    ]
    lines += [f"- {key}: {json.dumps(value)}" for key, value in about.items()]
    return "\n".join(lines) + "\n"
