"""diffusers' U-Net behind our call, and the ways to get one: new, or with a w input."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from cfgdistill.core.denoiser import Denoiser
from cfgdistill.core.schedules import CosineSchedule, Example, PerExample, Strengths
from cfgdistill.data.hub import name_and_revision, nothing_fetched, to_fetch
from cfgdistill.data.text import build_text_model, text_config
from cfgdistill.teachers.files import load, network, options, shipped_name
from cfgdistill.teachers.w_input import W_FEATURES, w_features, w_projection
from cfgdistill.training.checkpoints import fingerprint
from cfgdistill.training.randomness import seeded

TIMESTEPS = 1024  # a power of two, so that i/N is a whole number of them for every N of stage two


def _unet_of(config: dict):
    """diffusers' U-Net of this configuration, with random weights."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_config(config)


class _UNet(nn.Module):
    """A `UNet2DConditionModel` with fractional times and a guidance weight in the paper's sense.

    timesteps: how many of diffusers' time steps t = 0 .. 1 spans; 1000 for Stable Diffusion's own
    """

    def __init__(self, unet, timesteps: int = TIMESTEPS, negative: int = 0):
        super().__init__()
        self.unet, self.timesteps = unet, timesteps
        self.register_buffer("nothing", torch.zeros(negative) if negative else None)

    @property
    def negative(self) -> int:
        """Features of a second, negative condition; 0: it takes none. See `add_negative`."""
        return 0 if self.nothing is None else len(self.nothing)

    @property
    def config(self) -> dict:
        config = options(self.unet)
        if self.timesteps != TIMESTEPS:  # said where it differs, so that older cards still hold
            config["timesteps"] = self.timesteps
        if self.negative:
            config["negative"] = self.negative
        return {"net": type(self).__name__, **config}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one z: channels, height, width."""
        config = self.unet.config
        return (config.in_channels, config.sample_size, config.sample_size)

    def trains(self, name: str) -> bool:
        """Whether a student of this network trains the parameter of this name."""
        return True

    def add_w(self, strengths: int) -> None:
        """The layer that diffusers makes for `time_cond_proj_dim`, 0 at first."""
        embedding = self.unet.time_embedding
        embedding.cond_proj = w_projection(strengths, embedding.linear_1.in_features)
        self.nothing = None  # what was beside another input is gone with it
        self.unet.register_to_config(time_cond_proj_dim=embedding.cond_proj.in_features)

    def add_negative(self, null: Tensor) -> None:
        """Features of a negative condition enter beside those of w, with weights of 0 at first.

        null: the condition [...] that is no condition, and stands beside those that come alone
        """
        known = self.unet.time_embedding.cond_proj
        with torch.no_grad():
            self.nothing = self.features(null[None])[0]
            wide = nn.Linear(known.in_features + self.negative, known.out_features, bias=False)
            nn.init.zeros_(wide.weight)
            wide.weight[:, : known.in_features] = known.weight
        self.unet.time_embedding.cond_proj = wide.to(known.weight)
        self.unet.register_to_config(time_cond_proj_dim=wide.in_features)

    def features(self, cond: Tensor) -> Tensor:
        """What a negative condition [b, ...] is to the network, [b, k]."""
        raise NotImplementedError

    def stock(self):
        """The U-Net as stock diffusers knows it."""
        return self.unet

    def _apart(self, cond: Tensor, alone: int) -> tuple[Tensor, Tensor | None]:
        """Conditions of `alone` dimensions, of pairs [b, 2, ...] the first, and features of the
        second."""
        if self.negative and cond.ndim == alone:
            return cond, self.nothing.expand(len(cond), -1)
        if self.negative and cond.ndim == alone + 1 and cond.shape[1] == 2:
            cond, other = cond.unbind(1)
            return cond, self.features(other)
        if cond.ndim != alone:
            pair = "one, or a pair [b, 2, ...] of one and its negative" if self.negative else "one"
            raise ValueError(f"Conditions are {list(cond.shape)}: pass {pair} for each example.")
        return cond, None

    def _ask(
        self, z: Example, t: PerExample, w: Strengths | None, other: Tensor | None, **condition
    ) -> Example:
        if z.shape[1:] != self.shape:
            raise ValueError(
                f"z is {list(z.shape)}, but this U-Net takes "
                f"[batch, {', '.join(map(str, self.shape))}]."
            )
        features = (self.unet.config.time_cond_proj_dim or 0) - self.negative
        said = w_features(w, z, features)
        condition["timestep_cond"] = (
            said if other is None else torch.cat([said, other.to(z.dtype)], 1)
        )
        # Entry k of a diffusers schedule is t = (k + 1) / T.
        k = self.timesteps * t - 1
        return self._call(z, k, **condition)

    def _call(self, z: Example, k: PerExample, **condition) -> Example:
        return self.unet(z, k, **condition).sample


@network
class ClassUNet(_UNet):
    """A class-conditional U-Net as net(z, t, cond, w).

    patch: side of the squares of pixels that the U-Net sees as channels of one place. A reordering,
    under which noise stays noise; with patch = 2 the most expensive quarter of a U-Net is saved.
    """

    def __init__(self, unet, timesteps: int = TIMESTEPS, patch: int = 1, negative: int = 0):
        super().__init__(unet, timesteps, negative)
        self.patch = patch

    @property
    def config(self) -> dict:
        return {**super().config, **({} if self.patch == 1 else {"patch": self.patch})}

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = super().shape
        return (channels // self.patch**2, height * self.patch, width * self.patch)

    @classmethod
    def from_config(
        cls, timesteps: int = TIMESTEPS, patch: int = 1, negative: int = 0, **config
    ) -> "ClassUNet":
        return cls(_unet_of(config), timesteps, patch, negative)

    def features(self, cond: Tensor) -> Tensor:
        """One number for each label [b], and for the null label."""
        return nn.functional.one_hot(cond, self.unet.config.num_class_embeds).float()

    def forward(
        self, z: Example, t: PerExample, cond: Tensor | None, w: Strengths | None
    ) -> Example:
        """z [b, c, h, h], t [b], labels cond [b], or [b, 2] with negative ones, w [b] (None for a
        network without a w input)."""
        if cond is None:
            raise ValueError("This network needs class labels: pass cond, one label for each z.")
        cond, other = self._apart(cond, 1)
        return self._ask(z, t, w, other, encoder_hidden_states=None, class_labels=cond)

    def _call(self, z: Example, *given, **condition) -> Example:
        said = super()._call(nn.functional.pixel_unshuffle(z, self.patch), *given, **condition)
        return nn.functional.pixel_shuffle(said, self.patch)


@network
class TextUNet(_UNet):
    """A text-conditional U-Net as net(z, t, cond, w).

    text: a CLIP text model that is trained with it; None where captions come as embeddings only.
    """

    def __init__(self, unet, text=None, timesteps: int = TIMESTEPS, negative: int = 0):
        super().__init__(unet, timesteps, negative)
        self.text = text

    @property
    def config(self) -> dict:
        return {**super().config, "text": None if self.text is None else text_config(self.text)}

    @classmethod
    def from_config(
        cls, text=None, timesteps: int = TIMESTEPS, negative: int = 0, **config
    ) -> "TextUNet":
        return cls(_unet_of(config), build_text_model(text), timesteps, negative)

    def trains(self, name: str) -> bool:
        return not name.startswith("text.")  # the students' text model is the teacher's, and stays

    def forward(
        self, z: Example, t: PerExample, cond: Tensor | None, w: Strengths | None
    ) -> Example:
        """z [b, c, h, h], t [b], cond: tokens [b, n] or embeddings [b, n, d], or pairs of them with
        negative ones, [b, 2, ...]; w [b] or None."""
        if cond is None:
            raise ValueError(
                "This network needs captions: pass cond, as tokens [b, n] or embeddings [b, n, d]; "
                "those of an empty caption are no condition."
            )
        cond, other = self._apart(self._embedded(cond), 3)
        # Embeddings may be stored in half precision.
        return self._ask(z, t, w, other, encoder_hidden_states=cond.to(z.dtype))

    def features(self, cond: Tensor) -> Tensor:
        """The mean of a caption's embeddings."""
        return self._embedded(cond).float().mean(1)

    def _embedded(self, cond: Tensor) -> Tensor:
        if cond.is_floating_point():
            return cond
        if self.text is None:
            raise ValueError(
                "This network has no text encoder: pass captions as embeddings [b, n, d], not "
                "as tokens."
            )
        if cond.ndim == 2:
            return self.text(cond).last_hidden_state
        return self.text(cond.flatten(0, 1)).last_hidden_state.unflatten(0, cond.shape[:2])


