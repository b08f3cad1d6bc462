"""Captioned images as latents of about unit variance, computed once and kept on disk."""

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cfgdistill.data.autoencoder import VAEEncoder, decode_in_parts
from cfgdistill.data.base import Data
from cfgdistill.data.meaning import Prompts
from cfgdistill.data.text import TextEncoder
from cfgdistill.training.checkpoints import alone, fingerprint, read_tensors, write_tensors


@dataclass(frozen=True, eq=False, kw_only=True)
class Latents(Data):
    """Latents of captioned images, with tokens [n, l] or embeddings [n, l, d] for conditions.

    What the stages are given in the place of images and labels: the same functions do the rest.
    """

    pictures: Data  # what the latents were made of
    vae: VAEEncoder
    empty: Tensor  # the condition of the empty caption, [l] or [l, d]
    text: TextEncoder | None = None  # a new one, to be trained with the teacher
    pipeline: object = None  # the meaning of a pipeline's latents and embeddings
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
        text: TextEncoder,
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

    def fits(self, caption: str) -> Tensor:
        """Which examples have this caption, as their own or as a further one: bool [n]."""
        tokens = self.text.tokens([caption])
        own = (self.labels == tokens).all(1)
        return own if self.further is None else own | (self.further == tokens).all(2).any(1)

    def decode(self, x: Tensor) -> Tensor:
        """Latents [b, c, h, h] to images in [-1, 1]."""
        return decode_in_parts(self.vae, x)

    @property
    def meaning(self):
        """What travels with a model of these data; None where its prompts are not known."""
        return self.pipeline or (Prompts(self.text, self.vae) if self.text else None)

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
