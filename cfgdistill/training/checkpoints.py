"""What is kept on disk: safetensors files and JSON cards, replaced as a whole or not at all."""

import filecmp
import hashlib
import inspect
import json
import os
import platform
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn


def save_weights(model: nn.Module, folder: str | Path, about: dict, **more) -> None:
    """model.safetensors and, written last, card.json: what the weights are, and their sha256.

    `model.describe()` says what is needed to build the model again, and its `meaning`, if it has
    one, leaves there what it needs. `about` and `more` are JSON.
    """
    folder, tensors = Path(folder), weights_of(model.net)
    weights = folder / "model.safetensors"
    described = plain("What a model says of itself", model.describe())
    card = {
        "about": about,
        "model": described,
        "sha256": "",
        "model_sha256": _digest(described),
        "git_commit": git_commit(),
        "cfgdistill": version("cfgdistill"),
        "torch": torch.__version__,
        **more,
    }
    if getattr(model, "meaning", None) is not None:
        card["meaning"] = model.meaning.keep(folder)
    card = plain("A card", card)  # what cannot be kept is told before anything is written
    write_tensors(weights, tensors, {})
    if not _holds(weights, tensors):
        raise OSError(f"{weights} does not hold what was written there: see to the disk.")
    card["sha256"] = sha256(weights)
    write_json(folder / "card.json", card)


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """The state of a network, by the names it has without torch.compile."""
    return {key.replace("_orig_mod.", ""): value for key, value in net.state_dict().items()}


def fill(net: nn.Module, weights: dict[str, Tensor]) -> None:
    """What `weights_of` gave goes back, also into a compiled network; RuntimeError where it cannot.

    Every name must be there, and no other.
    """
    names = {key.replace("_orig_mod.", ""): key for key in net.state_dict()}
    net.load_state_dict({names.get(key, key): value for key, value in weights.items()})


def sha256(path: Path) -> str:
    """Of a whole file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(tree: dict) -> str:
    """Of JSON, whatever the order of its entries."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def fingerprint(model: nn.Module) -> str:
    """The first 16 digits of a sha256 over what a model is: equal for equal models only.

    Over its description, where it has one, and over the names, dtypes, shapes and bytes of all
    weights, by name: a model that was trained here may have its layers in another order than the
    same one loaded from a file.
    """
    about = identity(plain("What a model says of itself", getattr(model, "describe", dict)()))
    digest = hashlib.sha256(json.dumps([type(model).__name__, about], sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(_bits(value).numpy())
    return digest.hexdigest()[:16]


def _bits(value: Tensor) -> Tensor:
    """The bytes of a tensor, wherever it is, as a flat one on the CPU."""
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8)


# Networks that describe themselves by all the options of a class of diffusers.
OF_DIFFUSERS = {
    **dict.fromkeys(("ClassUNet", "TextUNet", "LoraUNet"), "UNet2DConditionModel"),
    "UNet2D": "UNet2DModel",
    "DiT": "DiTTransformer2DModel",
    "Flux": "FluxTransformer2DModel",
}


def identity(tree):
    """What a description (JSON) says that makes a thing this one, whoever wrote it down, and where.

    "made_of" stands for all that is beside it: numbers that were computed have other last bits on
    another CPU, so whoever computes them says what they were made of, and they are known by that.
    Options of diffusers' networks do not count at their defaults: its next version has more.
    """
    if not isinstance(tree, dict):
        return tree
    if "made_of" in tree:
        return identity(tree["made_of"])
    usual = _defaults(tree.get("net"))
    return {key: identity(v) for key, v in tree.items() if key not in usual or v != usual[key]}


def _defaults(kind) -> dict:
    """The options of a network with the values that they have unless they are given (JSON)."""
    if not isinstance(kind, str) or kind not in OF_DIFFUSERS:
        return {}
    import diffusers

    options = inspect.signature(getattr(diffusers, OF_DIFFUSERS[kind])).parameters.values()
    return plain("An option", {o.name: o.default for o in options if o.default is not o.empty})


# What every card has, and what its entries are, where they are there.
NEEDED = ("about", "model", "sha256")
KINDS = {
    "about": dict,
    "model": dict,
    "sha256": str,
    "model_sha256": str,
    "recipe": dict,
    "meaning": dict,
    "minutes": (int, float),
    "cores": int,
    "losses": list,
}


def read_card(folder: str | Path) -> dict:
    """The card of a finished model; ValueError where there is none that can be read.

    A card may come from anywhere, so it is taken as data: nothing in it is run or fetched.
    """
    file = Path(folder) / "card.json"
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        wrong = _wrong(card)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            f"{folder} holds no finished model of cfgdistill (it has no card.json): train it "
            "first, or name the folder that `train` wrote."
        ) from error
    except OSError as error:
        raise ValueError(
            f"{file} cannot be read ({error.strerror}): see to its permissions and to the disk."
        ) from error
    except (ValueError, RecursionError) as error:
        wrong = f"it is no JSON that can be read: {error}"
    if wrong:
        raise ValueError(
            f"{folder} holds no finished model of cfgdistill, for its card.json is not one of "
            f"ours ({wrong}): name another folder."
        )
    return card


