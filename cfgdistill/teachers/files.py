"""Models from where they lie: a folder that `train` wrote, or the name of a shipped one.

A network that is to be found in a file announces itself with the decorator `network`, and says in
its `config` (JSON) what builds it again. So a network of your own can be loaded too.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from cfgdistill.core.denoiser import Denoiser, ranges
from cfgdistill.core.names import one_of
from cfgdistill.core.schedules import CosineSchedule, DiscreteSchedule, FlowSchedule, Schedule
from cfgdistill.data.autoencoder import VAEEncoder, open_vae
from cfgdistill.data.meaning import Classes, Prompts, kept_decoder
from cfgdistill.data.named import CIFAR10_CLASSES
from cfgdistill.data.text import TextEncoder, as_tokenizer
from cfgdistill.teachers.shipped import ROOT, checked, copy_pretrained, names, shipped_card
from cfgdistill.training.checkpoints import fingerprint, load_weights, read_card
from cfgdistill.training.environment import default_device, frozen_dtype

NETWORKS: dict[str, Callable] = {}


def network(kind: type) -> type:
    """Class decorator: `load` may build this network, by the name of its class.

    An instance has `config`, a dictionary (JSON) with that name as its entry "net". The rest of it
    goes to the class method `from_config`, where there is one, or else to the class itself.
    """
    NETWORKS[kind.__name__] = getattr(kind, "from_config", kind)
    return kind


def options(net) -> dict:
    """What builds a network of diffusers again, with random weights: all that it was made with."""
    return {key: value for key, value in net.config.items() if not key.startswith("_")}


def load(name_or_folder: str | Path, device: str | torch.device | None = None) -> Denoiser:
    """A model with all that sampling needs: a shipped name, or a folder that `train` wrote.

    It comes ready for use on `device`; None: `default_device()`. ValueError, with one sentence,
    where there is no such model or device.
    """
    device = _device(device)
    name = shipped_name(name_or_folder)
    if name is None:
        return _from_folder(Path(name_or_folder)).to(device).eval()
    with TemporaryDirectory() as own:
        return _from_folder(copy_pretrained(name, Path(own, "model"))).to(device).eval()


def card_of(name_or_folder: str | Path) -> dict:
    """The card of a model that `load` opens: what it is, and how it was made."""
    name = shipped_name(name_or_folder)
    return read_card(name_or_folder) if name is None else shipped_card(name)


def shipped_name(given: str | Path) -> str | None:
    """The shipped model that is meant; None where it is a folder.

    ValueError for a name that is both.
    """
    path, stored = Path(given), ROOT.resolve()
    if path.resolve().is_relative_to(stored):  # the place itself, where it lies packed
        name = path.resolve().relative_to(stored).as_posix()
        return name if name in names() else None
    if str(given) not in names():
        return None
    if path.exists():
        raise ValueError(
            f"{given} is a shipped model and a folder here: write ./{given} for the folder, or "
            "rename it."
        )
    return str(given)


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return default_device()
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"There is no device {str(device)!r} here: leave it out for {default_device()}."
        ) from error


def _from_folder(folder: Path) -> Denoiser:
    card = read_card(folder)
    model = card["model"]
    if "net" not in model:
        raise ValueError(f"{folder} holds no denoiser but a classifier: name another folder.")
    if not isinstance(model["net"], dict):
        raise ValueError(_no_card(folder, f"net is {model['net']!r:.60}"))
    for key, fits in KINDS.items():
        if not fits(model.get(key)):
            raise ValueError(_no_card(folder, f"{key} is {model.get(key)!r:.60}"))
    for key, fits in MEANING.items():
        if key in card.get("meaning", {}) and not fits(card["meaning"][key]):
            raise ValueError(_no_card(folder, f"{key} is {card['meaning'][key]!r:.60}"))
    with _in_words(folder):
        denoiser = build(model, card.get("recipe", {}).get("precision", "full"))
    load_weights(denoiser, folder)
    with _in_words(folder):
        denoiser.meaning = _meaning(denoiser, folder, card)
    return denoiser


@contextmanager
def _in_words(folder: Path) -> Iterator[None]:
    """Whatever diffusers, transformers or we ourselves make of a card that makes no sense."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and _is_ours(error):  # and so in a sentence
            raise
        raise ValueError(_no_card(folder, " ".join(f"{error!s:.80}".split()))) from error


def _is_ours(error: Exception) -> bool:
    """Whether this package raised it, and no library."""
    at = error.__traceback__
    while at.tb_next is not None:
        at = at.tb_next
    return at.tb_frame.f_globals.get("__name__", "").startswith("cfgdistill.")


