"""`python -m cfgdistill`: the stages of a recipe, samples and tables from the command line.

Thin verbs over `stages` and `metrics`. Progress goes to stderr, one result to stdout: a table on a
terminal, else JSON.
"""

import argparse
import ast
import inspect
import json
import math
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from cfgdistill.core.names import one_of
from cfgdistill.course.recipes import PROFILES, Recipe, as_recipe, get_recipe
from cfgdistill.training.environment import flag, refuse_launchers

ABOUT = """Distillation of classifier-free-guided diffusion models (Meng et al., CVPR 2023).

  plan       what a training of Stable Diffusion will need: GiB and hours, before it starts
  train      a guided teacher: one network, two evaluations per step, hundreds of steps
  distill    stage one (w becomes an input), then stage two (half as many steps, again and again)
  sample     images from any of the models, as a png or as safetensors
  evaluate   quality and cost: Frechet and kernel distance, recall, network evaluations, ...
  export     a student as a folder that stock diffusers loads, without this package; or as ONNX

A session, in minutes on a laptop:

  python -m cfgdistill train    --dataset digits --profile laptop
  python -m cfgdistill distill  --dataset digits --profile laptop
  python -m cfgdistill sample   out/digits-laptop/stage-two/steps-4 --w 1 --to four-steps.png
  python -m cfgdistill evaluate out/digits-laptop/stage-two/steps-4 --w 0 1 3

With images of your own, a folder of them for every class, the first two lines are

  python -m cfgdistill train    --data photos --like cifar10/laptop
  python -m cfgdistill distill  --data photos --like cifar10/laptop

Every verb prints one result on stdout, a table on a terminal and JSON elsewhere or with --json, and
its progress on stderr. The same command again finds what is finished and resumes what is not, also
after Ctrl-C or a crash. To stop after half an hour:
`timeout --signal INT 30m python -m cfgdistill ...`. On several GPUs, with the same losses:
`accelerate launch --multi_gpu --num_processes 2 -m cfgdistill ...` (on CPUs where there is no GPU).

Exit code: 0 done, 1 told why not in one sentence, 2 wrong usage, 130 stopped by Ctrl-C."""

RECIPE = """The numbers of a run are one row of the table in cfgdistill/course/recipes.py, for a
data set and a profile: smoke (seconds), laptop (CPU, minutes), colab (a T4 session), paper (with
the published rates and numbers of updates).
--set changes single entries, such as --set halving=400 --set weighting=snr."""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; the exit code."""
    given = parser().parse_args(arguments)
    try:
        refuse_launchers()
        _meet()
        result = given.verb(given)
        if _rank() == 0:
            as_json = given.json or not sys.stdout.isatty()
            print(json.dumps(result, indent=1) if as_json else _table(result), flush=True)
        return 0
    except KeyboardInterrupt as stop:
        if _rank() == 0:
            words = str(stop) or "Stopped. The same command again uses what is saved."
            print(words, file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read has enough
        raise
    except (ValueError, OSError, FloatingPointError) as error:
        # In one piece, for another process may be saying the same.
        print(f"{_sentence(error)}\n", end="", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search(NO_MEMORY, str(error)):
            raise
        asked = [f"--{key} {value}" for key, value in vars(given).items() if key in SIZES and value]
        print(
            f"There is not enough memory for {' '.join(asked) or 'this'}: ask for less, such as a "
            "smaller --n, or --set batch=16.",
            file=sys.stderr,
        )
        return 1


# How torch says that there is no memory, or that not even a number for its size.
NO_MEMORY = "(?i)allocat|out of memory|overflow|buffer size|too large"
SIZES = ("n", "steps", "set")


def _rank() -> int:
    """The number of this process, where a launcher has started several; the first one reports."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0


def _processes() -> int:
    return _state().num_processes


def _state():
    """Accelerate's: what this process knows of the others, and its device."""
    import torch
    from accelerate import PartialState

    # Without a GPU, Accelerate must be told; else every process takes itself for the only one.
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    cpu = several and not torch.cuda.is_available()
    return PartialState(cpu=cpu or flag("ACCELERATE_USE_CPU"))


def _meet() -> None:
    """Wait for the other processes, if there are any, and take a device of one's own."""
    quiet = flag("CI") or flag("TQDM_DISABLE") or _rank() > 0
    # For the bars of other libraries as well, to which every word but the empty one means yes.
    os.environ["TQDM_DISABLE"] = "1" if quiet else ""
    _state()