def _wrong(card) -> str | None:
    """What keeps this from being a card; None if nothing does."""
    if not isinstance(card, dict):
        return "it is no dictionary"
    for key in NEEDED:
        if key not in card:
            return f"it has no {key}"
    for key, kind in KINDS.items():
        if key in card and (not isinstance(card[key], kind) or isinstance(card[key], bool)):
            return f"its {key} is {_short(card[key])}"
    if not all(type(loss) in (int, float) for loss in card.get("losses", [])):
        return "its losses are no numbers"
    if card.get("model_sha256", _digest(card["model"])) != _digest(card["model"]):
        return "its model was changed: the model_sha256 differs"
    return None


def load_weights(model: nn.Module, folder: str | Path, about: dict | None = None) -> dict:
    """Fill `model.net` from a finished folder and return its card.

    ValueError where the file is damaged, belongs to another network, or (with `about`) to
    another recipe.
    """
    folder, card = Path(folder), read_card(folder)
    if about is not None:
        refuse_other(folder, card["about"], about)
    weights = folder / "model.safetensors"
    before = _mark(weights)
    tensors, _ = read_tensors(weights)
    # What was read is what is hashed: the file is still the same one.
    if sha256(weights) != card["sha256"] or _mark(weights) != before:
        raise ValueError(
            f"{weights} is not the file that its card.json describes (the sha256 differs): "
            "fetch or train it again."
        )
    try:
        fill(model.net, tensors)
    except RuntimeError as error:
        raise ValueError(
            f"{weights} holds the weights of another network: build the one its card describes."
        ) from error
    return card


def refuse_other(folder: Path, found: dict | None, wanted: dict) -> None:
    """ValueError where a folder holds the work of another recipe, naming the first difference."""
    # Through JSON, as the file went: tuples become lists.
    trees = found or {}, plain("What a run is about", wanted)
    known = [_flat(identity(tree)) for tree in trees]
    for key in sorted(known[0].keys() | known[1].keys()):
        if known[0].get(key) != known[1].get(key):
            said = [_flat(tree) | own for tree, own in zip(trees, known, strict=True)]
            there, here = (_short(flat.get(key)) for flat in said)
            raise ValueError(
                f"{folder} holds another run: {key} is {there} there and {here} here. "
                "Choose another folder, or delete this one."
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
    """A safetensors file with JSON in its header, replaced as a whole or not at all.

    Tensors that share memory, as tied weights do, come back as copies.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    apart, seen = {}, set()
    for key, value in tensors.items():
        value = value.detach().contiguous()
        place = (value.device, value.untyped_storage().data_ptr())
        apart[key] = value.clone() if place in seen else value
        seen.add(place)
    header = {"state": json.dumps(plain("what is kept with tensors", state))}
    with _replaced(path) as tmp:
        try:
            save_file(apart, tmp, header)
        except SafetensorError as error:  # all that it says of a disk
            raise OSError(str(error)) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors and the JSON of `write_tensors`; ValueError where the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with open(path, "rb"):  # what the system says, in its own words
            pass
        # Not through mmap, under which a process dies where somebody shortens the file.
        with safe_open(path, "pt", backend="pread") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            return tensors, json.loads((file.metadata() or {}).get("state", "{}"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: restore it, or train it again.") from error
    except OSError as error:  # what could not be read may well be whole
        raise OSError(
            f"{path} cannot be read ({error.strerror}): what is in it is not lost; see to its "
            "permissions and to the disk."
        ) from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): it is truncated or not a checkpoint. "
            "Delete it to start again."
        ) from error


def _holds(path: Path, tensors: dict[str, Tensor]) -> bool:
    """Whether a file has these very tensors, to the bit."""
    try:
        found, _ = read_tensors(path)
    except ValueError:
        return False
    return found.keys() == tensors.keys() and all(
        torch.equal(_bits(found[key]), _bits(value)) for key, value in tensors.items()
    )


def _mark(path: Path) -> tuple | None:
    """What is another for another file of this name, and for one that was changed."""
    if not path.exists():
        return None
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns


def write_text(path: Path, text: str) -> None:
    """A text file in UTF-8, replaced as a whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, tree) -> None:
    """A tree of plain values, replaced as a whole or not at all."""
    write_text(Path(path), json.dumps(tree, indent=1))


