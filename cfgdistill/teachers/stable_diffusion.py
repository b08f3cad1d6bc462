"""Stable Diffusion 1.x and 2.x as teachers: opened by name, seen in v, with cached data.

Nothing is trained here. `stages` does that, with the same functions as for every other teacher:
get_recipe("sd", "colab", base="stable-diffusion-v1-5/stable-diffusion-v1-5", source="owner/name").
"""

import copy
import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from cfgdistill.core.denoiser import Denoiser
from cfgdistill.core.guidance import GuidedDenoiser
from cfgdistill.core.names import one_of
from cfgdistill.core.samplers import ddim, last
from cfgdistill.core.schedules import DiscreteSchedule
from cfgdistill.data.autoencoder import VAEEncoder
from cfgdistill.data.captioned import load_captioned
from cfgdistill.data.hub import name_and_revision, nothing_fetched, to_fetch
from cfgdistill.data.latents import Latents, cached, cached_latents, latents_key
from cfgdistill.data.meaning import Prompts
from cfgdistill.data.prompts import LIGHT, PLACES, STYLES, SUBJECTS
from cfgdistill.data.tables import last_line
from cfgdistill.data.text import TextEncoder, build_text_encoder
from cfgdistill.teachers.files import load, shipped_name
from cfgdistill.teachers.rescheduled import rescheduled
from cfgdistill.teachers.unet import TIMESTEPS, TextUNet, add_lora, from_hub
from cfgdistill.training.checkpoints import fingerprint
from cfgdistill.training.environment import default_device, frozen_dtype
from cfgdistill.training.randomness import random_at, seeded

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}  # diffusers' word: ours
OWN_W = 6.5  # at which a teacher paints its own data; guidance_scale 7.5, the pipelines' default
PART = 16  # images that are painted at once, and kept at once
MOST = 100.0  # root mean square of painted latents, above which something is wrong


def open_pipeline(base: str):
    """The Stable Diffusion 1.x or 2.x pipeline of this name on the hub (or name@revision) or in
    this folder, float32. Or a small one that is shipped: "emoji/eps-base".

    OSError where it cannot be had, ValueError where it is another kind of pipeline; one sentence
    each.
    """
    from diffusers import StableDiffusionPipeline

    if shipped_name(base):
        return _posed(base)
    try:
        name, revision = name_and_revision(base)
        kind = StableDiffusionPipeline.load_config(name, revision=revision)["_class_name"]
        if kind == "StableDiffusionPipeline":
            checker = {"safety_checker": None, "requires_safety_checker": False}
            pipe = from_hub(StableDiffusionPipeline, base, **checker)
    except Exception as error:  # of the hub, http and safetensors, each with kinds of its own
        raise OSError(
            f"The pipeline {base!r} could not be had ({last_line(error)}): {to_fetch(base)}, "
            "check the name and whether its licence was accepted, or name a folder that "
            "save_pretrained has written."
        ) from error
    if kind != "StableDiffusionPipeline":
        raise ValueError(
            f"{base!r} is a {kind}, not a text-to-image pipeline of Stable Diffusion 1.x or 2.x: "
            "SDXL has two text encoders, and inpainting models a U-Net with 9 inputs. Name one "
            "such as 'stable-diffusion-v1-5/stable-diffusion-v1-5'."
        )
    config, channels = pipe.unet.config, pipe.vae.config.latent_channels
    if (config.in_channels, config.out_channels) != (channels, channels):
        raise ValueError(
            f"The U-Net of {base!r} takes {config.in_channels} channels and gives "
            f"{config.out_channels}, its latents have {channels}: name a text-to-image model, not "
            "one for inpainting or editing."
        )
    if config.time_cond_proj_dim is not None:
        raise ValueError(
            f"The U-Net of {base!r} has an input for w, so it is a student already: name the "
            "teacher it was made from."
        )
    refuse_scheduler(pipe.scheduler, repr(base))
    return pipe


