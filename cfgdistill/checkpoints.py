"""What is kept on disk: safetensors files and JSON cards, replaced as a whole or not at all."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn


def save_weights(model: nn.Module, folder: str | Path, about: dict, **more) -> None:
    """model.safetensors and, written last, card.json: what the weights are, and their sha256.

    `model.describe()` says what is needed to build the model again.
    """
    folder = Path(folder)
    weights = folder / "model.safetensors"
    write_tensors(weights, model.net.state_dict(), {})
    card = {
        "about": about,
        "model": model.describe(),
        "sha256": sha256(weights),
        "git_commit": git_commit(),
        "torch": torch.__version__,
        **more,
    }
    write_text(folder / "card.json", json.dumps(card, indent=1))


def sha256(path: Path) -> str:
    """Of a whole file, as 64 hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fingerprint(model: nn.Module) -> str:
    """The first 16 digits of a sha256 over what a model is: equal for equal models only.

    Over its description, where it has one, and over the names, dtypes, shapes and bytes of all
    weights, by name: a model that was trained here may have its layers in another order than the
    same one loaded from a file.
    """
    about = without_computed(getattr(model, "describe", dict)())
    digest = hashlib.sha256(json.dumps([type(model).__name__, about], sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def without_computed(tree):
    """A description (JSON) in which "made_of" stands for all that it describes.

    Numbers that were computed have other last bits on another CPU, so whoever computes them says
    beside them what they were made of, and they are known by that.
    """
    if not isinstance(tree, dict):
        return tree
    if "made_of" in tree:
        return without_computed(tree["made_of"])
    return {key: without_computed(value) for key, value in tree.items()}


def read_card(folder: str | Path) -> dict:
    """The card of a finished model; ValueError where there is none that can be read."""
    try:
        card = json.loads((Path(folder) / "card.json").read_text())
        card["about"], card["model"], card["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} holds no finished model of cfgdistill (its card.json is missing or "
            "unreadable): train it first, or name the folder that `train` wrote."
        ) from error
    return card


def load_weights(model: nn.Module, folder: str | Path, about: dict | None = None) -> dict:
    """Fill `model.net` from a finished folder and return its card.

    ValueError where the file is damaged, belongs to another network, or (with `about`) to
    another recipe.
    """
    folder, card = Path(folder), read_card(folder)
    if about is not None:
        refuse_other(folder, card["about"], about)
    weights = folder / "model.safetensors"
    tensors, _ = read_tensors(weights)
    if sha256(weights) != card["sha256"]:
        raise ValueError(
            f"{weights} is not the file that its card.json describes (the sha256 differs): "
            "fetch or train it again."
        )
    try:
        model.net.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"{weights} holds the weights of another network: build the one its card describes."
        ) from error
    return card


def refuse_other(folder: Path, found: dict | None, wanted: dict) -> None:
    """ValueError where a folder holds the work of another recipe, naming the first difference."""
    # Through JSON, as the file went: tuples become lists.
    wanted, found = json.loads(json.dumps(wanted)), found or {}
    wanted, found = _flat(without_computed(wanted)), _flat(without_computed(found))
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise ValueError(
                f"{folder} holds another run: {key} is {_short(found.get(key))} there and "
                f"{_short(wanted.get(key))} here. Choose another folder, or delete this one."
            )


def _short(value) -> str:
    """As Python writes it, but not the thousand numbers of a schedule."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _flat(tree: dict, prefix: str = "") -> dict:
    """{"net": {"size": 8}} -> {"net.size": 8}, so that a difference can be named shortly."""
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def write_tensors(path: Path, tensors: dict[str, Tensor], state: dict) -> None:
    """A safetensors file with JSON in its header, replaced as a whole or not at all."""
    from safetensors.torch import save

    tensors = {key: value.detach().contiguous() for key, value in tensors.items()}
    # Not save_file, which makes a file that only its owner may read.
    _write(path, lambda tmp: tmp.write_bytes(save(tensors, {"state": json.dumps(state)})))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors and the JSON of `write_tensors`; ValueError where the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            state = json.loads((file.metadata() or {}).get("state", "{}"))
            return {key: file.get_tensor(key) for key in file.keys()}, state  # noqa: SIM118
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): it is truncated or not a checkpoint. "
            "Delete it to start again."
        ) from error


def write_text(path: Path, text: str) -> None:
    """A text file, replaced as a whole or not at all."""
    _write(path, lambda tmp: tmp.write_text(text))


def write_bytes(path: Path, content: bytes) -> None:
    """A file, replaced as a whole or not at all."""
    _write(path, lambda tmp: tmp.write_bytes(content))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path`, flush to the disk, then rename: a reader never sees half a file."""
    tmp = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(tmp)
        with open(tmp, "rb") as file:
            os.fsync(file.fileno())
        os.replace(tmp, path)
    except Exception as error:
        with suppress(OSError):
            tmp.unlink()
        raise OSError(
            f"{path} could not be written ({error}); what was there before is untouched. "
            "Free some space, or choose another folder."
        ) from error


def provenance(**more) -> dict:
    """What a reader needs to repeat a run: versions, git commit, and whatever else is given."""
    versions = {name: version(name) for name in ("torch", "diffusers", "accelerate")}
    return {"python": platform.python_version(), **versions, "git_commit": git_commit(), **more}


def git_commit() -> str | None:
    """The commit of the checkout this package runs from, with + where it has local changes."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
