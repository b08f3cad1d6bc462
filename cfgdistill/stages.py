"""The stages of a recipe. Each finds its finished model, or resumes it, or trains it.

Everything is kept under out/<data set>-<profile>/: classifier, teacher, stage-one, and
stage-two/steps-N. A model's card names the sha256 of the teacher it was made from, so models of
different runs are never mixed.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from cfgdistill.checkpoints import fingerprint, read_card, write_text
from cfgdistill.config import Recipe
from cfgdistill.data import Data
from cfgdistill.denoiser import Denoiser
from cfgdistill.guidance import GuidedDenoiser
from cfgdistill.metrics import Classifier, Judge, classification_loss, evaluate
from cfgdistill.training import (
    distill_progressively,
    stage_one_loss,
    teacher_loss,
    train,
)
from cfgdistill.unets import add_w_conditioning, build_unet


def home(recipe: Recipe, out: str | Path) -> Path:
    """The folder of a recipe's models."""
    return Path(out) / recipe.name


def train_classifier(recipe: Recipe, data: Data, out: str | Path) -> Classifier:
    """The feature net of the metrics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        classifier = Classifier(data.shape[0], data.shape[-1], data.num_classes)
    _finish(
        train(
            classifier,
            classification_loss,
            data,
            name="classifier",
            updates=recipe.classifier,
            batch=recipe.batch,
            rate=2e-3,
            seed=recipe.seed,
            notes={"recipe": asdict(recipe)},
            folder=home(recipe, out) / "classifier",
            about={"data": data.hash},
        )
    )
    return classifier


def train_teacher(recipe: Recipe, data: Data, out: str | Path) -> Denoiser:
    """The classifier-free-guided teacher's network, conditional and unconditional in one."""
    teacher = build_unet(
        recipe, channels=data.shape[0], size=data.shape[-1], num_classes=data.num_classes
    )
    _finish(
        train(
            teacher,
            teacher_loss(data.num_classes, recipe.drop),
            data,
            name="teacher",
            updates=recipe.teacher,
            batch=recipe.batch,
            rate=recipe.rate,
            seed=recipe.seed,
            ema=recipe.ema,
            notes={"recipe": asdict(recipe)},
            folder=home(recipe, out) / "teacher",
            about={"data": data.hash, "net": teacher.describe(), "drop": recipe.drop},
        )
    )
    return teacher


def train_stage_one(recipe: Recipe, data: Data, out: str | Path) -> Denoiser:
    """One network with a w input that does what the guided pair does."""
    teacher = train_teacher(recipe, data, out)
    w_range = (0.0, recipe.w_max)
    student = add_w_conditioning(teacher, w_range)
    _finish(
        train(
            student,
            stage_one_loss(
                GuidedDenoiser(teacher, data.num_classes),
                w_range,
                w_power=recipe.w_power,
                balanced=recipe.balanced,
            ),
            data,
            name="stage-one",
            updates=recipe.stage_one,
            batch=recipe.batch,
            rate=recipe.rate_one,
            faster={"cond_proj": recipe.w_rate},
            seed=recipe.seed,
            ema=recipe.ema,
            notes={"recipe": asdict(recipe)},
            folder=home(recipe, out) / "stage-one",
            about={
                "teacher": read_card(home(recipe, out) / "teacher")["sha256"],
                "w_range": w_range,
                "w_power": recipe.w_power,
                "balanced": recipe.balanced,
            },
        )
    )
    return student


def train_stage_two(
    recipe: Recipe, data: Data, out: str | Path, sampler: str = "ddim"
) -> Iterator[Denoiser]:
    """Students of recipe.start, ..., 4, 2, 1 steps, one after the other, for either sampler."""
    teacher = train_stage_one(recipe, data, out)
    yield from distill_progressively(
        teacher,
        data,
        start=recipe.start,
        updates=recipe.halving,
        batch=recipe.batch,
        rate=recipe.rate_two,
        seed=recipe.seed,
        w_power=recipe.w_power,
        balanced=recipe.balanced,
        notes={"recipe": asdict(recipe)},
        sampler=sampler,
        folder=home(recipe, out) / ("stage-two" if sampler == "ddim" else f"stage-two-{sampler}"),
        about={
            "teacher": read_card(home(recipe, out) / "stage-one")["sha256"],
            "w_power": recipe.w_power,
            "balanced": recipe.balanced,
        },
    )


def make_judge(recipe: Recipe, data: Data, out: str | Path) -> Judge:
    """The feature net of this recipe with the statistics of the training split."""
    return Judge(train_classifier(recipe, data, out), data)


def evaluate_rows(
    denoiser,
    judge: Judge,
    data: Data,
    recipe: Recipe,
    out: str | Path,
    *,
    model: str,
    steps: Iterable[int],
    weights: Iterable[float],
) -> list[dict]:
    """Rows of the results table for each number of steps and each w.

    Rows are kept in evaluations.json under the fingerprints of both networks, and found again
    there: a table that several notebooks share is computed once.
    """
    file = home(recipe, out) / "evaluations.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    networks = [fingerprint(denoiser), fingerprint(judge.classifier)]
    rows = []
    for n, w in itertools.product(steps, weights):
        about = [data.hash[:16], model, n, w, recipe.samples, recipe.seed]
        key = "/".join([*networks, *map(str, about)])
        if key not in kept:
            row = evaluate(
                denoiser, judge, data, model=model, steps=n, w=w, n=recipe.samples, seed=recipe.seed
            )
            kept[key] = row
            write_text(file, json.dumps(kept, indent=1))
        rows.append(kept[key])
    return rows


def training_minutes(recipe: Recipe, out: str | Path) -> dict[str, float]:
    """Minutes that each finished model of a recipe took to train, by the name of its folder."""
    folder = home(recipe, out)
    cards = sorted(folder.glob("**/card.json"))
    return {
        str(card.parent.relative_to(folder)): read_card(card.parent)["minutes"] for card in cards
    }


def _finish(updates: Iterator) -> None:
    for _ in updates:
        pass