# As in diffusers' script for LCM-LoRA. Not attention alone, which decides where words are looked
# up: what the network says changes, from eps to v and with every halving.
LORA_LAYERS = (
    "to_q to_k to_v to_out.0 proj_in proj_out ff.net.0.proj ff.net.2 conv1 conv2 conv_shortcut "
    "downsamplers.0.conv upsamplers.0.conv time_emb_proj"
).split()


@network
class LoraUNet(TextUNet):
    """A pre-trained U-Net that stays as it is, and low-rank changes to it that are trained.

    Each chosen layer says W x + B A x with A and B of `rank` rows and columns (Hu et al. 2022).
    The state of this network, and so every file of it, is the changes and the projection of w: the
    rest lies where it came from. Made by `add_lora`.

    base:    the pipeline that the U-Net comes from, a name on the hub or a folder
    sha:     the fingerprint of its weights, without which the changes mean nothing
    """

    def __init__(self, unet, base: str, sha: str, rank: int, timesteps: int = TIMESTEPS):
        super().__init__(unet, None, timesteps)
        self.base, self.sha, self.rank = base, sha, rank
        self.register_state_dict_post_hook(_forget_the_base)
        self.register_load_state_dict_post_hook(_do_not_miss_the_base)

    @property
    def config(self) -> dict:
        return {**super().config, "base": self.base, "sha": self.sha, "rank": self.rank}

    def __deepcopy__(self, memo: dict) -> "LoraUNet":
        """Changes and a projection of w of its own, on the same base, which nobody changes."""
        memo.update({id(p): p for key, p in self.named_parameters() if not _trained(key)})
        memo[id(self)] = copied = LoraUNet.__new__(LoraUNet)
        copied.__setstate__(copy.deepcopy(self.__dict__, memo))
        return copied

    @classmethod
    def from_config(
        cls,
        base: str,
        sha: str,
        rank: int,
        timesteps: int = TIMESTEPS,
        half: torch.dtype | None = None,
        **config,
    ) -> "LoraUNet":
        """ValueError where what is found under that name now has other weights."""
        with nothing_fetched():
            unet = open_unet(base)
        net = add_lora(unet, base, rank, half=half, timesteps=timesteps)
        if net.sha != sha:
            raise ValueError(
                f"The U-Net of {base!r} is not the one that this model was trained on: write the "
                "revision of then into its card, as name@revision, or train again."
            )
        if config["time_cond_proj_dim"] is not None:
            net.add_w(config["time_cond_proj_dim"] // W_FEATURES)
        return net

    def trains(self, name: str) -> bool:
        return _trained(name)

    def add_negative(self, null: Tensor) -> None:
        raise ValueError(
            "Low-rank changes come without an input for a negative condition: train all weights, "
            "or guide away from it in two evaluations, with 4 steps or more and w_min=0."
        )

    def stock(self):
        """A copy in float32 with the changes added to the weights."""
        unet = copy.deepcopy(self.unet).float()
        unet.fuse_lora()
        unet.unload_lora()
        return unet

    def forward(
        self, z: Example, t: PerExample, cond: Tensor | None, w: Strengths | None
    ) -> Example:
        """z [b, c, h, h], t [b], embeddings cond [b, n, d], w [b] or None."""
        dtype = self.unet.conv_in.weight.dtype
        half = dtype in (torch.float16, torch.bfloat16)
        with torch.autocast(z.device.type, dtype) if half else nullcontext():
            return super().forward(z, t, cond, w)


def _trained(key: str) -> bool:
    return "lora_" in key or "cond_proj" in key


def _forget_the_base(module, state, prefix, metadata) -> None:
    for key in [key for key in state if key.startswith(prefix) and not _trained(key)]:
        del state[key]


def _do_not_miss_the_base(module, incompatible) -> None:
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if _trained(key)]


