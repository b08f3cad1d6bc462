"""A student of Stable Diffusion as one file with the original's names, as ComfyUI reads it."""

import re
from pathlib import Path

import torch
from torch import Tensor

from cfgdistill.core.denoiser import Denoiser, check_weights
from cfgdistill.data.autoencoder import VAEEncoder
from cfgdistill.data.text import TextEncoder
from cfgdistill.export.stock import check_exported, model_card, put, text_pipeline
from cfgdistill.teachers.unet import TextUNet

FILE = "student.safetensors"
ENTRIES = 1000  # the times that the original, and tools that come from it, count


def export_single_file(
    student: Denoiser,
    folder: str | Path,
    *,
    vae: VAEEncoder | None,
    text: TextEncoder | None,
    w: float,
    half: bool = True,
    about: dict | None = None,
) -> Path:
    """Write a student at one guidance weight as `student.safetensors`, with a model card; the
    folder's path.

    The file holds U-Net, autoencoder and text encoder under the names of Stable Diffusion 1.x, or
    2.x. It does not say how it is to be sampled: v-prediction, zero terminal SNR, cfg 1, as the
    card says. ValueError for a student that such a tool would ask at other times than it knows, or
    whose parts are not those of 1.x or of 2.x; OSError as for `export`.
    """
    from safetensors.torch import save_file

    check_exported(student)
    check_weights(w, student.w_range, 1)
    if not isinstance(student.net, TextUNet) or student.net.timesteps != ENTRIES:
        raise ValueError(
            f"A single file is for tools that count {ENTRIES} times, and this student does not: "
            f"distil Stable Diffusion with entries={ENTRIES} and start=8, or export it as a "
            "pipeline."
        )
    pipe = text_pipeline(student, vae, text, w)
    if not _is_original(pipe):
        raise ValueError(
            "Only students of Stable Diffusion 1.x and 2.x have a single file here, and the parts "
            "of this one are others: export it as a pipeline."
        )
    tensors = original_names(pipe)
    if half:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    card = model_card(student, about or {}, w=w, single_file=FILE)

    def write(made: Path) -> None:
        save_file({k: v.contiguous() for k, v in tensors.items()}, made / FILE, {"format": "pt"})
        (made / "README.md").write_text(card, encoding="utf-8")

    return put(write, folder, marked="README.md")


OPEN_CLIP = "gelu"
# 1.x, then 2.x: what the text encoder computes with, whether the U-Net's projections are linear.
ORIGINALS = {("quick_gelu", False), (OPEN_CLIP, True)}


def _is_original(pipe) -> bool:
    unet = pipe.unet.config
    plain = unet.addition_embed_type is None and unet.resnet_time_scale_shift == "default"
    return plain and (pipe.text_encoder.config.hidden_act, unet.use_linear_projection) in ORIGINALS


def original_names(pipe) -> dict[str, Tensor]:
    """All weights of a pipeline by the names that they have in CompVis's own checkpoints."""
    unet, vae = pipe.unet.state_dict(), pipe.vae.state_dict()
    layers, depth = pipe.unet.config.layers_per_block, len(pipe.vae.config.block_out_channels)
    text = pipe.text_encoder.state_dict()  # transformers 5 has dropped a part of the names
    text = {key.removeprefix("text_model."): value for key, value in text.items()}
    attends = [hasattr(block, "attentions") for block in pipe.unet.up_blocks]
    named = {f"model.diffusion_model.{_in_unet(k, layers, attends)}": v for k, v in unet.items()}
    for key, value in vae.items():
        name = _in_vae(key, depth)
        # Attention over places was made of 1 x 1 convolutions.
        square = ".attn_1." in name and name.endswith("weight") and value.ndim == 2
        named[f"first_stage_model.{name}"] = value[:, :, None, None] if square else value
    if pipe.text_encoder.config.hidden_act == OPEN_CLIP:
        return named | {f"cond_stage_model.model.{k}": v for k, v in _in_open_clip(text).items()}
    return named | {f"cond_stage_model.transformer.text_model.{k}": v for k, v in text.items()}


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def _in_unet(key: str, layers: int, attends: list[bool]) -> str:
    """Blocks are counted through there: halving is one of them, doubling a part of the last.

    attends: which of the blocks on the way up have attention
    """
    for ours, theirs in ENDS.items():
        if key.startswith(f"{ours}."):
            return theirs + key.removeprefix(ours)
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", key):
        kind, j, rest = found.groups()
        place = 1 if kind == "attentions" else 2 * int(j)
        return f"middle_block.{place}.{_in_block(kind, rest)}"
    side, i, kind, j, rest = re.match(
        r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", key
    ).groups()
    i, j = int(i), int(j)
    if kind == "downsamplers":
        return f"input_blocks.{(layers + 1) * (i + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{(layers + 1) * i + layers}.{1 + attends[i]}.{rest}"
    block, first = ("input_blocks", 1) if side == "down" else ("output_blocks", 0)
    place = f"{block}.{(layers + 1) * i + j + first}.{int(kind == 'attentions')}"
    return f"{place}.{_in_block(kind, rest)}"


def _in_block(kind: str, rest: str) -> str:
    if kind == "attentions":
        return rest
    part, _, last = rest.rpartition(".")
    return f"{RESNET[part]}.{last}"


IN_OPEN_CLIP = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "encoder.layers": "transformer.resblocks",
    "final_layer_norm": "ln_final",
    "layer_norm": "ln_",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
}


def _in_open_clip(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values are one layer there."""
    named: dict[str, Tensor] = {}
    for own, value in text.items():
        key = own
        for ours, theirs in IN_OPEN_CLIP.items():
            key = key.replace(ours, theirs)
        if "q_proj" in key:
            parts = [text[own.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            named[key.replace("q_proj.", "in_proj_")] = torch.cat(parts)
        elif "k_proj" not in key and "v_proj" not in key:
            named[key] = value
    return named


def _in_vae(key: str, depth: int) -> str:
    """Blocks of the decoder are counted from the pixels there."""
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("mid_block.attentions.0", "mid.attn_1")
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(
        r"up_blocks\.(\d)\.(resnets|upsamplers\.0)",
        lambda m: f"up.{depth - 1 - int(m[1])}.{'block' if m[2] == 'resnets' else 'upsample'}",
        key,
    )
    for ours, theirs in {
        "conv_norm_out": "norm_out",
        "conv_shortcut": "nin_shortcut",
        "attn_1.group_norm": "attn_1.norm",
        "attn_1.to_q": "attn_1.q",
        "attn_1.to_k": "attn_1.k",
        "attn_1.to_v": "attn_1.v",
        "attn_1.to_out.0": "attn_1.proj_out",
    }.items():
        key = key.replace(ours, theirs)
    return key
