"""`python -m cfgdistill`: the stages of a recipe, samples and tables from the command line.

Thin verbs over `stages` and `metrics`. Progress goes to stderr, one JSON result to stdout.
"""

import argparse
import ast
import functools
import inspect
import json
import math
import os
import sys
from dataclasses import asdict, fields
from itertools import product
from pathlib import Path

from cfgdistill.config import PROFILES, Recipe, as_recipe, flag, get_recipe, one_of

ABOUT = """Distillation of classifier-free-guided diffusion models (Meng et al., CVPR 2023).

  train      a guided teacher: one network, two evaluations per step, hundreds of steps
  distill    stage one (w becomes an input), then stage two (half as many steps, again and again)
  sample     images from any of the models, as a png or as safetensors
  evaluate   quality and cost: Frechet and kernel distance, recall, network evaluations, ...
  export     a student as a folder that stock diffusers loads, without this package

A session, in minutes on a laptop:

  python -m cfgdistill train    --dataset digits --profile laptop
  python -m cfgdistill distill  --dataset digits --profile laptop
  python -m cfgdistill sample   out/digits-laptop/stage-two/steps-4 --w 1 --to four-steps.png
  python -m cfgdistill evaluate out/digits-laptop/stage-two/steps-4 --w 0 1 3

Every verb prints one JSON result on stdout and its progress on stderr. The same command again finds
what is finished and resumes what is not, also after Ctrl-C or a crash. To stop after half an hour:
`timeout --signal INT 30m python -m cfgdistill ...`. On several GPUs, with the same losses:
`accelerate launch --multi_gpu --num_processes 2 -m cfgdistill ...` (on CPUs where there is no GPU).

Exit code: 0 done, 1 told why not in one sentence, 2 wrong usage, 130 stopped by Ctrl-C."""

RECIPE = """The numbers of a run are one row of the table in cfgdistill/config.py, for a data set
and a profile: smoke (seconds), laptop (CPU, minutes), colab (a T4 session), paper (as published).
--set changes single entries, such as --set halving=400 --set weighting=snr."""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; the exit code."""
    given = parser().parse_args(arguments)
    try:
        _meet()
        result = given.verb(given)
    except KeyboardInterrupt as stop:
        if _rank() == 0:
            print(stop or "Stopped. The same command again uses what is saved.", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(_sentence(error), file=sys.stderr)
        return 1
    if _rank() == 0:
        print(json.dumps(result, indent=1))
    return 0


def _rank() -> int:
    """The number of this process, where a launcher has started several; the first one reports."""
    return int(os.environ.get("RANK", 0))


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def _meet() -> None:
    """Wait for the other processes, if there are any, and take a device of one's own."""
    quiet = flag("CI") or flag("TQDM_DISABLE") or _rank() > 0
    # For the bars of other libraries as well, to which every word but the empty one means yes.
    os.environ["TQDM_DISABLE"] = "1" if quiet else ""
    import torch
    from accelerate import PartialState

    # Without a GPU, Accelerate must be told; else every process takes itself for the only one.
    cpu = _processes() > 1 and not torch.cuda.is_available()
    PartialState(cpu=cpu or flag("ACCELERATE_USE_CPU"))