def add_lora(
    unet,
    base: str,
    rank: int,
    *,
    half: torch.dtype | None = None,
    seed: int = 0,
    timesteps: int = TIMESTEPS,
) -> LoraUNet:
    """`unet` itself, frozen (in `half` precision, if given), and changes that are still 0."""
    try:
        from peft import LoraConfig
    except ModuleNotFoundError as error:
        raise ValueError(
            "Low-rank training needs peft, which is not installed: pip install 'cfgdistill[sd]', "
            "or set lora=0 to train all weights."
        ) from error
    sha = fingerprint(unet)
    unet.requires_grad_(False)
    if half is not None:
        unet.to(half)
    with seeded(seed):
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_LAYERS))
    for key, parameter in unet.named_parameters():
        if _trained(key):  # what is trained is in float32, also where the rest is not
            parameter.data = parameter.data.float()
    return LoraUNet(unet, base, sha, rank, timesteps)


def open_unet(base: str):
    """The U-Net of a pipeline by name, name@revision or folder, in float32; OSError where it cannot
    be had. As `stable_diffusion.open_pipeline`, without the rest."""
    from diffusers import UNet2DConditionModel

    if shipped_name(base):
        return load(base, "cpu").net.unet
    try:
        return from_hub(UNet2DConditionModel, base, subfolder="unet")
    except Exception as error:  # of the hub, http and safetensors, each with kinds of its own
        raise OSError(
            f"The U-Net of {base!r} could not be had ({type(error).__name__}): {to_fetch(base)}, "
            "or name the folder of a pipeline."
        ) from error


