"""From a folder of one's own images to the recipe for them, and how long it will take here."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cfgdistill.core.stage_two import halvings
from cfgdistill.course.recipes import SIDES, Recipe, get_recipe, recipe_like
from cfgdistill.course.stages import loss_of_teacher, new_classifier, new_teacher
from cfgdistill.data.base import Data
from cfgdistill.data.folder import load_own
from cfgdistill.judge.metrics import classification_loss
from cfgdistill.training.loop import train
from cfgdistill.training.optim import Optim
from cfgdistill.training.progressive import times_as_long
from cfgdistill.training.state import Run


def recipe_for(source: str, like: str | None, **changes) -> Recipe:
    """The recipe that is proposed for the images in a folder, or of a data set of the hub.

    like: "data set/profile" of the table; None: cifar10's for this machine. The size is `size`, or
    the largest that fits the images: see `from_folder`. `changes` are entries of the recipe.
    """
    like = like or f"cifar10/{'colab' if torch.cuda.is_available() else 'laptop'}"
    dataset, _, profile = like.partition("/")
    size = changes.pop("size", None)
    # What does not fit is refused before anything is read.
    row = get_recipe(dataset, profile, source=source, **changes)
    folder = Path(source).expanduser()
    name = folder.resolve().name if folder.is_dir() else source  # owner/name, of the hub
    name = re.sub(r"[^\w.-]+|^[.-]+", "-", name).strip("-.") or "images"
    if size is None and dataset in SIDES:
        how = {key: changes[key] for key in ("image", "label") if key in changes}
        size = load_own(source, size=None, images=row.images, **how).shape[-1]
    size = row.size if size is None else size
    return recipe_like(like, name, size=size, source=source, **changes)


def minutes(recipe: Recipe, data: Data) -> dict[str, float]:
    """About how long each stage will take on this machine, by a few updates of each network.

    The teacher's are measured. An update of either stage of distillation costs 5/3 as much for the
    same batch: forward and backward are as dear as three forwards, and its teacher needs two more.
    """
    judge, teacher = new_classifier(recipe, data), new_teacher(recipe, data)
    one = _seconds(recipe, teacher, loss_of_teacher(recipe, data), data)
    distilled = 5 / 3 * one * recipe.student_batch / recipe.batch
    updates = recipe.halving * sum(map(times_as_long, halvings(recipe.start)))
    seconds = {
        "classifier": recipe.classifier * _seconds(recipe, judge, classification_loss, data.images),
        "teacher": recipe.teacher * one,
        "stage one": recipe.stage_one * distilled,
        "stage two": updates * distilled,
    }
    return {stage: value / 60 for stage, value in seconds.items()}


def _seconds(recipe: Recipe, model, loss: Callable, data: Data, measured: int = 3) -> float:
    """Per update, after a first one that takes longer."""
    optim = Optim(measured + 1, recipe.batch, recipe.rate)
    run = Run("trial", seed=recipe.seed, precision=recipe.precision)
    updates = train(model, loss, data, optim, run)
    next(updates)
    started = time.perf_counter()
    for _ in updates:
        pass
    return (time.perf_counter() - started) / measured


def proposal(recipe: Recipe, data: Data) -> str:
    """What will be trained, and for how long, in a sentence or two."""
    teacher = new_teacher(recipe, data)
    size = sum(p.numel() for p in teacher.net.parameters())
    spent = minutes(recipe, data)
    kinds = "captions" if recipe.autoencoder else "classes"
    stages = ", ".join(f"{stage} {_rounded(value)}" for stage, value in spent.items())
    return (
        f"{recipe.dataset}: {len(data):,} images of {recipe.size} x {recipe.size}, "
        f"{len(set(data.class_names)):,} {kinds}; a network of {size:,} parameters, like "
        f"{recipe.like}'s at {recipe.profile}. As its first updates went, training takes "
        f"{_rounded(sum(spent.values()))} minutes here ({stages}). Every number can be changed, "
        f"such as --set size=32 --set teacher={max(1, recipe.teacher // 2)}."
    )


def _rounded(minutes: float) -> str:
    return f"{minutes:.0f}" if minutes >= 1 else f"{minutes:.1g}"
