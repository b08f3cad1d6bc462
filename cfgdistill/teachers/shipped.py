"""Models that come with the package: known by name, and checked.

They lie in data/pretrained/<data set>/<stage>/ as `training.train` leaves them, with weights in
half precision. manifest.json has the sha256 of every file. What is there already is not stored
again: bases.json names models whose weights are kept as how far they are from another one's, such
as a student's from its teacher's. See data/make_pretrained.py.
"""

import hashlib
import json
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath

import numpy as np

from cfgdistill.core.names import one_of

ROOT = Path(str(files("cfgdistill_pretrained")))


@cache
def manifest() -> dict[str, str]:
    """{path below data/pretrained: sha256} of every file of every model."""
    return json.loads((ROOT / "manifest.json").read_text(encoding="utf-8"))


@cache
def bases() -> dict[str, str]:
    """{model: the one that its weights are stored as a difference from}, by their names."""
    return json.loads((ROOT / "bases.json").read_text(encoding="utf-8"))


def names() -> list[str]:
    """What is shipped, such as "digits/stage-two/steps-4"."""
    cards = (PurePosixPath(file) for file in manifest() if file.endswith("/card.json"))
    return sorted(str(card.parent) for card in cards)


def copy_pretrained(name: str, folder: str | Path) -> Path:
    """Write the weights and the card of a shipped model into a new folder, all of it checked.

    ValueError for a name that is not shipped, OSError for a file that is damaged or missing.
    """
    one_of("shipped model", name, names())
    card, weights = checked(f"{name}/card.json"), _weights(name)
    folder = Path(folder)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "card.json").write_bytes(card)
    return folder


def shipped_card(name: str) -> dict:
    """The card of a shipped model."""
    return json.loads(checked(f"{name}/card.json"))


def checked(file: str) -> bytes:
    """What a shipped file holds: the very bytes that were compared with the manifest."""
    try:
        data = (ROOT / file).read_bytes()
    except FileNotFoundError:
        data = b""
    if hashlib.sha256(data).hexdigest() != manifest()[file]:
        raise OSError(
            f"{ROOT / file} is missing or damaged (its sha256 is not that of manifest.json): "
            "install the package again, or restore the file with git."
        )
    return data


def _weights(name: str) -> bytes:
    """The safetensors file of a shipped model, as it was before it was packed."""
    file = f"{name}/model.safetensors"
    if name not in bases():
        return checked(file)
    base = _weights(bases()[name])
    return restore(checked(file), base) if file in manifest() else base


def restore(stored: bytes, base: bytes) -> bytes:
    """A safetensors file from its difference from another one: the inverse of `difference`."""

    def change(part, other):
        folded = part.reshape(2, -1).T.ravel().view("<u2")
        places = (folded >> 1 ^ -(folded & 1)) + _place(other.view("<u2"))
        return np.where(places >> 15, places ^ 0x8000, ~places).view("uint8")

    return _across(stored, base, change)


def difference(whole: bytes, base: bytes) -> bytes:
    """A safetensors file that says how far each number is from that of `base`, if it has it too.

    Of numbers in half precision, counted in the numbers between the two, with the sign in the last
    bit: all low bytes, then all high bytes. Those are mostly 0 where a student is near its teacher,
    so that archives (a wheel, git) make little of them.
    """

    def change(part, other):
        far = _place(part.view("<u2")) - _place(other.view("<u2"))
        return (far << 1 ^ -(far >> 15)).view("uint8").reshape(-1, 2).T.ravel()

    return _across(whole, base, change)


def _place(bits: np.ndarray) -> np.ndarray:
    """The places of numbers in half precision in the order of all of them, as 16 bits."""
    return np.where(bits >> 15, ~bits, bits | 0x8000)


def _across(file: bytes, base: bytes, change) -> bytes:
    """A safetensors file with each tensor's bytes changed by those of the same one in `base`."""
    changed, other = np.frombuffer(file, "uint8").copy(), np.frombuffer(base, "uint8")
    known = _places(base)
    for key, place in _places(file).items():
        if key in known and known[key].stop - known[key].start == place.stop - place.start:
            changed[place] = change(changed[place], other[known[key]])
    return changed.tobytes()


def _places(file: bytes) -> dict[str, slice]:
    """Where the tensors of a safetensors file lie in it."""
    start = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:start])
    offsets = {key: entry["data_offsets"] for key, entry in header.items() if key[:2] != "__"}
    return {key: slice(start + first, start + last) for key, (first, last) in offsets.items()}