def from_hub(kind, base: str, **how):
    """What `kind` of diffusers opens by name, name@revision or folder, in float32.

    Where there are only files in half precision, which diffusers calls a variant, those are taken.
    """
    name, revision = name_and_revision(base)
    how["revision"] = revision
    try:
        found = kind.from_pretrained(name, **how)
    except Exception as error:
        try:
            found = kind.from_pretrained(name, variant="fp16", **how)
        except Exception:
            raise error from None
    return found.to(torch.float32)


def build_unet(
    *,
    channels: int,
    size: int,
    num_classes: int,
    widths: Sequence[int],
    attention: Sequence[int] = (),
    patch: int = 1,
    prediction_type: str = "v",
    **how,
) -> Denoiser:
    """A new teacher for images [channels, size, size]; label num_classes is null.

    widths:     channels of the U-Net at each resolution, multiples of 8; each is half of the one
                before
    attention:  the sides of the resolutions that have self-attention
    patch:      squares of so many pixels are its places
    how:        layers, scale_shift, dropout and seed, as in `_new_unet`
    """
    if size % patch:
        raise ValueError(f"Images of {size} pixels do not fall into squares of {patch}.")
    sides = [size // patch >> k for k in range(len(widths))]
    if other := set(attention) - set(sides):
        raise ValueError(
            f"attention={tuple(attention)} does not fit: the U-Net's sides are {sides}, and "
            f"{max(other)} is none of them."
        )
    kinds = ["Attn" * (side in attention) for side in sides]
    unet = _new_unet(
        channels * patch**2,
        size // patch,
        widths,
        **how,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        mid_block_type="UNetMidBlock2D",
        attention_head_dim=min(widths) if attention else 16,  # one head, or two
        num_class_embeds=num_classes + 1,
    )
    net = ClassUNet(unet, patch=patch)
    return Denoiser(net, CosineSchedule(), prediction_type, num_classes=num_classes)


def build_text_unet(
    *,
    channels: int,
    size: int,
    text,
    widths: Sequence[int],
    prediction_type: str = "v",
    **how,
) -> Denoiser:
    """A new teacher for latents [channels, size, size], with the CLIP text model it trains.

    Cross-attention to the words at the lowest resolution only, where it is cheap; a pooled caption
    is added to the time embedding, and so reaches every block, where it scales and shifts the
    features (adaptive group normalization, Dhariwal and Nichol 2021). widths and how: as in
    `build_unet`.
    """
    plain = len(widths) - 1
    unet = _new_unet(
        channels,
        size,
        widths,
        **how,
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * plain,
        mid_block_type="UNetMidBlock2DCrossAttn",
        attention_head_dim=max(1, widths[-1] // 64),  # diffusers: number of heads
        cross_attention_dim=text.config.hidden_size,
        addition_embed_type="text",  # the caption as a whole, beside the time
        addition_embed_type_num_heads=4,
    )
    return Denoiser(TextUNet(unet, text), CosineSchedule(), prediction_type)


def _new_unet(
    channels: int,
    size: int,
    widths: Sequence[int],
    layers: int = 1,
    scale_shift: bool = False,
    dropout: float = 0.0,
    seed: int = 0,
    **blocks,
):
    """diffusers' U-Net; `blocks` are its arguments by their names there.

    layers per resolution; with scale_shift, time and label scale and shift the features of every
    block; the seed is that of the weights.
    """
    from diffusers import UNet2DConditionModel

    with seeded(seed):
        return UNet2DConditionModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(widths),
            layers_per_block=layers,
            resnet_time_scale_shift="scale_shift" if scale_shift else "default",
            norm_num_groups=8,
            dropout=dropout,
            **blocks,
        )