def write_bytes(path: Path, content: bytes) -> None:
    """A file, replaced as a whole or not at all."""
    with _replaced(path) as tmp:
        tmp.write_bytes(content)


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A file to write beside `path`; flushed to the disk and renamed, so no reader sees half a one.

    Any number of processes may write the same file at once; the last one's is kept. OSError, with
    one sentence, where it cannot be done.
    """
    # Under a name of its own, as others may be writing, and open for all whom the umask allows.
    tmp = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp.touch(exist_ok=False)
        mode = tmp.stat().st_mode
        yield tmp
        tmp.chmod(mode)  # safetensors makes one that only its owner may read
        with open(tmp, "r+b") as file:
            os.fsync(file.fileno())
        try:
            os.replace(tmp, path)
        except PermissionError:  # Windows, while somebody reads it
            if not filecmp.cmp(path, tmp, shallow=False):
                raise
    except OSError as error:
        raise OSError(
            f"{path} could not be written ({error}); what was there before is untouched. "
            "Free some space, or choose another folder."
        ) from error
    finally:
        with suppress(OSError):
            tmp.unlink()


def plain(what: str, tree: dict) -> dict:
    """`tree` as it comes back from a JSON file; ValueError where it cannot be kept in one."""
    try:
        return json.loads(json.dumps(tree))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{what} is kept as JSON, in numbers, text, lists and dictionaries, and this is not: "
            f"{error}."
        ) from error


@contextmanager
def alone(file: Path, wait: float = -1.0) -> Iterator[None]:
    """Hold a lock for as long as this lasts, after waiting for it for up to `wait` seconds.

    The system lets go of it when a process dies, however it dies. BlockingIOError, which says who
    has it, where it cannot be had; `wait` < 0 waits for ever.
    """
    from filelock import FileLock, Timeout

    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, thread_local=False)  # a generator may be closed by another thread
    try:
        lock.acquire(timeout=wait)
    except Timeout as error:
        raise BlockingIOError(f"{file} is held by {_holder(file)}") from error
    try:
        with suppress(OSError):  # Windows lets nobody write to what is locked
            file.write_text(f"process {os.getpid()} on {platform.node()}")
        yield
    finally:
        with suppress(OSError):  # before it is let go, or it might be another's
            file.unlink()
        lock.release()


def _holder(file: Path) -> str:
    try:
        return file.read_text() or "another process"
    except OSError:
        return "another process"


def provenance(**more) -> dict:
    """What a reader needs to repeat a run: versions, git commit, and whatever else is given."""
    versions = {name: version(name) for name in ("cfgdistill", "torch", "diffusers", "accelerate")}
    return {"python": platform.python_version(), **versions, "git_commit": git_commit(), **more}


def git_commit() -> str | None:
    """The commit of the checkout this package runs from, with + where it has local changes.

    None where this very file is not tracked: a repository around an environment is another's.
    """
    here = Path(__file__)
    try:
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", here.name],
            cwd=here.parent,
            capture_output=True,
            check=True,
            timeout=10,
        )
        answer = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            cwd=here.parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
