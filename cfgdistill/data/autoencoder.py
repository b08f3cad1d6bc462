"""From images to latents and back: diffusers' autoencoders, and small ones to be trained here."""

import copy
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cfgdistill.core.schedules import Example, PerExample

Latent = Float[Tensor, " b c h w"]


class VAEEncoder(nn.Module):
    """A diffusers autoencoder as x [b, 3, H, H] in [-1, 1] <-> latents [b, c, h, h] ready to noise.

    latents = scale (z - shift), where z is what the autoencoder says: for `AutoencoderKL` the mean
    of its posterior. scale is one number and shift one per channel, so that stock diffusers
    pipelines, which know a scale only, can be given the same latents: see `folded`. Unless they are
    given, they are those of the autoencoder's configuration. `vae` itself is left as it is.
    """

    def __init__(self, vae, shift: Float[Tensor, " c"] | None = None, scale: float | None = None):
        super().__init__()
        self.vae = vae
        channels, device = vae.config.latent_channels, next(vae.parameters()).device
        if shift is None:
            shift = torch.full((channels,), float(vae.config.get("shift_factor") or 0))
        self.register_buffer("shift", shift.reshape(1, -1, 1, 1).float().to(device))
        self.scale = float(vae.config.scaling_factor if scale is None else scale)

    def describe(self) -> dict:
        """What it is beside its weights and its shift (JSON)."""
        config = {key: self.vae.config.get(key) for key in ("act_fn", "norm_num_groups")}
        return {"vae": type(self.vae).__name__, **config, "scale": self.scale}

    @classmethod
    def measured(cls, vae, batches: Iterable[Tensor]) -> "VAEEncoder":
        """With the shift and scale that give the latents of these images mean 0 and variance 1."""
        raw = cls(vae, torch.zeros(vae.config.latent_channels), scale=1.0)
        z = torch.cat([raw.encode(x) for x in batches]).double()
        # The decoder of AutoencoderTiny squashes its input around 0: there nothing may be shifted.
        movable = hasattr(vae, "post_quant_conv") and vae.post_quant_conv is not None
        shift = z.mean((0, 2, 3)) if movable else torch.zeros(z.shape[1], dtype=z.dtype)
        scale = 1 / (z - shift[:, None, None]).square().mean().sqrt()
        return cls(vae, shift.float(), scale.item())

    # Both compute where the autoencoder is, and answer where they were asked from.

    @torch.no_grad()
    def encode(self, x: Example) -> Latent:
        found = self.vae.encode(x.to(self.shift.device, self.vae.dtype))
        z = found.latents if hasattr(found, "latents") else found.latent_dist.mode()
        return (self.scale * (z.float() - self.shift)).to(x.device)

    @torch.no_grad()
    def decode(self, latents: Latent) -> Example:
        z = latents.to(self.shift.device) / self.scale + self.shift
        x = self.vae.decode(z.to(self.vae.dtype)).sample.float().clamp(-1, 1)
        return x.to(latents.device)

    def folded(self):
        """A copy of the autoencoder that needs no shift, and knows its scale: for stock pipelines.

        The shift goes into the 1 x 1 convolutions on both sides of the latents.
        """
        vae, shift = copy.deepcopy(self.vae), self.shift.flatten()
        vae.register_to_config(scaling_factor=self.scale)
        known = vae.config.get("shift_factor") or 0
        if (shift == known).all():
            return vae  # as it knows that shift itself
        if known:
            vae.register_to_config(shift_factor=None)
        if shift.any():
            if getattr(vae, "quant_conv", None) is None:
                raise ValueError(
                    "This autoencoder has no 1 x 1 convolutions that a shift could go into: give "
                    "VAEEncoder the shift of its configuration."
                )
            vae.quant_conv.bias.data[: len(shift)] -= shift
            kernel = vae.post_quant_conv.weight.data[:, :, 0, 0]
            # In double precision, so that no processor rounds a last bit in a way of its own: this
            # autoencoder is known by its bits.
            vae.post_quant_conv.bias.data += (kernel.double() @ shift.double()).to(kernel)
        return vae


class Autoencoder(nn.Module):
    """A small KL autoencoder to be trained: `train(autoencoder, autoencoder_loss, data, ...)`.

    Each entry of `channels` after the first halves the resolution. Latents have 4 channels, the
    number that diffusers' inpainting pipeline asks for.
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 128), layers: int = 1):
        super().__init__()
        from diffusers import AutoencoderKL

        depth = len(channels)
        self.factor = 2 ** (depth - 1)  # images over latents, in side length
        self.net = _ThereAndBack(
            AutoencoderKL(
                block_out_channels=tuple(channels),
                layers_per_block=layers,
                down_block_types=("DownEncoderBlock2D",) * depth,
                up_block_types=("UpDecoderBlock2D",) * depth,
                latent_channels=4,
                norm_num_groups=8,
                mid_block_add_attention=False,
            )
        )

    def describe(self) -> dict:
        config = {k: v for k, v in self.net.vae.config.items() if not k.startswith("_")}
        return {"net": {"net": "AutoencoderKL", **config}}


class _ThereAndBack(nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, x: Example, noise: Latent) -> tuple[Example, PerExample]:
        """Reconstructions of x, and the KL divergence of each posterior, per latent number."""
        posterior = self.vae.encode(x).latent_dist
        back = self.vae.decode(posterior.mean + posterior.std * noise).sample
        divergence = posterior.mean.square() + posterior.var - 1 - posterior.logvar
        return back, divergence.flatten(1).mean(1) / 2


def open_vae(config: dict, weights: dict[str, Tensor]):
    """diffusers' autoencoder of this configuration, with weights under vae.*, for use."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_config(config)
    vae.load_state_dict({key.removeprefix("vae."): value for key, value in weights.items()})
    return vae.eval()


def autoencoder_loss(model, x: Example, cond: Tensor | None, draw) -> PerExample:
    """Absolute and squared error of the reconstruction, and a little of the KL divergence.

    The absolute error keeps edges sharp; the squared one makes large errors count, such as those
    of a rare colour. The divergence to N(0, I), in nats per latent number, only keeps the latents
    from spreading (Rombach et al. 2022, with their weight of 1e-6 per image, here 1e-3 per number).
    """
    side = x.shape[-1] // model.factor
    back, divergence = model.net(x, draw.normal((4, side, side)))
    errors = (back - x).abs() + 2 * (back - x).square()
    return errors.flatten(1).mean(1) + 1e-3 * divergence


def psnr(a: Example, b: Example) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1]."""
    return (10 * torch.log10(4 / (a - b).square().mean())).item()


def decode_in_parts(vae: VAEEncoder, z: Latent) -> Tensor:
    """Latents [b, c, h, h] to images in [-1, 1], in parts: a decoder is large.

    At most 64 at once, and at most four where latents are 64 x 64. The decoder goes where they are.
    """
    vae = vae.to(z.device)
    part = min(64, max(1, 2**14 // z[0, 0].numel()))
    return torch.cat([vae.decode(some) for some in z.split(part)])