def _posed(name: str):
    """A shipped base as the pipeline that it poses as, with the emoji models' other parts."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    base = load(name, "cpu")
    made_of = getattr(base.schedule, "made_of", None)
    if made_of is None or not isinstance(base.net, TextUNet) or base.w_range is not None:
        raise ValueError(
            f"The shipped model {name!r} is no pipeline: name 'emoji/eps-base', a pipeline on the "
            "hub or a folder with one."
        )
    said = {ours: theirs for theirs, ours in PREDICTIONS.items()}[base.prediction_type]
    known = {key: value for key, value in made_of.items() if value is not None}
    return StableDiffusionPipeline(
        vae=base.meaning.vae.folded(),
        text_encoder=base.net.text,
        tokenizer=base.meaning.text.tokenizer,
        unet=base.net.unet,
        scheduler=DDIMScheduler(**known, prediction_type=said, clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def refuse_scheduler(scheduler, owner: str) -> None:
    """ValueError where no teacher can be made of what a pipeline with this scheduler says."""
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            f"The scheduler of {owner}, {type(scheduler).__name__}, has no alphas_cumprod: flow "
            "matching is for flow_denoiser. Name a pipeline such as Stable Diffusion 1.x or 2.x."
        )
    said = one_of("prediction type", scheduler.config.prediction_type, PREDICTIONS)
    if said == "epsilon" and scheduler.alphas_cumprod[-1] < 1e-5:
        raise ValueError(
            f"{owner} says eps on a schedule that ends in pure noise, of which no image can be "
            "had: correct prediction_type or rescale_betas_zero_snr in its scheduler's "
            "configuration."
        )


def base_denoiser(pipe) -> Denoiser:
    """The pipeline's U-Net as it is, on its own schedule: guided, it samples as the pipeline does.

    `GuidedDenoiser(base_denoiser(pipe), empty)` at w equals stock DDIM with trailing steps and
    guidance_scale 1 + w. Conditions are embeddings [b, n, d].
    """
    schedule = own_schedule(pipe)
    net = TextUNet(pipe.unet, timesteps=len(schedule.alphas_cumprod))
    return Denoiser(net, schedule, predicts(pipe)).eval()


def predicts(pipe) -> str:
    """What the pipeline's U-Net says: "eps", "v" or "x"."""
    return PREDICTIONS[pipe.scheduler.config.prediction_type]


# What a scheduler of diffusers computes alphas_cumprod from.
BETAS = "beta_start beta_end beta_schedule trained_betas num_train_timesteps rescale_betas_zero_snr"


def own_schedule(pipe) -> DiscreteSchedule:
    """The pipeline's schedule, known by the numbers in its configuration."""
    made_of = {key: pipe.scheduler.config.get(key) for key in BETAS.split()}
    return DiscreteSchedule(pipe.scheduler.alphas_cumprod, made_of)


def v_schedule(pipe, entries: int = TIMESTEPS) -> DiscreteSchedule:
    """The pipeline's schedule with zero terminal SNR, as a table of so many entries.

    1024 and not 1000, so that every grid time i/N is an entry, and stock diffusers, which only
    counts in entries, takes exactly our steps. Of 8, 4, 2 and 1 steps 1000 have all times as well,
    and tools such as ComfyUI know no other number.
    """
    return own_schedule(pipe).zero_terminal_snr().resampled(entries)


