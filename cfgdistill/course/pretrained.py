"""Models that come with the package: known by name, checked, and copied where they are used.

They lie in data/pretrained/<data set>/<stage>/ as `training.train` leaves them, with weights in
half precision. manifest.json has the sha256 of every file. What is there already is not stored
again: bases.json names models whose weights are kept as what differs from another one's, such as
a student's from its teacher's. See data/make_pretrained.py.
"""

import hashlib
import json
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import numpy as np

from cfgdistill.core.names import one_of
from cfgdistill.course.recipes import Recipe, as_recipe, get_recipe
from cfgdistill.training.checkpoints import sha256, write_text

ROOT = Path(str(files("cfgdistill_pretrained")))
CHANGEABLE = ("samples", "save_every")  # entries of a recipe that its models do not depend on


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
    card, weights = _checked(f"{name}/card.json"), _weights(name)
    folder = Path(folder)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "card.json").write_bytes(card)
    return folder


def shipped_card(name: str) -> dict:
    """The card of a shipped model."""
    return json.loads(_checked(f"{name}/card.json"))


def _checked(file: str) -> bytes:
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
        return _checked(file)
    base = _weights(bases()[name])
    return restore(_checked(file), base) if file in manifest() else base


def restore(stored: bytes, base: bytes) -> bytes:
    """A safetensors file from its difference from another one: the inverse of `difference`."""
    return _across(stored, base, lambda part, other: part.reshape(2, -1).T.ravel() ^ other)


def difference(whole: bytes, base: bytes) -> bytes:
    """A safetensors file that says, for each tensor that `base` has too, which bits are others.

    Of numbers in half precision: all low bytes, then all high bytes. Those are mostly 0 where a
    student is near its teacher, so that archives (a wheel, git) make little of them.
    """
    return _across(whole, base, lambda part, other: (part ^ other).reshape(-1, 2).T.ravel())


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


def use_pretrained(recipe: Recipe, out: str | Path) -> Recipe:
    """The recipe of the models that are shipped for this data set, and copies of them under `out`.

    So every stage finds its work done, at whatever profile; only the number of samples in tables
    stays that of `recipe`. Where nothing is shipped, or an entry that models depend on was changed
    against the recipe's row of the table, it is `recipe` itself, and the stages train. A run of
    one's own under `out` is left alone, and goes on. Several processes may do this at once.
    """
    shipped = [name for name in names() if name.startswith(f"{recipe.dataset}/")]
    if not shipped:
        return recipe
    row = as_recipe(shipped_card(shipped[0])["recipe"])
    asked = {key: getattr(recipe, key) for key in CHANGEABLE}
    plain = (row, get_recipe(recipe.dataset, recipe.profile))
    if recipe not in [replace(known, **asked) for known in plain]:
        return recipe
    home = Path(out) / row.name
    targets = {name: home / name.removeprefix(f"{recipe.dataset}/") for name in shipped}
    if not any(target.exists() and not _is_copy(target, name) for name, target in targets.items()):
        for name, target in targets.items():
            _place(name, target)
        with TemporaryDirectory(dir=home, suffix=".tmp") as own:
            spent = Path(own) / "training.json"  # see stages.training_minutes
            spent.write_bytes(_checked(f"{recipe.dataset}/{spent.name}"))
            spent.replace(home / spent.name)
    return replace(row, samples=recipe.samples)


def _place(name: str, target: Path) -> None:
    """A copy of a shipped model at `target`, whole at once, or what another process put there."""
    if target.exists():
        card = target / "card.json"
        if not card.exists() or card.read_bytes() != _checked(
            f"{name}/card.json"
        ):  # of another version of the package, or edited
            write_text(target / "card.json", _checked(f"{name}/card.json").decode())
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, suffix=".tmp") as own:
        copy = Path(own) / target.name  # by mkdir: `own` may be entered by its owner only
        copy_pretrained(name, copy)
        try:
            copy.rename(target)
        except OSError:
            if not _is_copy(target, name):
                raise


def _is_copy(target: Path, name: str) -> bool:
    weights = target / "model.safetensors"
    return weights.exists() and sha256(weights) == shipped_card(name)["sha256"]