def _sentence(error: Exception) -> str:
    """What went wrong and what to do, on one line; the system's own errors only name a file."""
    said = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename or 'What was to be read or written':.200}"
        said = f"{place} cannot be used ({error.strerror}): choose another place."
    # Names of files may hold bytes that are no text, and cannot be printed everywhere.
    return said.encode(errors="backslashreplace").decode()


def _table(result: dict) -> str:
    """A result for the eye: lists in columns, everything else as `name: value`."""
    lines = []
    for key, value in result.items():
        if isinstance(value, list):
            lines += ["", *_columns(value), ""]
        else:
            said = (
                value
                if not isinstance(value, dict)
                else ", ".join(
                    f"{name} {entry}" for name, entry in value.items() if entry not in (None, "")
                )
            )
            lines += textwrap.wrap(f"{key}: {said}", 100, subsequent_indent="  ")
    return "\n".join(lines).strip()


def _columns(rows: list[dict]) -> list[str]:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [keys, *([str(row.get(key, "-")) for key in keys] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python -m cfgdistill", description=ABOUT, formatter_class=raw)
    verbs = top.add_subparsers(required=True, metavar="VERB")

    def verb(function) -> argparse.ArgumentParser:
        name, about = function.__name__.lstrip("_"), inspect.getdoc(function)
        added = verbs.add_parser(
            name, help=about.splitlines()[0], description=about, formatter_class=raw
        )
        added.add_argument("--json", action="store_true", help="JSON also on a terminal")
        added.set_defaults(verb=function)
        return added

    def add_recipe(to: argparse.ArgumentParser) -> None:
        group = to.add_argument_group("the recipe", RECIPE)
        group.add_argument("--dataset", help="digits, cifar10, imagenet64, emoji or sd (digits)")
        group.add_argument("--profile", help=f"{', '.join(PROFILES)} (laptop)")
        group.add_argument(
            "--data",
            help="images of your own: a folder that holds one of images for every class, or "
            "owner/name on the hub",
        )
        group.add_argument(
            "--like",
            metavar="DATASET/PROFILE",
            help="the row that your own images start from (cifar10/laptop; cifar10/colab on a GPU);"
            " emoji/laptop or sd/colab for images with captions",
        )
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
        to.add_argument("--seed", type=_whole(0, 2**63 - 1), default=0, help="of the noise (0)")

    plan = verb(_plan)
    plan.add_argument(
        "--tflops", type=_tflops, default=11.5, help="what the GPU does in a second (11.5, a T4)"
    )
    add_recipe(plan)

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
    sample.add_argument(
        "--w",
        type=_strengths,
        help="guidance weight, 0 is none; of several strengths all, as 1,0.5 (1, or the nearest "
        "of the model)",
    )
    sample.add_argument("--n", type=_whole(1), default=40, help="how many images (40)")
    sample.add_argument("--classes", nargs="+", help="labels or names, in turn (all of them)")
    sample.add_argument("--prompt", type=_text, nargs="+", help="for text-to-image, in turn")
    sample.add_argument(
        "--negative",
        type=_text,
        help="what the images shall not be: a class or a prompt; at twice the evaluations, and "
        "from 4 steps on only, unless the student was trained for it (the recipe entry negatives)",
    )
    sample.add_argument("--to", default="samples.png", help="FILE.png or FILE.safetensors")

    evaluate = verb(_evaluate)
    add_sampling(evaluate)
    evaluate.add_argument(
        "--steps", type=_whole(1), nargs="+", help="(a student's own; 64 for other models)"
    )
    evaluate.add_argument(
        "--w", type=_weight, nargs="+", help="(0 1 3, as far as the model takes them)"
    )
    evaluate.add_argument("--n", type=_whole(4), help="samples per row (as in the model's recipe)")
    evaluate.add_argument("--out", help="where the classifier is kept (with the model)")
    evaluate.add_argument(
        "--teacher", metavar="FOLDER", help="also the distance to this model's own samples"
    )
    evaluate.add_argument(
        "--judge",
        default="own",
        help="own: the classifier of the model's recipe (default); imagenet: EfficientNet-Lite0, "
        "which this package has not trained",
    )
    evaluate.add_argument("--fid", action="store_true", help="also the published FID (cifar10)")
    evaluate.add_argument("--to", metavar="FILE", help="also write the JSON there")

    export = verb(_export)
    export.add_argument(
        "folder", help="a finished student, such as out/emoji-laptop/stage-two/steps-4"
    )
    export.add_argument("--to", default="exported", help="the new folder (exported)")
    export.add_argument(
        "--w",
        type=_weight,
        help="one guidance weight for good, for tools that know no input for it (text-to-image)",
    )
    export.add_argument("--onnx", action="store_true", help="as ONNX, for runtimes without Python")
    export.add_argument(
        "--single-file", action="store_true", help="one file for ComfyUI and its like, at --w"
    )
    export.add_argument("--lora", action="store_true", help="as a LoRA file for the base, at --w")
    export.add_argument("--half", action="store_true", help="the pipeline in half precision")
    return top


def _whole(low: int, high: int = 10**6):
    """Whole numbers from `low` to `high`."""

    def number(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and low <= int(text[:20]) <= high):
            wanted = f"a whole number from {low} on" + (f" to {high:,}" if high <= 10**6 else "")
            raise argparse.ArgumentTypeError(f"write {wanted}, not {text[:40]!r}")
        return int(text)

    return number


def _weight(text: str) -> float:
    try:
        if abs(float(text)) <= 1000:  # so written, nan is refused as well
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"write a number such as 1.5, up to 1000, not {text[:40]!r}")


def _strengths(text: str) -> float | tuple[float, ...]:
    """A guidance weight, or several strengths with commas between them."""
    each = tuple(map(_weight, text.split(",")))
    return each if len(each) > 1 else each[0]


def _tflops(text: str) -> float:
    try:
        if 0 < float(text) < math.inf:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"write a number above 0, such as 11.5, not {text[:40]!r}")