def base_and_start(recipe) -> tuple[Denoiser, Denoiser]:
    """What stage one starts with: its teacher, the base as it is, and its student before the first
    update, which has the same weights and is to say v.

    eps says nothing about x as t -> 1, and one-step students have nothing but t = 1. So the student
    lives on `v_schedule`, and sees the base there too. With recipe.lora both stand on one copy of
    the weights, in half precision on a GPU, and low-rank changes to it are trained.
    """
    if (recipe.prediction_type, recipe.pretrained) != ("v", True):
        raise ValueError(
            "Students of Stable Diffusion say v and start with its weights: leave prediction_type "
            "and pretrained as they are."
        )
    pipe = _open(recipe)
    if recipe.checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    if recipe.lora:
        half = frozen_dtype(recipe.precision)
        how = {"half": half, "seed": recipe.seed, "timesteps": recipe.entries}
        net = add_lora(pipe.unet, recipe.base, recipe.lora, **how)
    else:
        net = TextUNet(pipe.unet, timesteps=recipe.entries)
    own, said, schedule = own_schedule(pipe), predicts(pipe), v_schedule(pipe, recipe.entries)
    frozen = copy.deepcopy(net)
    frozen.timesteps = len(own.alphas_cumprod)
    if recipe.lora:
        frozen.unet.unload_lora()
    base = Denoiser(frozen.requires_grad_(False), own, said).eval()
    return rescheduled(base, schedule), Denoiser(net, schedule, "v")


def load_latents(recipe, folder: str | Path, split: str = "train") -> Latents:
    """Captioned images through the base's autoencoder and text encoder, computed once.

    Both are kept in `folder`: latents [n, c, h, h], and embeddings [n, l, d] in half precision for
    conditions. With recipe.data_free the latents are the base's own guided samples for the captions
    instead. The encoders leave the GPU again.
    """
    pipe = _open(recipe)
    images = load_captioned(recipe.source, split, size=recipe.size, images=recipe.images)
    if images.shape == (0,) and not recipe.data_free:
        raise ValueError(
            f"{recipe.source} has captions and no images: set data_free=20, say, and the base "
            "paints them in 20 steps each."
        )
    device = default_device()
    text = TextEncoder(pipe.tokenizer, pipe.text_encoder).eval().to(device)
    captions = [*images.class_names, ""]
    embeddings = cached_embeddings(text, captions, folder)
    conds, empty = embeddings[:-1], embeddings[-1]
    text.cpu()
    known = made_of_captions(text, captions)
    vae = VAEEncoder(pipe.vae)
    if recipe.data_free:
        teacher = GuidedDenoiser(base_denoiser(pipe).to(device), empty)
        how = {"steps": recipe.data_free, "w": OWN_W, "seed": recipe.seed}
        made_of = f"{fingerprint(teacher)} {json.dumps(how)}"
        with autocast(recipe.precision):
            latents = own_latents(teacher, conds, folder, made_of=known, **how)
    else:
        made_of = latents_key(vae, images)
        latents = cached_latents(vae.to(device), images, folder, batch=8)
        vae.cpu()
    return Latents(
        name=images.name,
        split=images.split,
        stored=latents,
        labels=conds,
        class_names=images.class_names,
        levels=None,
        made_of=" ".join([made_of, *known]),
        pictures=images,
        vae=vae,
        empty=empty,
        pipeline=Pipeline(recipe.base, recipe.precision),
    )


@torch.no_grad()
def cached_embeddings(text: TextEncoder, captions: list[str], folder: str | Path) -> Tensor:
    """Embeddings [n, l, d] of captions in float16, computed once for these tokens and weights."""
    tokens = text.tokens(captions)
    device = next(text.parameters()).device
    return cached(
        folder,
        "embeddings",
        _sha256(made_of_captions(text, captions)),
        lambda: torch.cat([text(part.to(device)).half().cpu() for part in tokens.split(64)]),
    )


def made_of_captions(text: TextEncoder, captions: Sequence[str]) -> list[str]:
    """What the embedding of each caption is made of: its last bits are another CPU's own."""
    encoder = fingerprint(text)
    return [f"{encoder} {row}" for row in text.tokens(captions).tolist()]