# What the card says of a denoiser, where it says it.
KINDS = {
    "steps": lambda v: v is None or type(v) is int and v > 0,
    "sampler": lambda v: v in (None, "ddim", "stochastic", "ddim_encode"),
    "w_range": lambda v: v is None or _is_range(v) or _are_ranges(v),
    "num_classes": lambda v: v is None or type(v) is int and v > 0,
}


# What it says of what its numbers mean, likewise.
MEANING = {
    "class_names": lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v),
    "decoder": lambda v: isinstance(v, str),
    "pipeline": lambda v: isinstance(v, str),
}


def _is_range(v) -> bool:
    pair = isinstance(v, list) and len(v) == 2 and all(type(w) in (int, float) for w in v)
    return pair and v[0] <= v[1]


def _are_ranges(v) -> bool:
    return isinstance(v, list) and len(v) > 1 and all(map(_is_range, v))


def _no_card(folder: Path, why: str) -> str:
    return (
        f"The card.json in {folder} describes no network that can be built ({why}): fetch or "
        "train the model again."
    )


def build(model: dict, precision: str = "full") -> Denoiser:
    """A denoiser as its card describes it, with random weights.

    The base of low-rank changes is in half precision where it was trained so and the device gains.
    """
    model = dict(model)
    net, schedule, known = dict(model.pop("net")), model.pop("schedule"), model.pop("w_range")
    if "base" in net:
        net["half"] = frozen_dtype(precision)
    net = build_network(net)
    if known is not None:
        pairs = [tuple(map(float, pair)) for pair in ranges(known)]
        known = pairs[0] if len(pairs) == 1 else tuple(pairs)
    return Denoiser(net, _schedule(schedule), w_range=known, **model)


def build_network(config: dict):
    """The network of this configuration, with random weights; ValueError for an unknown one."""
    for module in ("mlp", "unet", "dit", "flow", "experts"):  # whose networks announce themselves
        import_module(f"cfgdistill.teachers.{module}")
    config = dict(config)
    return NETWORKS[one_of("network", config.pop("net"), NETWORKS)](**config)


def _schedule(said: str | dict) -> Schedule:
    if isinstance(said, dict) and "shift" in said:
        return FlowSchedule(said["shift"])
    if isinstance(said, dict):
        table = torch.tensor(said["alphas_cumprod"], dtype=torch.float64)
        return DiscreteSchedule(table, said.get("made_of"))
    one_of("schedule", said, ("CosineSchedule",))
    return CosineSchedule()


# ---- what its numbers mean -------------------------------------------------------------------


# Of models that were trained before their cards said it.
CLASS_NAMES = {"digits": tuple("0123456789"), "cifar10": tuple(CIFAR10_CLASSES)}


def _meaning(denoiser: Denoiser, folder: Path, card: dict):
    """What travels with a model; None where it is not known."""
    entry, recipe = card.get("meaning", {}), card.get("recipe", {})
    if denoiser.num_classes is not None:
        known = entry.get("class_names", CLASS_NAMES.get(str(recipe.get("dataset")), ()))
        vae = kept_decoder(folder, entry)[0] if "decoder" in entry else None
        return Classes(denoiser.num_classes, tuple(known), vae)
    if "decoder" in entry:
        return Prompts.kept(folder, entry, denoiser.net.text)
    base = entry.get("pipeline", recipe.get("base"))
    if base is not None:
        from cfgdistill.teachers.stable_diffusion import Pipeline

        return Pipeline(base, recipe.get("precision", "full"))
    autoencoder = card["about"].get("autoencoder")
    return None if autoencoder is None else _shipped_prompts(denoiser, recipe, autoencoder)


def _shipped_prompts(denoiser: Denoiser, recipe: dict, autoencoder: str) -> Prompts | None:
    """Those of the shipped text-to-image models, whose decoder lies beside them."""
    from safetensors.torch import load as tensors_of

    home = str(recipe.get("dataset"))
    if f"{home}/autoencoder" not in names():
        return None
    card = shipped_card(f"{home}/autoencoder")
    config = {key: value for key, value in card["model"]["net"].items() if key != "net"}
    vae = open_vae(config, tensors_of(checked(f"{home}/autoencoder/model.safetensors")))
    encoder = VAEEncoder(vae, torch.tensor(card["latents"]["shift"]), card["latents"]["scale"])
    if fingerprint(encoder) != autoencoder:
        return None
    tokenizer = as_tokenizer(json.loads(checked(f"{home}/tokenizer.json")))
    return Prompts(TextEncoder(tokenizer, denoiser.net.text), encoder)