def _text(given: str) -> str:
    """What was typed, also where the locale knows ASCII only."""
    try:
        return os.fsencode(given).decode()
    except UnicodeError as error:
        raise argparse.ArgumentTypeError(f"write text in UTF-8, not {given[:40]!r}") from error


# ---- verbs ----------------------------------------------------------------------------------


def _plan(given) -> dict:
    """say what training students of Stable Diffusion will need

    GiB of a GPU and hours of it, for --dataset sd and a profile, without a GPU and without the
    weights: bytes and operations are counted for one example, and guidance costs what it costs.
    --set base=NAME plans for another base than Stable Diffusion 1.5. Not counted: what kernels and
    the allocator add; leave a quarter of the card free.
    """
    from cfgdistill.course.planner import configuration, plan

    recipe = _recipe(given)
    unet = configuration(recipe.base) if recipe.track == "sd" and recipe.base else None
    needs = plan(recipe, unet, given.tflops)
    parts = needs._asdict().items()
    sums = {name: {**part, "sum": sum(part.values())} for name, part in parts}
    return {name: {k: float(f"{v:.3g}") for k, v in part.items()} for name, part in sums.items()}


def _train(given) -> dict:
    """train a classifier-free-guided teacher

    One network learns with the label and, for every tenth example, without it. Guidance then
    combines its two answers: (1 + w) conditional - w unconditional.
    """
    import cfgdistill.course.stages as stages

    recipe = _recipe(given)
    stages.is_trained(recipe)
    data = stages.load_recipe_data(recipe, given.out)
    _propose(recipe, data, given.out)
    stages.train_teacher(recipe, data, given.out)
    return _trained(recipe, [stages.stage_folder(recipe, given.out, "teacher", stages.TEACHER)])


