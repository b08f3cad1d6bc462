"""Models that come with the package: known by name, checked against a manifest.

They lie in data/pretrained/<data set>/<stage>/ as `training.train` leaves them, with weights in
half precision, and manifest.json has the sha256 of every file. Students that draw from text are
folders of stock diffusers there, which share some files by links. See data/make_pretrained.py.
"""

import json
import shutil
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path

from cfgdistill.checkpoints import read_card, sha256, write_tensors
from cfgdistill.config import Recipe, as_recipe, one_of

ROOT = Path(str(files("cfgdistill_pretrained")))


@cache
def manifest() -> dict[str, str]:
    """{path below data/pretrained: sha256} of every file of every model."""
    return json.loads((ROOT / "manifest.json").read_text())


def names() -> list[str]:
    """What `pretrained` finds, such as "digits/stage-two/steps-4"."""
    return sorted(str(Path(file).parent) for file in manifest() if file.endswith("/card.json"))


def pretrained(name: str) -> Path:
    """The folder of a shipped model, all of its files checked; `use_pretrained` makes a copy.

    ValueError for a name that is not shipped, OSError for a file that is damaged or missing.
    """
    one_of("shipped model", name, names())
    for file, known in manifest().items():
        path = ROOT / file
        if not file.startswith(f"{name}/"):
            continue
        if not path.exists() or sha256(path) != known:
            raise OSError(
                f"{path} is missing or damaged (its sha256 is not that of manifest.json): install "
                "the package again, or restore the file with git (on Windows with core.symlinks)."
            )
    return ROOT / name


def use_pretrained(recipe: Recipe, out: str | Path) -> Recipe:
    """The recipe of the models that are shipped for this data set, and copies of them under `out`.

    So every stage finds its work done, at whatever profile; only the number of samples in tables
    stays that of `recipe`. Where nothing is shipped, or another seed is asked for, it is `recipe`
    itself, and the stages train. A run of one's own under `out` is left alone, and goes on.
    """
    shipped = [name for name in names() if name.startswith(f"{recipe.dataset}/")]
    if not shipped:
        return recipe
    row = as_recipe(read_card(ROOT / shipped[0])["recipe"])
    if recipe.seed != row.seed:
        return recipe
    home = Path(out) / row.name
    targets = {name: home / name.removeprefix(f"{recipe.dataset}/") for name in shipped}
    own = any(target.exists() and not _is_copy(target, name) for name, target in targets.items())
    for name, target in targets.items():
        if not own and not target.exists():
            tmp = target.with_name(target.name + ".tmp")
            shutil.rmtree(tmp, ignore_errors=True)  # of a process that was killed here
            _copy(pretrained(name), tmp)
            tmp.rename(target)
    if not own:
        shutil.copy(ROOT / recipe.dataset / "training.json", home)  # see stages.training_minutes
    return replace(row, samples=recipe.samples)


def _is_copy(target: Path, name: str) -> bool:
    finished = (target / "card.json").exists()
    return finished and read_card(target)["sha256"] == read_card(ROOT / name)["sha256"]


def _copy(shipped: Path, to: Path) -> None:
    """The weights and the card, whose parts may be those of a folder of stock diffusers."""
    to.mkdir(parents=True)
    if (shipped / "model.safetensors").exists():
        shutil.copy(shipped / "model.safetensors", to)
    else:
        from safetensors.torch import load_file

        parts = {"unet": "unet/diffusion_pytorch_model", "text": "text_encoder/model"}
        weights = {
            f"{part}.{key}": value
            for part, file in parts.items()
            for key, value in load_file(shipped / f"{file}.safetensors").items()
        }
        write_tensors(to / "model.safetensors", weights, {})
    shutil.copy(shipped / "card.json", to)
