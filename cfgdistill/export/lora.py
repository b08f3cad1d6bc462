"""A student of Stable Diffusion as a LoRA file, which stock diffusers loads onto the base."""

from pathlib import Path

import torch
from torch import Tensor

from cfgdistill.core.denoiser import Denoiser, check_weights
from cfgdistill.export.stock import added_by_w, check_exported, model_card, put, stock_scheduler
from cfgdistill.teachers.unet import LoraUNet


def export_lora(
    student: Denoiser, folder: str | Path, *, w: float, about: dict | None = None
) -> Path:
    """Write a student's low-rank changes at one guidance weight, the scheduler that they need and a
    model card; the folder's path.

    `pytorch_lora_weights.safetensors`, in half precision, is for `pipe.load_lora_weights(folder)`;
    the pipeline is then called with guidance_scale=1. ValueError for a student with weights of its
    own, OSError as for `export`.
    """
    check_exported(student)
    check_weights(w, student.w_range, 1)
    if not isinstance(student.net, LoraUNet):
        raise ValueError(
            "A LoRA file holds low-rank changes to a base, and this student has all weights of its "
            "own: export it as a pipeline, or distil it with a rank, such as lora=64."
        )
    tensors = {key: value.half() for key, value in _changes(student.net, w).items()}
    card = model_card(student, about or {}, w=w, as_lora=True)

    def write(made: Path) -> None:
        from diffusers import StableDiffusionPipeline

        StableDiffusionPipeline.save_lora_weights(made, unet_lora_layers=tensors)
        stock_scheduler(student.schedule, student.net.timesteps).save_pretrained(made / "scheduler")
        (made / "README.md").write_text(card, encoding="utf-8")

    return put(write, folder, marked="README.md")


@torch.no_grad()
def _changes(net: LoraUNet, w: float) -> dict[str, Tensor]:
    """All changes to the base, by the names that diffusers has for them.

    What w adds in front of a layer of the time embedding is a bias there, and LoRA files have none.
    But that layer sees the Fourier features of the time, and a sum of these is 1 at every time: so
    the bias is a change of rank one.
    """
    from peft.utils import get_peft_model_state_dict

    tensors = {key: value.cpu() for key, value in get_peft_model_state_dict(net.unet).items()}
    features = net.unet.time_proj(torch.arange(net.timesteps)).double()
    one = torch.linalg.lstsq(features, torch.ones(net.timesteps, 1).double()).solution[:, 0]
    added = added_by_w(net.unet, w).cpu()
    # Of the others' rank, with zeros, so that no tool scales it in another way.
    down, up = torch.zeros(net.rank, len(one)), torch.zeros(len(added), net.rank)
    down[0], up[:, 0] = one, added
    place = "time_embedding.linear_1"
    return tensors | {f"{place}.lora_A.weight": down, f"{place}.lora_B.weight": up}