def _distill(given) -> dict:
    """distil the teacher: stage one, then stage two

    Stage one: a network with an input w learns what the guided pair says, for every w at once.
    Stage two: a student learns to do two of its teacher's steps in one, then becomes the
    teacher; down to one step. What is missing is trained first.
    """
    import cfgdistill.course.stages as stages

    one_of("stage", given.stage, ("one", "two"))
    one_of("sampler", given.sampler, stages.FOLDERS)
    recipe = _recipe(given)
    data = stages.load_recipe_data(recipe, given.out)
    _propose(recipe, data, given.out)
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

    A model without an input for w is guided with its null label, at two evaluations a step. The
    training set need not be there.
    """
    from cfgdistill.data.meaning import Classes
    from cfgdistill.judge.plotting import save_images
    from cfgdistill.teachers.drawing import STEPS, sample
    from cfgdistill.training.checkpoints import write_tensors

    file = Path(given.to)
    if file.suffix not in (".png", ".safetensors"):
        raise ValueError(f"Images are written as .png or .safetensors, not as {file.name!r:.80}.")
    net = _load(given.folder)
    if isinstance(net.meaning, Classes):
        if given.prompt:
            raise ValueError(f"{given.folder} draws classes: pass --classes, not --prompt.")
        asked = [_label(word) for word in given.classes or ()] or [*range(net.num_classes)]
        negative = given.negative and _label(given.negative)
    else:
        if given.classes:
            raise ValueError(f"{given.folder} draws from text: pass --prompt, not --classes.")
        if not given.prompt:
            raise ValueError(f"{given.folder} draws from text: say what, with --prompt.")
        asked, negative = given.prompt, given.negative
    conds = [asked[i % len(asked)] for i in range(given.n)]
    [w] = _weights(net, None if given.w is None else [given.w], [1.0])
    _try(file)
    if _rank() > 0:
        return {}  # one process is enough
    net.nfe = 0
    how = dict(seed=given.seed, steps=given.steps, sampler=given.sampler, negative=negative)
    x = sample(net, conds, w, **how)
    if file.suffix == ".png":
        with _written(file), TemporaryDirectory(dir=file.parent) as own:  # the old one until then
            save_images(x, columns=min(10, len(asked), given.n), path=Path(own, file.name))
            Path(own, file.name).replace(file)
    else:
        about = {key: value for key, value in vars(given).items() if key != "verb"}
        write_tensors(file, {"images": x}, {**about, "w": w, "conds": conds})
    nfe = net.nfe // math.ceil(given.n / net.meaning.at_once)  # of a batch, and so of an image
    steps = given.steps or net.steps or STEPS
    return {"file": str(file), "n": given.n, "steps": steps, "nfe": nfe, "w": w}


def _label(word: str) -> str | int:
    """A class as it was typed: its number, or else its name, which longer numbers are."""
    return int(word) if word.removeprefix("-").isdecimal() and len(word) < 20 else word


def _evaluate(given) -> dict:
    """measure quality and cost of a model

    A row for each number of steps and each w. The feature net is the small classifier of the
    model's recipe (trained first, if need be), the reference is the training split. So the
    Frechet distance is not FID; --fid adds the published one: 50,000 samples, Inception.
    """
    import torch

    import cfgdistill.course.stages as stages
    from cfgdistill.judge.imagenet import ImageNetClassifier
    from cfgdistill.judge.metrics import FID_SAMPLES, Judge, evaluate, published_fid, samples
    from cfgdistill.teachers.drawing import STEPS, sampler_of
    from cfgdistill.training.checkpoints import provenance, write_json

    one_of("judge", given.judge, ("own", "imagenet"))
    given.folder = _place(given.folder)
    net, recipe = _load(given.folder), _recipe_of(given.folder)
    sampler = sampler_of(net, given.sampler)
    n = given.n or recipe.samples
    weights = _weights(net, given.w, [0.0, 1.0, 3.0])
    table = list(product(given.steps or [net.steps or STEPS], weights))
    teachers = _place(given.teacher) if given.teacher else None
    other = _load(teachers) if teachers else None
    if other is not None and other.steps:
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
        _check(net, steps, w, sampler)
        if other is not None:
            _check(other, steps, w)
    if given.to:
        _try(Path(given.to))
    data = _data_of(given.folder)
    model = _guided(net, data)
    teacher = None if other is None else _guided(other, _data_of(teachers))
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
    if given.judge == "imagenet":
        judge = Judge(ImageNetClassifier().to(net.device), data.images)
    else:
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
        try:
            write_json(Path(given.to), result)
        except OSError:  # the place was good, minutes ago: nothing is lost
            print(json.dumps(result, indent=1), flush=True)
            raise
    return result


def _export(given) -> dict:
    """write a student as a pipeline for stock diffusers

    Text-to-image students become a StableDiffusionPipeline, class-conditional ones a pipeline whose
    code lies in the folder. The model card says which steps and weights it was trained for. With
    --onnx, one or two ONNX files and a student.json with all that sampling needs beside them. With
    --lora, low-rank changes to a base as a file for its stock pipeline, at one guidance weight.
    With --single-file, likewise at one weight, all in one file with the names of Stable Diffusion
    1.x or 2.x, for tools such as ComfyUI.
    """
    from cfgdistill.data.meaning import Classes
    from cfgdistill.export.lora import export_lora
    from cfgdistill.export.onnx import export_onnx
    from cfgdistill.export.single_file import export_single_file
    from cfgdistill.export.stock import export
    from cfgdistill.teachers.files import card_of

    model, card = _load(given.folder), card_of(given.folder)
    if given.onnx + given.lora + given.half + given.single_file > 1:
        raise ValueError(
            "--onnx, --lora, --half and --single-file are four kinds of files: say one of them."
        )
    if (given.lora or given.single_file) and given.w is None:
        raise ValueError("Such a file has one guidance weight for good: say it with --w.")
    if given.onnx:
        if given.w is not None:
            raise ValueError("ONNX files have an input for w: leave --w out.")
        return {"folder": str(export_onnx(model, given.to))}
    about = {
        "recipe": card.get("recipe"),
        "minutes of its own training": card.get("minutes"),
        "weights": card["sha256"],
    }
    if given.single_file:
        parts = {key: getattr(model.meaning, key, None) for key in ("vae", "text")}
        return {"folder": str(export_single_file(model, given.to, w=given.w, about=about, **parts))}
    if given.lora:
        return {"folder": str(export_lora(model, given.to, w=given.w, about=about))}
    meaning = model.meaning
    if isinstance(meaning, Classes):
        parts = {"class_names": meaning.names}
    else:
        parts = {"vae": meaning.vae, "text": meaning.text}
    how = {"w": given.w, "half": given.half, "about": about}
    return {"folder": str(export(model, given.to, **how, **parts))}


# ---- what the verbs share -------------------------------------------------------------------


BATCH = 125  # images sampled at once


def _recipe(given) -> Recipe:
    """The recipe that was asked for."""
    changes = dict(_change(item) for item in given.set)
    if given.data is None:
        if given.like is not None:
            raise ValueError("--like says how to train on images of your own: name them in --data.")
        recipe = get_recipe(given.dataset or "digits", given.profile or "laptop", **changes)
    else:
        from cfgdistill.course.own import recipe_for

        if given.dataset or given.profile:
            raise ValueError(
                "Images of your own have no --dataset and no --profile: say --like cifar10/laptop."
            )
        recipe = recipe_for(given.data, given.like, **changes)
    Path(given.out).mkdir(parents=True, exist_ok=True)
    return recipe


def _propose(recipe: Recipe, data, out: str) -> None:
    """Say what will be trained on images of one's own, unless that is done."""
    from cfgdistill.course.own import proposal
    from cfgdistill.course.stages import TEACHER, stage_folder

    done = stage_folder(recipe, out, "teacher", TEACHER) / "card.json"
    if recipe.like in (None, "sd") or done.exists():
        return
    said = proposal(recipe, data)
    if _rank() == 0:
        print(said, file=sys.stderr)


