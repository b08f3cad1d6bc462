"""`python -m cfgdistill`: the stages of a recipe, samples and tables from the command line.

Thin verbs over `stages` and `metrics`. Progress goes to stderr, one JSON result to stdout.
"""

import argparse
import ast
import inspect
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path

from cfgdistill.config import PROFILES, Recipe, get_recipe, one_of

ABOUT = """Distillation of classifier-free-guided diffusion models (Meng et al., CVPR 2023).

  train      a guided teacher: one network, two evaluations per step, hundreds of steps
  distill    stage one (w becomes an input), then stage two (half as many steps, again and again)
  sample     images from any of the models, as a png or as safetensors
  evaluate   quality and cost: Frechet and kernel distance, recall, network evaluations, ...

A session, in minutes on a laptop:

  python -m cfgdistill train    --dataset digits --profile laptop
  python -m cfgdistill distill  --dataset digits --profile laptop
  python -m cfgdistill sample   out/digits-laptop/stage-two/steps-4 --w 1 --to four-steps.png
  python -m cfgdistill evaluate out/digits-laptop/stage-two/steps-4 --w 0 1 3

Every verb prints one JSON result on stdout and its progress on stderr. The same command again finds
what is finished and resumes what is not, also after Ctrl-C or a crash. To stop after half an hour:
`timeout --signal INT 30m python -m cfgdistill ...`. On several GPUs or processes:
`accelerate launch --num_processes 2 -m cfgdistill ...` gives the same losses.

Exit code: 0 done, 1 told why not in one sentence, 2 wrong usage, 130 stopped by Ctrl-C."""

