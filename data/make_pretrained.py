"""Finished models of a run become those that are shipped: data/pretrained/<data set>/.

    python data/make_pretrained.py out/demo/digits-laptop [STAGE ...]
    python data/make_pretrained.py out/digits-seeds.json

All stages of the run, or those named (stage-two/steps-4, ...). Weights are halved to 16 bits, but
not those of autoencoders: latents, and what was trained on them, are known by their hash. A card
names the file of its teacher, which is another file now, so cards are rewritten from the teacher
down. Then weights are packed: what is near its teacher, or the student of twice the steps, is
stored as the difference, and an equal one not at all; bases.json names those models. A README.md
says what the models are; manifest.json gets the sha256 of every file. All of it is made beside
what was there before, which goes last. The second form ships the rows of a measurement that a
notebook made.
"""

import json
import sys
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

from cfgdistill.course import stages
from cfgdistill.course.recipes import as_recipe
from cfgdistill.data.meaning import DECODER
from cfgdistill.teachers.shipped import difference
from cfgdistill.training.checkpoints import (
    read_card,
    read_tensors,
    sha256,
    write_tensors,
    write_text,
)

ROOT = Path(__file__).resolve().parent / "pretrained"
MOST_FILE, MOST = 16_000_000, 100_000_000  # bytes; of all, compressed: PyPI takes wheels up to that
WORTH = 0.9  # a difference is stored if it is smaller than this part of the whole, compressed
ORDER = ("autoencoder", "classifier", "teacher", "eps-base", "stage-one", *stages.FOLDERS.values())
ORDER += ("stage-one-negatives", "stage-two-negatives")


def main(run: Path, only: list[str]) -> None:
    found = {
        card.parent.relative_to(run).as_posix(): card.parent for card in run.rglob("card.json")
    }
    if missing := [name for name in only if name not in found]:
        raise SystemExit(f"{run} has no finished {missing[0]}: it has {', '.join(sorted(found))}.")
    all_cards = {name: read_card(folder) for name, folder in found.items()}
    cards = {name: all_cards[name] for name in only or sorted(found)}
    shipped = list(cards)
    counted = [name for name in found if name.partition("/")[0] in ORDER]  # no comparisons
    costs = run / "training.json"  # of copies of shipped models, whose older cards do not say it
    spent = json.loads(costs.read_text()) if costs.exists() else {}
    for name in counted:
        card = all_cards[name]
        if "cores" in card:
            cost = {key: card[key] for key in ("minutes", "cores")}
            spent[name] = {"updates": card["about"]["updates"], **cost}
    spent = {name: spent[name] for name in sorted({*spent, *counted}, key=_order)}
    recipe = as_recipe(next(iter(cards.values()))["recipe"])
    ROOT.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=ROOT.parent, suffix=".tmp") as beside:
        made = Path(beside) / recipe.dataset
        sha: dict[str, str] = {}  # of a file in 32 bits: that of the same in 16
        while cards:
            # Low-rank changes are taught by a base, which is known by its weights.
            known = (None, *sha, *(c["model"].get("net", {}).get("sha") for c in cards.values()))
            ready = [n for n, c in cards.items() if c["about"].get("teacher") in known]
            if not ready:
                raise SystemExit(f"The teacher of {', '.join(cards)} is not among what is shipped.")
            for name in ready:
                card, target = cards.pop(name), made / name
                tensors, state = read_tensors(found[name] / "model.safetensors")
                if name != "autoencoder":
                    tensors = {
                        k: v.half() if v.is_floating_point() else v for k, v in tensors.items()
                    }
                write_tensors(target / "model.safetensors", tensors, state)
                before = card["sha256"]
                card["sha256"] = sha256(target / "model.safetensors")
                sha[before] = card["sha256"]
                if "decoder" in card.get("meaning", {}):  # which is the autoencoder, shipped once
                    kept = read_tensors(found[name] / DECODER)[1]
                    write_text(made / "tokenizer.json", json.dumps(kept["tokenizer"]) + "\n")
                    del card["meaning"]
                if card["about"].get("teacher") in sha:
                    card["about"]["teacher"] = sha[card["about"]["teacher"]]
                write_text(target / "card.json", json.dumps(card, indent=1))
        write_text(made / "training.json", json.dumps(spent, indent=1) + "\n")  # of all stages
        write_text(made / "README.md", model_card(recipe, shipped, spent))
        ship(made)


def ship(made: Path) -> None:
    """What was made of a data set is packed, and takes the place of what was shipped of it."""
    home = ROOT / made.name
    kept = [p for p in ROOT.glob("*/**/*") if p.is_file() and home not in p.parents]
    file = ROOT / "bases.json"
    bases = json.loads(file.read_text()) if file.exists() else {}
    bases = {k: v for k, v in bases.items() if k.partition("/")[0] != made.name} | pack(made)
    new = [path for path in made.rglob("*") if path.is_file()]
    if large := [path.name for path in new if path.stat().st_size > MOST_FILE]:
        raise SystemExit(f"Too large to ship: {', '.join(large)}.")
    wheel = sum(map(_compressed, [*kept, *new, *(ROOT.parent / "emoji").glob("*")]))
    if wheel > MOST:
        raise SystemExit(f"A wheel of {wheel / 1e6:.0f} MB is too much to ship.")
    hashes = {path.relative_to(ROOT).as_posix(): sha256(path) for path in kept}
    hashes |= {path.relative_to(made.parent).as_posix(): sha256(path) for path in new}
    if home.exists():
        home.rename(made.parent / "before")  # goes with the temporary folder
    made.rename(home)
    write_text(file, json.dumps(dict(sorted(bases.items())), indent=1) + "\n")
    write_text(ROOT / "manifest.json", json.dumps(dict(sorted(hashes.items())), indent=1) + "\n")