def _change(item: str) -> tuple:
    """The entry of the recipe that --set KEY=VALUE names, and its value."""
    key, _, text = item.partition("=")
    others = ("dataset", "profile", "like")  # which have options of their own
    one_of("setting", key, [f.name for f in fields(Recipe) if f.name not in others])
    try:
        return key, ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # what is no literal is a word
        return key, text


def _recipe_of(folder: str) -> Recipe:
    """The recipe that a model was trained with."""
    from cfgdistill.training.checkpoints import read_card

    try:
        return as_recipe(read_card(folder).get("recipe"))
    except ValueError as error:
        raise ValueError(
            f"The card in {folder} names no recipe of this package, so its data set is unknown: "
            "name a model that `train` or `distill` wrote."
        ) from error


def _out_of(recipe: Recipe, folder: str) -> Path:
    """The folder in which all models of a recipe are kept, above that of one of them."""
    homes = [p.parent for p in Path(folder).absolute().parents if p.name == recipe.name]
    return (homes or [Path("out")])[0]


def _place(folder: str) -> str:
    """`folder` itself, or, for the name of a model of the package, where its copy lies."""
    from cfgdistill.course.pretrained import use_pretrained
    from cfgdistill.teachers.shipped import ROOT, names, shipped_card

    path, stored = Path(folder), ROOT.resolve()
    name = path.as_posix()
    if path.resolve().is_relative_to(stored):  # the place itself, where it lies packed
        name = path.resolve().relative_to(stored).as_posix()
    elif path.exists():
        return folder
    if name not in names():
        return folder
    recipe = as_recipe(shipped_card(name)["recipe"])
    with _state().main_process_first():
        use_pretrained(recipe, "out")
    return str(Path("out", recipe.name, name.partition("/")[2]))


