"""Shipped models in the place of training: copied to where a recipe's stages look for their own.

And shipped rows of tables in the place of long measurements.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from cfgdistill.course.recipes import Recipe, as_recipe, get_recipe
from cfgdistill.judge.metrics import Judge
from cfgdistill.teachers.shipped import (
    ROOT,
    checked,
    copy_pretrained,
    manifest,
    names,
    shipped_card,
)
from cfgdistill.training.checkpoints import provenance, read_card, sha256, write_json, write_text

CHANGEABLE = ("samples", "save_every")  # entries of a recipe that its models do not depend on


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
            spent.write_bytes(checked(f"{recipe.dataset}/{spent.name}"))
            spent.replace(home / spent.name)
    return replace(row, samples=recipe.samples)


def _place(name: str, target: Path) -> None:
    """A copy of a shipped model at `target`, whole at once, or what another process put there."""
    if target.exists():
        card = target / "card.json"
        if not card.exists() or card.read_bytes() != checked(
            f"{name}/card.json"
        ):  # of another version of the package, or edited
            write_text(target / "card.json", checked(f"{name}/card.json").decode())
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


def results(recipe: Recipe, out: str | Path) -> list[dict]:
    """The rows of results.json for a recipe's models, which come with the package as they do.

    [] where the models under `out` are others than the shipped ones. `make results` measures anew.
    """
    shipped = [name for name in names() if name.startswith(f"{recipe.dataset}/")]
    home = Path(out) / recipe.name
    if not all(_is_copy(home / name.removeprefix(f"{recipe.dataset}/"), name) for name in shipped):
        return []
    rows = json.loads((ROOT / "results.json").read_text(encoding="utf-8"))["rows"]
    asked = (recipe.dataset, recipe.seed)
    return [row for row in rows if (row["dataset"], row["seed"]) == asked]


def measured(
    name: str,
    make: Callable[[], list[dict]],
    recipe: Recipe,
    judge: Judge,
    out: str | Path,
    *,
    again: bool,
) -> list[dict]:
    """The rows of a measurement that takes long: as they are shipped, or as make() gives them.

    The former are those of course/<data set>-<name>.json among the shipped files. Where there is no
    such file, or with `again`, they are made, and written to out/ under that name. Prints where
    they come from, and what they cost: to measure, and to train all models of the recipe.
    """
    file = f"course/{recipe.dataset}-{name}.json"
    shipped = file in manifest() and not again
    if shipped:
        kept = json.loads(checked(file))
    else:
        started = time.perf_counter()
        rows = make()
        minutes = round((time.perf_counter() - started) / 60, 1)
        cards = (Path(out) / recipe.name).glob("**/card.json")
        trained = round(sum(read_card(card.parent)["minutes"] for card in cards), 1)
        about = provenance(
            recipe=recipe.name,
            samples=recipe.samples,
            seed=recipe.seed,
            judge=judge.name,
            reference=judge.reference,
            minutes=minutes,
            minutes_of_training=trained,
            cores=torch.get_num_threads(),
        )
        kept = {"about": about, "rows": rows}
        write_json(Path(out) / Path(file).name, kept)
    print("These rows", "come with the package:" if shipped else "were made here:")
    print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in kept["about"].items()))
    return kept["rows"]