def pack(home: Path) -> dict[str, str]:
    """Weights that are near those of another model become the difference: {model: the other}."""
    cards = {file.parent.relative_to(home).as_posix(): file for file in home.rglob("card.json")}
    cards = {name: json.loads(cards[name].read_text()) for name in sorted(cards, key=_order)}
    files = {name: home / name / "model.safetensors" for name in cards}
    whole = {name: file.read_bytes() for name, file in files.items()}
    known, before, bases = {card["sha256"]: name for name, card in cards.items()}, "", {}
    for name, card in cards.items():
        base = known.get(card["about"].get("teacher"))
        if "/" in name and before.partition("/")[0] == name.partition("/")[0]:
            base = before  # the student of twice the steps, or more
        before = name
        if base is None:
            continue
        stored = difference(whole[name], whole[base])
        if whole[name] == whole[base]:
            files[name].unlink()
        elif len(zlib.compress(stored)) < WORTH * len(zlib.compress(whole[name])):
            files[name].write_bytes(stored)
        else:
            continue
        bases[f"{home.name}/{name}"] = f"{home.name}/{base}"
    return bases


def _compressed(path: Path) -> int:
    return len(zlib.compress(path.read_bytes())) if path.is_file() else 0


def _order(name: str) -> tuple:
    """As they were trained: by stage, then from many steps down."""
    part, _, student = name.partition("/")
    steps = int(student.removeprefix("steps-") or 0)
    return ORDER.index(part) if part in ORDER else len(ORDER), part, -steps


LICENCES = {
    "digits": "Optical recognition of handwritten digits (Alpaydin and Kaynak 1998, CC BY 4.0), as "
    "they come with scikit-learn.",
    "cifar10": "CIFAR-10 (Krizhevsky 2009), made for research; its collectors name no licence.",
    "sd": "what `emoji/eps-base` knows, see [data/make_eps_base.py](../../make_eps_base.py).",
    "emoji": "Noto colour emoji (SIL Open Font License 1.1) and their names in Unicode's CLDR.",
}


def model_card(recipe, shipped: list[str], spent: dict[str, dict]) -> str:
    """What the models of one data set are, what they cost, and how they are used."""
    asked = " --prompt octopus" if recipe.track in ("emoji", "sd") else ""
    first = "stage-two/steps-4" if "stage-two/steps-4" in shipped else shipped[0]
    rows = [
        f"| {name} | {one['updates']:,} | {one['minutes']:.1f} | {one['cores']} | "
        f"{'yes' * (name in shipped)} |"
        for name, one in spent.items()
    ]
    told = any(name.startswith("stage-two-negatives") for name in shipped)
    negative = "; those in stage-two-negatives also what they shall not draw" if told else ""
    return f"""# {recipe.dataset}: models that come with cfgdistill

Trained from scratch with this package, after "On Distillation of Guided Diffusion Models" (Meng et
al., CVPR 2023). Weights are in half precision, those of autoencoders in single. Models that
`../bases.json` names are stored as how far they are from another one's: use them by name.
Made by [`make_pretrained.py`](../../make_pretrained.py); `../manifest.json` has the sha256 of every
file.

| model | updates | minutes | CPU cores | in this folder |
| --- | --- | --- | --- | --- |
{chr(10).join(rows)}

- *Recipe*: {recipe}. The `card.json` in each folder has every entry.
- *Trained on*: {LICENCES[recipe.dataset]}
- *Licence of the models*: Apache-2.0, as the package.
- *Guidance*: students take w in [{recipe.w_min:g}, {recipe.w_max:g}]{negative}.
- *Results*: the tables in the project's README, from `../results.json`.
- *Use*: `python -m cfgdistill sample {recipe.dataset}/{first}{asked} --w 1`. Notebooks find them.
- *Without this package*: `python -m cfgdistill export {recipe.dataset}/{first} --to FOLDER`
  writes a folder that stock diffusers opens.
- *Not for*: anything but learning how distillation works. They are small.
"""


def ship_rows(file: Path) -> None:
    """Rows as `pretrained.measured` writes them, for those who do not measure them again."""
    target = ROOT / "course" / file.name
    write_text(target, file.read_text())
    hashes = json.loads((ROOT / "manifest.json").read_text())
    hashes[target.relative_to(ROOT).as_posix()] = sha256(target)
    write_text(ROOT / "manifest.json", json.dumps(dict(sorted(hashes.items())), indent=1) + "\n")


if __name__ == "__main__":
    given = Path(sys.argv[1])
    ship_rows(given) if given.suffix == ".json" else main(given, sys.argv[2:])
