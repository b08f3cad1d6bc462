"""diffusers' U-Net behind our call, and the ways to get one: new, with a w input, from a folder."""

from pathlib import Path

import torch
from torch import Tensor, nn

from cfgdistill.checkpoints import load_weights, read_card
from cfgdistill.config import Recipe, one_of
from cfgdistill.denoiser import Denoiser
from cfgdistill.guidance import embed_w
from cfgdistill.schedules import CosineSchedule, Example, PerExample
from cfgdistill.toy import MLP

TIMESTEPS = 1024  # a power of two, so that i/N is a whole number of them for every N of stage two
W_FEATURES = 64


class ClassUNet(nn.Module):
    """A class-conditional `UNet2DConditionModel` as net(z, t, cond, w)."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    @property
    def config(self) -> dict:
        config = {k: v for k, v in self.unet.config.items() if not k.startswith("_")}
        return {"net": "ClassUNet", **config}

    def forward(self, z: Example, t: PerExample, cond: Tensor, w: PerExample | None) -> Example:
        """z [b, c, h, h], t [b], labels cond [b], w [b] (None for a network without a w input)."""
        config = self.unet.config
        if list(z.shape[1:]) != [config.in_channels, config.sample_size, config.sample_size]:
            raise ValueError(
                f"z is {list(z.shape)}, but this U-Net takes "
                f"[batch, {config.in_channels}, {config.sample_size}, {config.sample_size}]."
            )
        if (w is None) != (config.time_cond_proj_dim is None):
            raise ValueError(
                "This network takes no w: wrap it in GuidedDenoiser, or give it a w input with "
                "add_w_conditioning."
                if w is not None
                else "This network needs a guidance weight: pass w."
            )
        return self.unet(
            z,
            # Entry k of a diffusers schedule is t = (k + 1) / T.
            TIMESTEPS * t - 1,
            encoder_hidden_states=None,
            class_labels=cond,
            timestep_cond=None if w is None else embed_w(w, config.time_cond_proj_dim),
        ).sample


def build_unet(recipe: Recipe, *, channels: int, size: int, num_classes: int) -> Denoiser:
    """A new teacher for images [channels, size, size]; label num_classes is null."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        depth = len(recipe.channels)
        unet = UNet2DConditionModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=recipe.channels,
            layers_per_block=recipe.layers,
            down_block_types=("DownBlock2D",) * depth,
            up_block_types=("UpBlock2D",) * depth,
            mid_block_type="UNetMidBlock2D",
            norm_num_groups=8,
            attention_head_dim=16,
            num_class_embeds=num_classes + 1,
        )
    net = ClassUNet(unet)
    return Denoiser(net, CosineSchedule(), recipe.prediction_type, num_classes=num_classes)


def add_w_conditioning(teacher: Denoiser, w_range: tuple[float, float]) -> Denoiser:
    """A copy of the teacher's network with a w input that, so far, changes nothing.

    diffusers leaves the new projection `cond_proj` at random. Here it is zero, so the student
    starts as exactly the conditional teacher, for every w.
    """
    from diffusers import UNet2DConditionModel

    old = teacher.net.unet
    unet = UNet2DConditionModel.from_config(old.config, time_cond_proj_dim=W_FEATURES)
    missing, unexpected = unet.load_state_dict(old.state_dict(), strict=False)
    assert missing == ["time_embedding.cond_proj.weight"] and not unexpected
    nn.init.zeros_(unet.time_embedding.cond_proj.weight)
    student = Denoiser(
        ClassUNet(unet),
        teacher.schedule,
        teacher.prediction_type,
        w_range=w_range,
        num_classes=teacher.num_classes,
    )
    return student.to(next(old.parameters()).device).eval()


def load(folder: str | Path) -> Denoiser:
    """The denoiser that `train` left in a folder, with its schedule, steps and w range."""
    card = read_card(folder)
    model = dict(card["model"])
    if "net" not in model:
        raise ValueError(f"{folder} holds no denoiser but a classifier: name another folder.")
    net, schedule = dict(model.pop("net")), model.pop("schedule")
    kind = one_of("network", net.pop("net"), ("ClassUNet", "MLP"))
    one_of("schedule", schedule, ("CosineSchedule",))
    if kind == "ClassUNet":
        from diffusers import UNet2DConditionModel

        net = ClassUNet(UNet2DConditionModel.from_config(net))
    else:
        net = MLP(**net)
    w_range = model.pop("w_range")
    denoiser = Denoiser(
        net, CosineSchedule(), w_range=None if w_range is None else tuple(w_range), **model
    )
    load_weights(denoiser, folder)
    return denoiser.to("cuda" if torch.cuda.is_available() else "cpu").eval()
