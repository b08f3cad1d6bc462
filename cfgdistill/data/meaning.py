"""What a model's numbers mean: how a class or a prompt is said to it, and how it paints.

`denoiser.meaning` travels with a model, as the entry "meaning" of its card and, for latents, in
decoder.safetensors beside its weights: so sampling needs none of the data. A meaning has

null               the condition that means "no condition"
conditions(given)  tensors [n, ...] of n labels, class names or prompts; ValueError for others
decode(z)          from what a sampler makes to images in [-1, 1]
keep(folder)       leaves there what it needs, and gives its entry of the card (JSON)
at_once            how many images are drawn together
asked()            a context in which the network is asked
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cfgdistill.core.names import one_of
from cfgdistill.core.schedules import Example
from cfgdistill.data.autoencoder import VAEEncoder, decode_in_parts, open_vae
from cfgdistill.data.text import TextEncoder, as_tokenizer, described
from cfgdistill.training.checkpoints import read_tensors, sha256, write_tensors

DECODER = "decoder.safetensors"


class Meaning:
    """What small networks have in common."""

    at_once = 125
    asked = staticmethod(nullcontext)


@dataclass(frozen=True)
class Classes(Meaning):
    """Labels 0 .. num_classes - 1, with names or without; the label after them is null.

    vae: decodes samples that are latents; None where they are images
    """

    num_classes: int
    names: tuple[str, ...] = ()
    vae: VAEEncoder | None = None

    @property
    def null(self) -> int:
        return self.num_classes

    def conditions(self, given: Sequence) -> Tensor:
        """[n] of labels and class names."""
        return torch.tensor([self._label(one) for one in given], dtype=torch.long)

    def _label(self, given) -> int:
        if isinstance(given, str):
            if not self.names:
                raise ValueError(
                    f"This model's classes have no names, so {given!r} is none of them: pass "
                    f"whole numbers in 0 .. {self.num_classes - 1}."
                )
            return self.names.index(one_of("class", given, self.names))
        if type(given) not in (int, float) or given not in range(self.num_classes):
            names = f", or names such as {self.names[0]!r}" if self.names else ""
            raise ValueError(
                f"Labels must be whole numbers in 0 .. {self.num_classes - 1}{names}, not "
                f"{given!r:.80}."
            )
        return int(given)

    def decode(self, z: Example) -> Tensor:
        return z.clamp(-1, 1) if self.vae is None else decode_in_parts(self.vae, z)

    def keep(self, folder: Path) -> dict:
        entry = {} if self.vae is None else keep_decoder(folder, self.vae)
        return {"class_names": list(self.names), **entry}


class Prompts(Meaning):
    """Captions as tokens, or as embeddings where `embedded`, and latents that `vae` decodes."""

    def __init__(self, text: TextEncoder, vae: VAEEncoder, embedded: bool = False):
        self.text, self.vae, self.embedded = text, vae, embedded

    @property
    def null(self) -> Tensor:
        return self.conditions([""])[0]

    @torch.no_grad()
    def conditions(self, given: Sequence) -> Tensor:
        """[n, l] or [n, l, d]."""
        for one in given:
            if not isinstance(one, str):
                raise ValueError(f"This model draws from text: pass prompts, not {one!r}.")
        tokens = self.text.tokens(given)
        return self.text(tokens) if self.embedded else tokens

    def decode(self, z: Tensor) -> Tensor:
        return decode_in_parts(self.vae, z)

    def keep(self, folder: Path) -> dict:
        return keep_decoder(folder, self.vae, tokenizer=described(self.text.tokenizer))

    @classmethod
    def kept(cls, folder: Path, entry: dict, model) -> "Prompts":
        """What `keep` left in a folder, with the text model that its network has."""
        encoder, state = kept_decoder(folder, entry)
        return cls(TextEncoder(as_tokenizer(state["tokenizer"]), model), encoder)


def keep_decoder(folder: Path, vae: VAEEncoder, **state) -> dict:
    """An autoencoder, and `state` (JSON), in a file of their own; the entry of a card for it."""
    config = {k: v for k, v in vae.vae.config.items() if not k.startswith("_")}
    tensors = {f"vae.{key}": value for key, value in vae.vae.state_dict().items()}
    tensors["shift"] = vae.shift.flatten()
    write_tensors(folder / DECODER, tensors, {"vae": config, "scale": vae.scale, **state})
    return {"decoder": sha256(folder / DECODER)}


def kept_decoder(folder: Path, entry: dict) -> tuple[VAEEncoder, dict]:
    """What `keep_decoder` left in a folder; ValueError where it is not there."""
    file = folder / DECODER
    if not file.exists() or sha256(file) != entry["decoder"]:
        raise ValueError(
            f"{file} is missing or is not what the model was saved with: copy the whole folder of "
            "the model again."
        )
    tensors, state = read_tensors(file)
    shift = tensors.pop("shift")
    return VAEEncoder(open_vae(state["vae"], tensors), shift, state["scale"]), state