def _load(folder: str):
    """A model of images, to sample from."""
    from cfgdistill.teachers.files import load

    if Path(folder, "model_index.json").exists():
        raise ValueError(
            f"{folder} is a pipeline for stock diffusers: open it with from_pretrained there, or "
            "name the model that it was exported from."
        )
    model = load(folder)
    if model.sampler == "ddim_encode":
        raise ValueError(
            f"{folder} holds an encoder, which makes noise from images: see notebook 06."
        )
    if "sample_size" not in model.net.config:
        raise ValueError(f"{folder} holds a model of points, not of images: see notebook 01.")
    return model


def _data_of(folder: str):
    """The data of a model. Nothing is trained for them: what decodes it is there, or is shipped.

    ValueError where other data of that name are found than the model's own.
    """
    from cfgdistill.course.pretrained import use_pretrained
    from cfgdistill.course.stages import home, load_recipe_data
    from cfgdistill.data.hub import nothing_fetched
    from cfgdistill.training.checkpoints import fingerprint, read_card

    recipe, about = _recipe_of(folder), read_card(folder)["about"]
    out = _out_of(recipe, folder)
    decoder = home(recipe, out) / "autoencoder" / "card.json"
    if recipe.autoencoder and not decoder.exists():
        with _state().main_process_first():
            use_pretrained(recipe, out)
        if not decoder.exists():
            raise ValueError(
                f"{folder} draws latents, and the autoencoder that was trained with it is not in "
                f"{home(recipe, out)}: copy that folder too, or leave the model where it was."
            )
    # The names of other data sets are the package's own.
    with nothing_fetched() if recipe.dataset == "sd" else nullcontext():
        data = load_recipe_data(recipe, out)
    if "autoencoder" in about and about["autoencoder"] != fingerprint(data.vae):
        raise ValueError(
            f"{folder} was trained with another autoencoder than the one in {home(recipe, out)}: "
            "copy that one there, or name the model where it was trained."
        )
    # The first model that was trained says on what; others only by whom they were taught.
    first = home(recipe, out) / ("stage-one" if recipe.track == "sd" else "teacher")
    if "data" not in about and (first / "card.json").exists():
        about = read_card(first)["about"]
    if about.get("data") not in (None, data.hash):
        raise ValueError(
            f"{folder} was trained on other data than the {recipe.dataset} that are found now "
            f"({str(about['data'])[:16]} there, {data.hash[:16]} here): see to "
            f"{recipe.source if recipe.like else 'CFGDISTILL_DATA'}."
        )
    return data


def _guided(net, data):
    """A model with an input for w as it is, another one guided with its null."""
    from cfgdistill.core.guidance import GuidedDenoiser

    return net if net.w_range is not None else GuidedDenoiser(net, data.null)


def _check(net, steps: int, w: float, sampler=None) -> None:
    """A request that cannot be met is refused before data are loaded."""
    import torch

    from cfgdistill.core.denoiser import W_LIMIT, check_w

    labels = None if net.num_classes is None else torch.zeros(1, dtype=torch.long)
    net.check(steps, labels, w, "ddim" if sampler is None else sampler.__name__)
    if net.w_range is None:
        check_w(w, 0.0, W_LIMIT)


def _weights(net, given: list | None, usual: list[float]) -> list:
    """The guidance weights asked for, else the usual ones as far as the model takes them; of a
    model of several strengths, tuples."""
    from cfgdistill.core.denoiser import ranges

    if given:
        return given
    known = ranges(net.w_range or (0.0, math.inf))
    found = sorted({tuple(min(max(w, low), high) for low, high in known) for w in usual})
    return found if len(known) > 1 else [w for (w,) in found]


@contextmanager
def _written(file: Path) -> Iterator[None]:
    """What keeps a file from being written is told with its name."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{file} could not be written ({error.strerror or error}): free some space, or choose "
            "another place with --to."
        ) from error


def _try(file: Path) -> None:
    """A place is tried before the work, not after it."""
    if file.is_dir():
        raise ValueError(f"{file} is a folder: name a file with --to.")
    with _written(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=file.parent) as some:
            some.write(bytes(2**16))


def _trained(recipe: Recipe, folders: list[Path]) -> dict:
    from cfgdistill.training.checkpoints import read_card

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

    yield from tqdm(items, desc=name, total=total, leave=False, disable=flag("TQDM_DISABLE"))
