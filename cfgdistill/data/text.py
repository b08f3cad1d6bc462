"""From captions to tokens and embeddings: CLIP text models, and vocabularies made from captions."""

import json
import warnings
from collections.abc import Iterable, Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from cfgdistill.training.randomness import seeded

Tokens = Int[Tensor, " b n"]


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


def described(tokenizer) -> dict:
    """What `as_tokenizer` needs to build a CLIP tokenizer again (JSON)."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    length = tokenizer.model_max_length
    return {"vocab": model["vocab"], "merges": model["merges"], "length": length}


def as_tokenizer(said: dict):
    """The CLIP tokenizer of this description."""
    from transformers import CLIPTokenizer

    merges = [tuple(pair) for pair in said["merges"]]
    return CLIPTokenizer(said["vocab"], merges, model_max_length=said["length"])


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
