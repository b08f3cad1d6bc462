"""From images to latents, from captions to tokens and embeddings: what stands before the networks.

diffusers' autoencoders and transformers' CLIP text models, with what they need to be used for
training: latents of about unit variance, kept on disk; a vocabulary that is made from captions.
"""

import copy
import hashlib
import itertools
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cfgdistill.core.schedules import Example, PerExample
from cfgdistill.data.base import Data
from cfgdistill.training.checkpoints import alone, fingerprint, read_tensors, write_tensors
from cfgdistill.training.randomness import seeded

Latent = Float[Tensor, " b c h w"]
Tokens = Int[Tensor, " b n"]


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
            vae.post_quant_conv.bias.data += kernel @ shift
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


@dataclass(frozen=True, eq=False, kw_only=True)
class Latents(Data):
    """Latents of captioned images, with tokens [n, l] or embeddings [n, l, d] for conditions.

    What the stages are given in the place of images and labels: the same functions do the rest.
    """

    pictures: Data  # what the latents were made of
    vae: VAEEncoder
    empty: Tensor  # the condition of the empty caption, [l] or [l, d]
    text: "TextEncoder | None" = None  # a new one, to be trained with the teacher
    further: Tensor | None = None  # tokens of each example's further captions, [n, k, l]
    share: float = 0.0  # how often a batch has one of those

    @property
    def images(self) -> Data:
        return self.pictures

    @property
    def null(self) -> Tensor:
        return self.empty

    @classmethod
    def of(
        cls,
        images: Data,
        vae: VAEEncoder,
        text: "TextEncoder",
        folder: str | Path,
        share: float = 0.0,
    ) -> "Latents":
        """Captioned images as latents, which are kept in `folder`, and tokens.

        share: how often a training example comes with one of its further captions, if it has any
        """
        tokens, further, about = text.tokens(images.class_names), None, ""
        pictures = replace(images, also=())  # latents do not depend on captions
        if share and any(images.also):
            # Filled up by repetition; an example without any keeps its own caption.
            most = max(len(captions) for captions in images.also)
            rows = zip(images.also, images.class_names, strict=True)
            filled = [itertools.islice(itertools.cycle(own or (name,)), most) for own, name in rows]
            further = text.tokens(list(itertools.chain(*filled))).unflatten(0, (-1, most))
            about = f" {share} {further.tolist()}"
        return cls(
            name=images.name,
            split=images.split,
            stored=cached_latents(vae, pictures, folder),
            labels=tokens,
            class_names=images.class_names,
            levels=None,
            made_of=f"{latents_key(vae, pictures)} {tokens.tolist()}{about}",
            pictures=pictures,
            vae=vae,
            empty=text.null,
            text=text,
            further=further,
            share=share,
        )

    def batch(self, indices: Tensor, u: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `Data.batch`; where u < share, the caption is one of the further ones, drawn by u."""
        x, cond = super().batch(indices)
        if self.further is None or u is None:
            return x, cond
        u = u.to(indices.device)
        drawn = (u / self.share * self.further.shape[1]).long().clamp_max(self.further.shape[1] - 1)
        other = self.further.to(indices.device)[indices, drawn]
        return x, torch.where((u < self.share)[:, None], other, cond)

    def decode(self, x: Tensor) -> Tensor:
        """Latents [b, c, h, h] to images in [-1, 1], in parts: a decoder is large.

        At most 64 at once, and at most four where latents are 64 x 64.
        """
        part = min(64, max(1, 2**14 // x[0, 0].numel()))
        return torch.cat([self.vae.decode(some) for some in x.split(part)])

    def prompts(self, n: int) -> tuple[Tensor, Tensor]:
        rows, _ = self.images.prompts(n)
        return self.labels[rows], rows


def latents_key(encoder: VAEEncoder, data: Data) -> str:
    """What latents are made of. The numbers themselves have other last bits on another CPU."""
    return f"{data.hash} {fingerprint(encoder)}"


def cached_latents(encoder: VAEEncoder, data: Data, folder: str | Path, batch: int = 64) -> Tensor:
    """The latents of all images of `data`, computed once for these images and these weights."""
    parts = torch.arange(len(data)).split(batch)
    return cached(
        folder,
        "latents",
        latents_key(encoder, data),
        lambda: torch.cat([encoder.encode(data.batch(rows)[0]) for rows in parts]),
    )


def cached(folder: str | Path, name: str, key: str, make: Callable[[], Tensor]) -> Tensor:
    """What `make` computes, kept in `folder` under the name and the key of all it depends on.

    Of several processes that want it at once, one computes it and the others wait.
    """
    file = Path(folder) / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    with alone(file.with_suffix(".lock")):
        if file.exists():
            tensors, about = read_tensors(file)
            if about.get("key") == key:
                return tensors[name]
        made = make()
        write_tensors(file, {name: made}, {"key": key})
        return made


class TextEncoder(nn.Module):
    """transformers' CLIP text model and its tokenizer: captions -> tokens -> embeddings."""

    def __init__(self, tokenizer, model):
        super().__init__()
        self.tokenizer, self.model = tokenizer, model

    @property
    def length(self) -> int:
        """Tokens per caption, with the two that mark its beginning and its end."""
        return self.model.config.max_position_embeddings

    def tokens(self, captions: Sequence[str]) -> Tokens:
        """Captions as tokens, padded; what is too long is cut off, as diffusers does, and told."""
        found = self.tokenizer(list(captions), truncation=False, verbose=False)["input_ids"]
        for caption, ids in zip(captions, found, strict=True):
            if len(ids) > self.length:
                warnings.warn(
                    f"{caption[:40]!r} has {len(ids) - 2} tokens and is cut after "
                    f"{self.length - 2}: shorten it.",
                    stacklevel=2,
                )
        return self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        )["input_ids"]

    @property
    def null(self) -> Int[Tensor, " n"]:
        """The tokens of the empty caption: "no condition"."""
        return self.tokens([""])[0]

    def describe(self) -> dict:
        return text_config(self.model)

    def forward(self, tokens: Tokens) -> Float[Tensor, " b n d"]:
        return self.model(tokens).last_hidden_state