def _sha256(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def own_latents(
    teacher: GuidedDenoiser,
    conds: Tensor,
    folder: str | Path,
    *,
    made_of: Sequence[str],
    steps: int,
    w: float = OWN_W,
    seed: int = 0,
) -> Tensor:
    """The teacher's own samples for embeddings conds [n, l, d], by DDIM: [n, c, h, h].

    They are kept as they come, in parts, under everything that they depend on: for the embeddings
    and, last, the teacher's null, that is what `made_of` says. The noise of image i is a matter of
    the seed and of i alone.
    """
    net, model = teacher.denoiser.net, fingerprint(teacher)

    def paint(rows: Tensor) -> Tensor:
        noises = [
            torch.randn(net.shape, generator=random_at(seed, "own", i)) for i in rows.tolist()
        ]
        z, cond = torch.stack(noises).to(teacher.device), conds[rows].to(teacher.device)
        painted = last(ddim(teacher, z, steps, cond, w)).float().cpu()
        size = painted.square().mean().sqrt().item()
        if not size < MOST:  # so written, NaN is refused as well
            raise ValueError(
                f"The base paints latents of size {size:.3g}, where about 1 is right: check the "
                "prediction_type and the betas of its scheduler."
            )
        return painted

    parts = []
    for rows in torch.arange(len(conds)).split(PART):
        asked = _sha256([made_of[i] for i in [*rows.tolist(), -1]])
        key = f"{asked[:16]}-{model}-steps={steps}-w={w:g}-seed={seed}-from={rows[0]}"
        parts.append(cached(folder, "own", key, lambda rows=rows: paint(rows)))
    return torch.cat(parts)


def _open(recipe):
    """The pipeline of a recipe; ValueError where it names none, or images of another size."""
    if recipe.base is None:
        raise ValueError(
            "A recipe of the data set 'sd' needs a pipeline: pass base=, a name such as "
            "'stable-diffusion-v1-5/stable-diffusion-v1-5' or a folder."
        )
    pipe = open_pipeline(recipe.base)
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    if recipe.size != size:
        raise ValueError(
            f"{recipe.base!r} makes images of {size} x {size}, and the recipe says {recipe.size}: "
            f"pass size={size}."
        )
    return pipe


class Pipeline(Prompts):
    """The meaning of a model that was made from a Stable Diffusion pipeline, opened when needed."""

    at_once, embedded = PART, True

    def __init__(self, base: str, precision: str):
        self.base, self.precision = base, precision

    @cached_property
    def pipe(self):
        with nothing_fetched():
            return open_pipeline(self.base)

    @cached_property
    def text(self) -> TextEncoder:
        return TextEncoder(self.pipe.tokenizer, self.pipe.text_encoder).eval()

    @cached_property
    def vae(self) -> VAEEncoder:
        return VAEEncoder(self.pipe.vae)

    def asked(self):
        return autocast(self.precision)

    def keep(self, folder: Path) -> dict:
        return {"pipeline": self.base}


def autocast(precision: str):
    """A context in which networks are asked in half precision, where the device gains from it."""
    half = frozen_dtype(precision)
    return nullcontext() if half is None else torch.autocast(default_device().type, half)


def tiny_pipeline(folder: str | Path, seed: int = 0, prediction_type: str = "epsilon") -> str:
    """A pipeline with the parts of Stable Diffusion 1.5, a thousandth of its size, random weights.

    For dry runs: everything that is done to the real one can be tried on it in seconds, on a CPU
    and without a network. Its pictures, 16 x 16, are noise. The folder's name comes back.
    """
    from diffusers import (
        AutoencoderKL,
        PNDMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    words = [*SUBJECTS, *PLACES, *LIGHT, *STYLES]
    text = build_text_encoder(words, vocabulary=900, length=40, width=32, seed=seed)
    with seeded(seed):
        pipe = StableDiffusionPipeline(
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                block_out_channels=(16, 16),
                latent_channels=4,
                norm_num_groups=8,
            ),
            text_encoder=text.model,
            tokenizer=text.tokenizer,
            unet=UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(32, 64),
                layers_per_block=1,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                cross_attention_dim=32,
                norm_num_groups=8,
            ),
            scheduler=PNDMScheduler(  # as Stable Diffusion's scheduler/scheduler_config.json
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                prediction_type=prediction_type,
                skip_prk_steps=True,
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.save_pretrained(folder)
    return str(folder)