RECIPE = """The numbers of a run are one row of the table in cfgdistill/config.py, for a data set
and a profile: smoke (seconds), laptop (CPU, minutes), colab (a T4 session), paper (as published).
--set changes single entries, such as --set halving=400 --set weighting=snr."""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; the exit code."""
    given = parser().parse_args(arguments)
    try:
        result = given.verb(given)
    except KeyboardInterrupt as stop:
        print(f"{stop or 'Stopped.'}", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(error, file=sys.stderr)
        return 1
    if _is_main_process():
        print(json.dumps(result, indent=1))
    return 0


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python -m cfgdistill", description=ABOUT, formatter_class=raw)
    verbs = top.add_subparsers(required=True, metavar="VERB")

    def verb(function) -> argparse.ArgumentParser:
        name, about = function.__name__.lstrip("_"), inspect.getdoc(function)
        added = verbs.add_parser(
            name, help=about.splitlines()[0], description=about, formatter_class=raw
        )
        added.set_defaults(verb=function)
        return added

    def add_recipe(to: argparse.ArgumentParser) -> None:
        group = to.add_argument_group("the recipe", RECIPE)
        group.add_argument("--dataset", default="digits", help="digits or cifar10 (digits)")
        group.add_argument("--profile", default="laptop", help=f"{', '.join(PROFILES)} (laptop)")
        group.add_argument("--out", default="out", help="models are kept there (out)")
        group.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="change an entry"
        )

    def add_sampling(to: argparse.ArgumentParser) -> None:
        to.add_argument("folder", help="a finished model, such as out/digits-laptop/teacher")
        to.add_argument(
            "--sampler", help="ddim, stochastic or ancestral (the model's own, or ddim)"
        )
        to.add_argument("--seed", type=int, default=0, help="of the noise (0)")

    train = verb(_train)
    add_recipe(train)

    distill = verb(_distill)
    distill.add_argument("--stage", default="two", help="one: stop after stage one; two (default)")
    distill.add_argument(
        "--sampler",
        default="ddim",
        help="what the students are for: ddim (default), stochastic, or ddim_encode (encoders)",
    )
    add_recipe(distill)

    sample = verb(_sample)
    add_sampling(sample)
    sample.add_argument("--steps", type=int, help="(a student's own; 64 for other models)")
    sample.add_argument("--w", type=float, default=1.0, help="guidance weight, 0 is none (1)")
    sample.add_argument("--n", type=int, default=40, help="how many images (40)")
    sample.add_argument("--classes", type=int, nargs="+", help="labels, in turn (all of them)")
    sample.add_argument("--to", default="samples.png", help="FILE.png or FILE.safetensors")

    evaluate = verb(_evaluate)
    add_sampling(evaluate)
    evaluate.add_argument("--steps", type=int, nargs="+", help="(a student's own; 64 for others)")
    evaluate.add_argument("--w", type=float, nargs="+", default=[0.0, 1.0, 3.0], help="(0 1 3)")
    evaluate.add_argument("--n", type=int, help="samples per row (as in the model's recipe)")
    evaluate.add_argument("--out", help="where the classifier is kept (with the model)")
    evaluate.add_argument(
        "--teacher", metavar="FOLDER", help="also the distance to this model's own samples"
    )
    evaluate.add_argument("--fid", action="store_true", help="also the published FID (cifar10)")
    evaluate.add_argument("--to", metavar="FILE", help="also write the JSON there")
    return top


# ---- verbs ----------------------------------------------------------------------------------


def _train(given) -> dict:
    """train a classifier-free-guided teacher

    One network learns with the label and, for every tenth example, without it. Guidance then
    combines its two answers: (1 + w) conditional - w unconditional.
    """
    import cfgdistill.stages as stages

    recipe, data = _recipe(given)
    stages.train_teacher(recipe, data, given.out)
    return _trained(recipe, [stages.stage_folder(recipe, given.out, "teacher", stages.TEACHER)])


def _distill(given) -> dict:
    """distil the teacher: stage one, then stage two

    Stage one: a network with an input w learns what the guided pair says, for every w at once.
    Stage two: a student learns to do two of its teacher's steps in one, then becomes the
    teacher; down to one step. What is missing is trained first.
    """
    import cfgdistill.stages as stages

    one_of("stage", given.stage, ("one", "two"))
    one_of("sampler to distil for", given.sampler, stages.FOLDERS)
    recipe, data = _recipe(given)
    stages.train_stage_one(recipe, data, given.out)
    folders = [stages.stage_folder(recipe, given.out, "stage-one", stages.STAGE_ONE)]
    if given.stage == "two":
        home = stages.stage_folder(
            recipe, given.out, stages.FOLDERS[given.sampler], stages.STAGE_ONE
        )
        for student in stages.train_stage_two(recipe, data, given.out, given.sampler):
            folders.append(home / f"steps-{student.steps}")
    return _trained(recipe, folders)


def _sample(given) -> dict:
    """sample images from a model

    A model without an input for w is guided with its null label, at two evaluations a step.
    """
    import torch

    from cfgdistill.checkpoints import write_tensors
    from cfgdistill.metrics import generate
    from cfgdistill.plotting import save_images

    file = Path(given.to)
    if file.suffix not in (".png", ".safetensors"):
        raise ValueError(f"Images are written as .png or .safetensors, not as {file.name!r}.")
    if given.n < 1:
        raise ValueError(f"--n must be at least 1, not {given.n}.")
    model, _ = _load(given.folder)
    steps = given.steps or _own_steps(model)
    classes = torch.tensor(given.classes or range(_core(model).num_classes))
    labels = classes[torch.arange(given.n) % len(classes)]
    config = _core(model).net.config
    model.nfe = 0
    x = generate(
        model,
        (config["in_channels"], config["sample_size"], config["sample_size"]),
        labels,
        steps=steps,
        w=given.w,
        seed=given.seed,
        batch=given.n,
        sampler=_sampler(given.sampler, model),
    )
    if _is_main_process():
        if file.suffix == ".png":
            save_images(x, columns=min(10, len(classes), given.n), path=file)
        else:
            write_tensors(file, {"images": x, "labels": labels}, vars(given) | {"verb": "sample"})
    return {"file": str(file), "n": given.n, "steps": steps, "nfe": model.nfe, "w": given.w}


def _evaluate(given) -> dict:
    """measure quality and cost of a model

    A row for each number of steps and each w. The feature net is the small classifier of the
    model's recipe (trained first, if need be), the reference is the training split. So the
    Frechet distance is not FID; --fid adds the published one: 50,000 samples, Inception.
    """
    import cfgdistill.stages as stages
    from cfgdistill.checkpoints import provenance, write_text
    from cfgdistill.data import load_data
    from cfgdistill.metrics import FID_SAMPLES, evaluate, published_fid, samples

    model, card = _load(given.folder)
    teacher = None if given.teacher is None else _load(given.teacher)[0]
    sampler, steps = _sampler(given.sampler, model), given.steps or [_own_steps(model)]
    recipe = _recipe_of(card, given.folder)
    data = load_data(recipe.dataset, "train", recipe.images)
    n = given.n or recipe.samples
    if n < 4:
        raise ValueError(f"--n must be at least 4, not {n}: precision and recall need neighbours.")
    for count in steps:  # a request that cannot be met is refused before any work
        for w in given.w:
            model.check(count, data.labels[:1], w, sampler.__name__)
    homes = [p.parent for p in Path(given.folder).absolute().parents if p.name == recipe.name]
    judge = stages.make_judge(recipe, data, given.out or (homes or ["out"])[0])
    rows = []
    for count in steps:
        for w in given.w:
            row = evaluate(
                model,
                judge,
                data,
                model=Path(given.folder).name,
                steps=count,
                w=w,
                n=n,
                seed=given.seed,
                sampler=sampler,
                teacher=teacher,
            )
            if given.fid:
                labels = data.labels.new_tensor(range(FID_SAMPLES)) % data.num_classes
                how = {"steps": count, "w": w, "seed": given.seed, "sampler": sampler}
                row["fid"] = published_fid(samples(model, data.shape, labels, **how), data)
            rows.append(row)
    about = provenance(
        dataset=recipe.dataset,
        feature_net=judge.name,
        reference=judge.reference,
        n_samples=n,
        seed=given.seed,
    )
    result = {"meta": about, "rows": rows}
    if given.to and _is_main_process():
        write_text(Path(given.to), json.dumps(result, indent=1))
    return result


# ---- what the verbs share -------------------------------------------------------------------


def _recipe(given):
    """The recipe that was asked for, and its data."""
    from cfgdistill.data import load_data

    types = {field.name: field.type for field in fields(Recipe)}
    changes = {}
    for item in given.set:
        key, sign, text = item.partition("=")
        one_of("recipe entry", key, types)
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if types[key] is float and type(value) is int:
            value = float(value)
        kind = types[key] if isinstance(types[key], type) else object
        if not sign or kind is not object and type(value) is not kind:
            raise ValueError(f"--set {item} does not fit: write {key}={_example(key)}.")
        changes[key] = value
    recipe = get_recipe(given.dataset, given.profile, **changes)
    return recipe, load_data(recipe.dataset, "train", recipe.images)


def _example(key: str) -> str:
    return str(getattr(get_recipe("digits", "laptop"), key)).replace(" ", "")


def _recipe_of(card: dict, folder: str) -> Recipe:
    """The recipe that a model was trained with."""
    try:
        kept = card["recipe"]
        return Recipe(**kept | {"channels": tuple(kept["channels"])})
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"The card in {folder} names no recipe, so its data set is unknown: "
            "evaluate a model that `train` or `distill` wrote."
        ) from error


def _load(folder: str):
    """A model to sample from, and its card; one without an input for w is guided."""
    from cfgdistill.checkpoints import read_card
    from cfgdistill.guidance import GuidedDenoiser
    from cfgdistill.unets import load

    model = load(folder)
    if model.sampler == "ddim_encode":
        raise ValueError(
            f"{folder} holds an encoder, which makes noise from images: see notebook 06."
        )
    if model.w_range is None:
        model = GuidedDenoiser(model, null=model.num_classes)
    return model, read_card(folder)


def _core(model):
    return getattr(model, "denoiser", model)


def _own_steps(model) -> int:
    return _core(model).steps or 64


def _sampler(name: str | None, model):
    import cfgdistill.sampling as sampling

    name = name or _core(model).sampler or "ddim"
    return getattr(sampling, one_of("sampler", name, ("ddim", "stochastic", "ancestral")))


def _trained(recipe: Recipe, folders: list[Path]) -> dict:
    from cfgdistill.checkpoints import read_card

    cards = {str(folder): read_card(folder) for folder in folders}
    models = [
        {
            "folder": folder,
            "updates": card["about"]["updates"],
            "minutes": card["minutes"],
            "loss": card["losses"][-1] if card["losses"] else None,
            "sha256": card["sha256"],
        }
        for folder, card in cards.items()
    ]
    return {"recipe": asdict(recipe), "models": models}


def _is_main_process() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process