def _sentence(error: Exception) -> str:
    """What went wrong and what to do; errors of the operating system only have a file's name."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename} cannot be used ({error.strerror}): choose another place."
    return str(error)


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
        group.add_argument(
            "--dataset", default="digits", help="digits, cifar10, emoji or sd (digits)"
        )
        group.add_argument("--profile", default="laptop", help=f"{', '.join(PROFILES)} (laptop)")
        group.add_argument("--out", default="out", help="models are kept there (out)")
        group.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="change an entry"
        )

    def add_sampling(to: argparse.ArgumentParser) -> None:
        to.add_argument(
            "folder",
            help="a finished model, such as out/digits-laptop/teacher, or the name of one that "
            "comes with this package, such as digits/stage-two/steps-4 (copied to out/)",
        )
        to.add_argument(
            "--sampler", help="ddim, stochastic or ancestral (the model's own, or ddim)"
        )
        to.add_argument("--seed", type=_whole(0), default=0, help="of the noise (0)")

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
    sample.add_argument("--steps", type=_whole(1), help="(a student's own; 64 for other models)")
    sample.add_argument("--w", type=_finite, default=1.0, help="guidance weight, 0 is none (1)")
    sample.add_argument("--n", type=_whole(1), default=40, help="how many images (40)")
    sample.add_argument("--classes", type=int, nargs="+", help="labels, in turn (all of them)")
    sample.add_argument("--prompt", nargs="+", help="for text-to-image, in turn (some captions)")
    sample.add_argument("--to", default="samples.png", help="FILE.png or FILE.safetensors")

    evaluate = verb(_evaluate)
    add_sampling(evaluate)
    evaluate.add_argument(
        "--steps", type=_whole(1), nargs="+", help="(a student's own; 64 for other models)"
    )
    evaluate.add_argument("--w", type=_finite, nargs="+", default=[0.0, 1.0, 3.0], help="(0 1 3)")
    evaluate.add_argument("--n", type=_whole(4), help="samples per row (as in the model's recipe)")
    evaluate.add_argument("--out", help="where the classifier is kept (with the model)")
    evaluate.add_argument(
        "--teacher", metavar="FOLDER", help="also the distance to this model's own samples"
    )
    evaluate.add_argument("--fid", action="store_true", help="also the published FID (cifar10)")
    evaluate.add_argument("--to", metavar="FILE", help="also write the JSON there")

    export = verb(_export)
    export.add_argument(
        "folder", help="a finished student, such as out/emoji-laptop/stage-two/steps-4"
    )
    export.add_argument("--to", default="exported", help="the new folder (exported)")
    return top


def _whole(low: int):
    """Whole numbers from `low` on, as far as they make a seed."""

    def number(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(f"write a whole number from {low} on, not {text!r}")
        return int(text)

    return number


def _finite(text: str) -> float:
    try:
        if math.isfinite(float(text)):
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"write a number such as 1.5, not {text!r}")


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
    one_of("sampler", given.sampler, stages.FOLDERS)
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
    from cfgdistill.metrics import samples
    from cfgdistill.plotting import save_images

    file = Path(given.to)
    if file.suffix not in (".png", ".safetensors"):
        raise ValueError(f"Images are written as .png or .safetensors, not as {file.name!r}.")
    given.folder = _place(given.folder)
    model, card, data_of = _load(given.folder)
    if _rank() > 0:
        return {}  # one process is enough
    net, steps = _core(model).net, given.steps or _own_steps(model)
    how = {"steps": steps, "w": given.w, "seed": given.seed, "batch": BATCH}
    if "text" in net.config:
        if given.classes:
            raise ValueError(f"{given.folder} draws from text: pass --prompt, not --classes.")
        data = data_of()
        how["decode"] = data.decode
        captions = [data.class_names[k] for k in data.prompts(min(given.n, len(data)))[1]]
        classes = _conditions(_recipe_of(card, given.folder), data, given.prompt or captions)
    elif given.prompt:
        raise ValueError(f"{given.folder} draws classes: pass --classes, not --prompt.")
    else:
        classes = torch.tensor(given.classes or range(_core(model).num_classes))
    file.parent.mkdir(parents=True, exist_ok=True)
    labels = classes[torch.arange(given.n) % len(classes)]
    batches = samples(
        model, _core(model).net.shape, labels, sampler=_sampler(given.sampler, model), **how
    )
    parts = []
    for x in _bar(batches, "batches", math.ceil(given.n / BATCH)):
        parts.append(x)
        nfe, model.nfe = model.nfe, 0  # those of one batch are those of an image
    x = torch.cat(parts)
    if file.suffix == ".png":
        save_images(x, columns=min(10, len(classes), given.n), path=file)
    else:
        about = {key: value for key, value in vars(given).items() if key != "verb"}
        write_tensors(file, {"images": x, "labels": labels}, about)
    return {"file": str(file), "n": given.n, "steps": steps, "nfe": nfe, "w": given.w}


def _evaluate(given) -> dict:
    """measure quality and cost of a model

    A row for each number of steps and each w. The feature net is the small classifier of the
    model's recipe (trained first, if need be), the reference is the training split. So the
    Frechet distance is not FID; --fid adds the published one: 50,000 samples, Inception.
    """
    import torch

    import cfgdistill.stages as stages
    from cfgdistill.checkpoints import provenance, write_text
    from cfgdistill.metrics import FID_SAMPLES, evaluate, published_fid, samples

    given.folder = _place(given.folder)
    model, card, data_of = _load(given.folder)
    recipe, data = _recipe_of(card, given.folder), data_of()
    sampler, n = _sampler(given.sampler, model), given.n or recipe.samples
    table = list(product(given.steps or [_own_steps(model)], given.w))
    teacher = None if given.teacher is None else _load(_place(given.teacher))[0]
    if teacher is not None and _core(teacher).steps:
        raise ValueError(
            f"{given.teacher} is a student: compare with a model of any number of steps, such as "
            "the teacher or stage-one."
        )
    if 0 < n % BATCH < _processes():
        raise ValueError(
            f"The last of the batches of {BATCH} would have {n % BATCH} of {n} samples, too few "
            f"for {_processes()} processes: choose another --n."
        )
    for steps, w in table:  # a request that cannot be met is refused before any work
        model.check(steps, data.labels[:1], w, sampler.__name__)
        if teacher is not None:
            teacher.check(steps, data.labels[:1], w)
    if given.to:
        Path(given.to).parent.mkdir(parents=True, exist_ok=True)
    fids = [{}] * len(table)
    if given.fid:
        if _processes() > 1:
            raise ValueError("The published FID is for a single process: start only one.")
        labels = torch.arange(FID_SAMPLES) % data.num_classes
        for k, (steps, w) in enumerate(table):
            how = {"steps": steps, "w": w, "seed": given.seed, "sampler": sampler}
            batches = samples(model, data.shape, labels, batch=BATCH, **how)
            fid = published_fid(_bar(batches, f"FID {k + 1}", FID_SAMPLES // BATCH), data)
            fids[k] = {"fid": fid}
    judge = stages.make_judge(recipe, data, given.out or _out_of(recipe, given.folder))
    how = {"model": Path(given.folder).name, "n": n, "batch": BATCH, "seed": given.seed}
    rows = [
        evaluate(model, judge, data, steps=steps, w=w, sampler=sampler, teacher=teacher, **how)
        | fid
        for (steps, w), fid in _bar(zip(table, fids, strict=True), "rows", len(table))
    ]
    about = provenance(
        dataset=recipe.dataset,
        feature_net=judge.name,
        reference=judge.reference,
        n_samples=n,
        seed=given.seed,
    )
    result = {"meta": about, "rows": rows}
    if given.to and _rank() == 0:
        write_text(Path(given.to), json.dumps(result, indent=1))
    return result


def _export(given) -> dict:
    """write a student as a pipeline for stock diffusers

    Text-to-image students become a StableDiffusionPipeline, class-conditional ones a pipeline whose
    code lies in the folder. The model card says which steps and weights it was trained for.
    """
    from cfgdistill.encoders import TextEncoder
    from cfgdistill.export import export

    given.folder = _place(given.folder)
    model, card, data_of = _load(given.folder)
    recipe, data = _recipe_of(card, given.folder), data_of()
    about = {
        "data": f"{data.name} {data.split}, {len(data)} images, sha256 {data.images.hash[:16]}",
        "recipe": asdict(recipe),
        "minutes of its own training": card["minutes"],
        "weights": card["sha256"],
    }
    parts = {"class_names": data.class_names}
    if "text" in _core(model).net.config:
        text = _base_text(recipe) or TextEncoder(data.text.tokenizer, _core(model).net.text)
        parts = {"vae": data.vae, "text": text}
    return {"folder": str(export(_core(model), given.to, about=about, **parts))}


# ---- what the verbs share -------------------------------------------------------------------


BATCH = 125  # images sampled at once


def _recipe(given):
    """The recipe that was asked for, and its data."""
    from cfgdistill.stages import load_recipe_data

    changes = dict(_change(item) for item in given.set)
    recipe = get_recipe(given.dataset, given.profile, **changes)
    Path(given.out).mkdir(parents=True, exist_ok=True)
    return recipe, load_recipe_data(recipe, given.out)


def _change(item: str) -> tuple:
    """The entry of the recipe that --set KEY=VALUE names, and its value."""
    key, _, text = item.partition("=")
    one_of("setting", key, [f.name for f in fields(Recipe) if f.name not in ("dataset", "profile")])
    try:
        return key, ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # what is no literal is a word
        return key, text


def _recipe_of(card: dict, folder: str) -> Recipe:
    """The recipe that a model was trained with."""
    try:
        return as_recipe(card["recipe"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"The card in {folder} names no recipe, so its data set is unknown: "
            "evaluate a model that `train` or `distill` wrote."
        ) from error


def _out_of(recipe: Recipe, folder: str) -> Path:
    """The folder in which all models of a recipe are kept, above that of one of them."""
    homes = [p.parent for p in Path(folder).absolute().parents if p.name == recipe.name]
    return (homes or [Path("out")])[0]


def _base_text(recipe: Recipe):
    """The text encoder of a Stable Diffusion pipeline; None for models with one of their own."""
    from cfgdistill.encoders import TextEncoder
    from cfgdistill.stable_diffusion import open_pipeline

    if recipe.base is None:
        return None
    pipe = open_pipeline(recipe.base)
    return TextEncoder(pipe.tokenizer, pipe.text_encoder).eval()


def _conditions(recipe: Recipe, data, captions: list[str]):
    """Captions as what a text-to-image model is given: tokens, or the embeddings of its base."""
    import torch

    text = _base_text(recipe)
    if text is None:
        return data.text.tokens(captions)
    with torch.no_grad():
        return text(text.tokens(captions))


def _place(folder: str) -> str:
    """`folder` itself, or, for the name of a model of the package, where its copy lies."""
    from cfgdistill.pretrained import names, shipped_card, use_pretrained

    if Path(folder).exists() or folder not in names():
        return folder
    recipe = as_recipe(shipped_card(folder)["recipe"])
    use_pretrained(recipe, "out")
    return str(Path("out", recipe.name, folder.partition("/")[2]))


def _load(folder: str):
    """A model to sample from, its card, and a function for the data that it was trained on.

    A model without an input for w is guided. The data come at the first call: for samples of a
    class-conditional model they need not be there.
    """
    from cfgdistill.checkpoints import read_card
    from cfgdistill.guidance import GuidedDenoiser
    from cfgdistill.stages import load_recipe_data
    from cfgdistill.unets import load

    model = load(folder)
    if model.sampler == "ddim_encode":
        raise ValueError(
            f"{folder} holds an encoder, which makes noise from images: see notebook 06."
        )
    if "sample_size" not in model.net.config:
        raise ValueError(f"{folder} holds a model of points, not of images: see notebook 01.")
    card = read_card(folder)

    @functools.cache
    def data():
        recipe = _recipe_of(card, folder)
        return load_recipe_data(recipe, _out_of(recipe, folder))

    if model.w_range is None:
        text = "text" in model.net.config
        model = GuidedDenoiser(model, data().null if text else model.num_classes)
    return model, card, data


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


def _bar(items, name: str, total: int):
    from tqdm.auto import tqdm

    off = flag("TQDM_DISABLE")
    yield from tqdm(items, desc=name, total=total, leave=False, disable=off)
