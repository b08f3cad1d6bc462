"""Finished models of a run become those that are shipped: data/pretrained/<data set>/.

    python data/make_pretrained.py out/demo/digits-laptop [STAGE ...]

All stages of the run, or those named (stage-two/steps-4, ...). Weights are halved to 16 bits, but
not those of autoencoders: latents, and what was trained on them, are known by their hash. A card
names the file of its teacher, which is another file now, so cards are rewritten from the teacher
down. Students that draw from text are folders of stock diffusers, with the card beside; what they
have in common lies in one of them, and the others link to it. A README.md says what the models are;
manifest.json gets the sha256 of every file.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from cfgdistill import stages
from cfgdistill.checkpoints import read_card, read_tensors, sha256, write_tensors, write_text
from cfgdistill.config import as_recipe
from cfgdistill.encoders import TextEncoder
from cfgdistill.export import export
from cfgdistill.unets import load

ROOT = Path(__file__).resolve().parent / "pretrained"
MOST_FILE, MOST = 16_000_000, 120_000_000  # bytes
LINKED = 10_000  # bytes: below, a copy costs nothing
ORDER = ("autoencoder", "classifier", "teacher", "stage-one", *stages.FOLDERS.values())


def main(run: Path, only: list[str]) -> None:
    found = {
        card.parent.relative_to(run).as_posix(): card.parent for card in run.rglob("card.json")
    }
    if missing := [name for name in only if name not in found]:
        raise SystemExit(f"{run} has no finished {missing[0]}: it has {', '.join(sorted(found))}.")
    all_cards = {name: read_card(folder) for name, folder in found.items()}
    cards = {name: all_cards[name] for name in only or sorted(found)}
    shipped = dict(cards)
    counted = [name for name in found if name.partition("/")[0] in ORDER]  # no comparisons
    spent: dict[str, dict] = {}
    for name in sorted(counted, key=_order):
        card = all_cards[name]
        cost = {key: card[key] for key in ("minutes", "cores")}
        spent[name] = {"updates": card["about"]["updates"], **cost}
    recipe = as_recipe(next(iter(cards.values()))["recipe"])
    home = ROOT / recipe.dataset
    shutil.rmtree(home, ignore_errors=True)
    sha: dict[str, str] = {}  # of a file in 32 bits: that of the same in 16
    while cards:
        ready = [n for n, c in cards.items() if c["about"].get("teacher", None) in (None, *sha)]
        if not ready:
            raise SystemExit(f"The teacher of {', '.join(cards)} is not among what is shipped.")
        for name in ready:
            card, target = cards.pop(name), home / name
            tensors, state = read_tensors(found[name] / "model.safetensors")
            if name != "autoencoder":
                tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
            write_tensors(target / "model.safetensors", tensors, state)
            before = card["sha256"]
            card["sha256"] = sha256(target / "model.safetensors")
            sha[before] = card["sha256"]
            if "teacher" in card["about"]:
                card["about"]["teacher"] = sha[card["about"]["teacher"]]
            write_text(target / "card.json", json.dumps(card, indent=1))
    if recipe.autoencoder:
        data = stages.load_recipe_data(recipe, run.parent)
        for name in (name for name in shipped if name.startswith(f"{stages.FOLDERS['ddim']}/")):
            _as_stock(home / name, data, about_of(shipped[name]))
    write_text(home / "training.json", json.dumps(spent, indent=1) + "\n")  # of all stages
    write_text(home / "README.md", model_card(recipe, list(shipped), spent))
    files = sorted(path for path in ROOT.rglob("*/*") if path.is_file())
    hashes = {path.relative_to(ROOT).as_posix(): sha256(path) for path in files}
    _link_copies(hashes)
    sizes = {path: path.lstat().st_size for path in files}
    if large := [str(path) for path, size in sizes.items() if size > MOST_FILE]:
        raise SystemExit(f"Too large to ship: {', '.join(large)}.")
    if sum(sizes.values()) > MOST:
        raise SystemExit(f"{sum(sizes.values()) / 1e6:.0f} MB in all are too much to ship.")
    write_text(ROOT / "manifest.json", json.dumps(hashes, indent=1) + "\n")


def _link_copies(hashes: dict[str, str]) -> None:
    """A large file that lies in an earlier folder too, to the bit, becomes a link to that one."""
    first: dict[str, Path] = {}
    for name, known in hashes.items():
        path = ROOT / name
        kept = first.setdefault(known, path)
        if kept != path and not path.is_symlink() and path.stat().st_size > LINKED:
            path.unlink()
            path.symlink_to(os.path.relpath(kept, path.parent))


def _as_stock(folder: Path, data, about: dict) -> None:
    """A student's folder becomes one of stock diffusers, in 16 bits, with its card beside.

    `pretrained` puts its weights together again, to the same file.
    """
    student = load(folder)
    text = TextEncoder(data.text.tokenizer, student.net.text)
    export(student, folder, vae=data.vae, text=text, about=about)
    for file in folder.glob("*/*.safetensors"):
        save_file({k: v.half() for k, v in load_file(file).items()}, file, {"format": "pt"})
    (folder / "model.safetensors").unlink()


def _order(name: str) -> tuple:
    """As they were trained: by stage, then from many steps down."""
    part, _, student = name.partition("/")
    steps = int(student.removeprefix("steps-") or 0)
    return ORDER.index(part), -steps


def about_of(card: dict) -> dict:
    """What the card of a pipeline says about how it was made."""
    about = {"recipe": as_recipe(card["recipe"]).name, "updates": card["about"]["updates"]}
    return about | {"minutes": card["minutes"], "teacher": card["about"]["teacher"]}


LICENCES = {
    "digits": "Optical recognition of handwritten digits (Alpaydin and Kaynak 1998, CC BY 4.0), as "
    "they come with scikit-learn.",
    "cifar10": "CIFAR-10 (Krizhevsky 2009), made for research; its collectors name no licence.",
    "emoji": "Noto colour emoji (SIL Open Font License 1.1) and their names in Unicode's CLDR.",
}


def model_card(recipe, shipped: list[str], spent: dict[str, dict]) -> str:
    """What the models of one data set are, what they cost, and how they are used."""
    first = "stage-two/steps-4" if "stage-two/steps-4" in shipped else shipped[0]
    rows = [
        f"| {name} | {one['updates']:,} | {one['minutes']:.1f} | {one['cores']} | "
        f"{'yes' * (name in shipped)} |"
        for name, one in spent.items()
    ]
    stock = "- *Without this package*: `DiffusionPipeline.from_pretrained` opens each folder of\n"
    stock = stock + "  `stage-two/`.\n" if recipe.autoencoder else ""
    return f"""# {recipe.dataset}: models that come with cfgdistill

Trained from scratch with this package, after "On Distillation of Guided Diffusion Models" (Meng et
al., CVPR 2023). Weights are in half precision, those of autoencoders in single. Made by
[`make_pretrained.py`](../../make_pretrained.py); `../manifest.json` has the sha256 of every file.

| model | updates | minutes | CPU cores | in this folder |
| --- | --- | --- | --- | --- |
{chr(10).join(rows)}

- *Recipe*: {recipe}. The `card.json` in each folder has every entry.
- *Trained on*: {LICENCES[recipe.dataset]}
- *Licence of the models*: Apache-2.0, as the package.
- *Guidance*: students take w in [{recipe.w_min:g}, {recipe.w_max:g}].
- *Results*: the tables in the project's README, from `../results.json`.
- *Use*: `python -m cfgdistill sample {recipe.dataset}/{first} --w 1`. Notebooks find them.
{stock}- *Not for*: anything but learning how distillation works. They are small.
"""


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