# What describes a text model of our own; for the rest transformers' defaults hold.
TEXT_CONFIG = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "max_position_embeddings hidden_act bos_token_id eos_token_id pad_token_id"
).split()


def text_config(model) -> dict:
    """What `build_text_model` needs to build a CLIP text model again (JSON)."""
    return {key: getattr(model.config, key) for key in TEXT_CONFIG}


def build_text_model(config: dict | None):
    """A new CLIP text model of this description; None for none."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return None if config is None else CLIPTextModel(CLIPTextConfig(**config)).eval()


def build_text_encoder(
    captions: Iterable[str],
    *,
    vocabulary: int = 2048,
    length: int = 16,
    width: int = 128,
    layers: int = 2,
    seed: int = 0,
) -> TextEncoder:
    """A new, small CLIP text model, with a byte-pair vocabulary that is made from the captions."""
    tokenizer = build_tokenizer(captions, vocabulary, length)
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 32),
        "max_position_embeddings": length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with seeded(seed):
        return TextEncoder(tokenizer, build_text_model(config))


END = 0xE000  # added to the last letter of a word while a vocabulary is made


def build_tokenizer(captions: Iterable[str], vocabulary: int, length: int):
    """CLIP's tokenizer with the byte pairs that are most frequent in these captions.

    Not `train_new_from_iterator`, under which words of equal count come out in a new order every
    time: it is the mark of a word's end that is numbered as it comes. So here a last letter is a
    letter of its own while the pairs are counted. All letters are kept, to spell unseen words.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    clip = CLIPTokenizer().backend_tokenizer
    words = [
        word[:-1] + chr(ord(word[-1]) + END)
        for caption in captions
        for word, _ in clip.pre_tokenizer.pre_tokenize_str(clip.normalizer.normalize_str(caption))
    ]
    letters = pre_tokenizers.ByteLevel.alphabet()
    counter = Tokenizer(models.BPE())
    counter.train_from_iterator(
        sorted(words),
        trainers.BpeTrainer(
            vocab_size=vocabulary - 2,
            initial_alphabet=letters + [chr(ord(letter) + END) for letter in letters],
            show_progress=False,
        ),
    )

    def marked(token: str) -> str:
        return "".join(c if ord(c) < END else chr(ord(c) - END) + "</w>" for c in token)

    found = json.loads(counter.to_str())["model"]
    tokens = ["<|startoftext|>", "<|endoftext|>"]
    tokens += [marked(token) for token in sorted(found["vocab"], key=found["vocab"].get)]
    return CLIPTokenizer(
        {token: i for i, token in enumerate(tokens)},
        [tuple(map(marked, pair)) for pair in found["merges"]],
        model_max_length=length,
    )
