"""The stages of a recipe. Each finds its finished model, or resumes it, or trains it.

Everything is kept under out/<data set>-<profile>/: classifier, teacher, stage-one, and
stage-two/steps-N; stage-two-stochastic, encoder and two-students likewise. A model's card names the
sha256 of the teacher it was made from, so models of different runs are never mixed.
"""

import copy
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

import cfgdistill.teachers.stable_diffusion as stable_diffusion
from cfgdistill.core.denoiser import Denoiser
from cfgdistill.core.guidance import GuidedDenoiser
from cfgdistill.core.losses import (
    WEIGHTINGS,
    Loss,
    Weighting,
    against_others,
    snr,
    snr_plus_one,
    teacher_loss,
    truncated_snr,
)
from cfgdistill.core.names import one_of
from cfgdistill.core.rules import negative_prompt
from cfgdistill.core.samplers import ddim
from cfgdistill.core.stage_one import stage_one_loss
from cfgdistill.core.stage_two import stage_two_loss
from cfgdistill.course.recipes import Recipe, get_recipe
from cfgdistill.data.autoencoder import Autoencoder, VAEEncoder, autoencoder_loss
from cfgdistill.data.base import Data
from cfgdistill.data.captioned import load_captioned
from cfgdistill.data.folder import load_own
from cfgdistill.data.latents import Latents, cached
from cfgdistill.data.named import load_data
from cfgdistill.data.text import build_text_encoder
from cfgdistill.judge.delivered import delivered_by_samples
from cfgdistill.judge.metrics import (
    Classifier,
    Judge,
    Matcher,
    classification_loss,
    evaluate,
    generate,
    sampler_name,
)
from cfgdistill.teachers.unet import build_text_unet, build_unet
from cfgdistill.teachers.w_input import add_negative, add_w_conditioning
from cfgdistill.training.checkpoints import alone, fingerprint, provenance, read_card, write_json
from cfgdistill.training.loop import train
from cfgdistill.training.optim import Optim
from cfgdistill.training.progressive import distill_progressively, reset
from cfgdistill.training.randomness import seeded
from cfgdistill.training.sharding import share_out
from cfgdistill.training.state import Run


def home(recipe: Recipe, out: str | Path) -> Path:
    """The folder of a recipe's models."""
    return Path(out) / recipe.name


# What a stage depends on beyond its row of the table of recipes.
TEACHER = ("prediction_type", "t_power", "lora")
STAGE_ONE = (
    *(*TEACHER, "w_min", "w_max", "w_power", "balanced", "weighting", "pretrained"),
    *("along", "negatives"),
)
TWO_STUDENTS = (*TEACHER, "weighting", "pretrained")
# The weighting of the teacher's loss, under which an error of its network counts everywhere, but
# never infinitely: for eps and v it is the plain squared error of what the network says.
BOUNDED = {"v": snr_plus_one, "eps": snr, "x": truncated_snr}
FOLDERS = {"ddim": "stage-two", "stochastic": "stage-two-stochastic", "ddim_encode": "encoder"}


def stage_folder(recipe: Recipe, out: str | Path, stage: str, depends: tuple[str, ...]) -> Path:
    """out/<recipe>/<stage>, with what was changed against the recipe's row of the table.

    So a comparison such as get_recipe("digits", "laptop", weighting="snr") has folders of its own,
    stage-one-weighting=snr and so on, and shares the others; with negatives=True,
    stage-one-negatives.
    """
    row = get_recipe(recipe.track, recipe.profile)
    changed = {key: getattr(recipe, key) for key in depends}
    changed = {key: value for key, value in changed.items() if value != getattr(row, key)}
    said = {"negatives": "-negatives"}
    names = [said.get(key, f"-{key}={value}") for key, value in changed.items()]
    return home(recipe, out) / "".join([stage, *names])


def load_recipe_data(recipe: Recipe, out: str | Path, split: str = "train") -> Data:
    """What a recipe is trained on: labelled images, or latents of captioned images with tokens.

    For the latter, the autoencoder is found, resumed or trained here, and the latents are kept. For
    Stable Diffusion both come from the pipeline, and captions are embeddings, which are kept too.
    """
    if recipe.track == "sd":
        return stable_diffusion.load_latents(recipe, home(recipe, out), split)
    share = recipe.open_captions
    if recipe.like:
        load = functools.partial(_own, recipe)
    elif recipe.autoencoder == 0:
        load = functools.partial(load_data, recipe.dataset, images=recipe.images)
    else:
        how = {"size": recipe.size, "images": recipe.images, "also": share > 0}
        load = functools.partial(load_captioned, recipe.dataset, **how)
    if recipe.autoencoder == 0:
        return load(split=split)
    train_split = load()
    vae = train_autoencoder(recipe, replace(train_split, also=()), out)
    text = build_text_encoder(
        itertools.chain(train_split.class_names, *train_split.also),
        width=recipe.text_width,
        length=recipe.text_length,
        seed=recipe.seed,
    )
    images = train_split
    if split != "train":
        images = load(split=split)
    return Latents.of(images, vae, text, home(recipe, out), share)


def _own(recipe: Recipe, split: str = "train") -> Data:
    """Images of one's own, where the recipe says that they are."""
    if not recipe.source:
        raise ValueError(
            f"Only whoever made the data {recipe.dataset} in Python has them: go on there."
        )
    how = {"size": recipe.size, "image": recipe.image, "label": recipe.label}
    how |= {"captions": recipe.autoencoder > 0, "mirror": recipe.mirror}
    return replace(
        load_own(recipe.source, split=split, images=recipe.images, **how), name=recipe.dataset
    )


def train_autoencoder(recipe: Recipe, images: Data, out: str | Path) -> VAEEncoder:
    """The small KL autoencoder of a latent recipe, with the scale and shift of these images."""
    with seeded(recipe.seed):
        model = Autoencoder(recipe.vae_channels)
    folder = home(recipe, out) / "autoencoder"
    optim = _optim(recipe, recipe.autoencoder, recipe.batch // 2, 2e-3, ema=recipe.ema)
    run = _run(recipe, "autoencoder", folder, {"data": images.hash})
    _finish(train(model, autoencoder_loss, images, optim, run))
    # Measured once, then part of the model: elsewhere the last bits would be others.
    vae = model.net.vae
    with alone(folder / "card.lock"):
        card = read_card(folder)
        if "latents" not in card:
            rows = torch.arange(len(images)).split(64)
            found = VAEEncoder.measured(vae, (images.batch(part)[0] for part in rows))
            card["latents"] = {"shift": found.shift.flatten().tolist(), "scale": found.scale}
            write_json(folder / "card.json", card)
    return VAEEncoder(vae, torch.tensor(card["latents"]["shift"]), card["latents"]["scale"])


def new_classifier(recipe: Recipe, data: Data) -> Classifier | Matcher:
    """The feature net of the metrics before its training; a matcher for captioned images."""
    if isinstance(data, Latents) and data.text is None:
        raise ValueError(
            f"There is no judge for {recipe.dataset}: use metrics.clip_score, or look at samples."
        )
    channels, size = data.images.shape[0], data.images.shape[-1]
    with seeded(recipe.seed):
        if isinstance(data, Latents):
            return Matcher(channels, size, data.labels, data.text.model.config.vocab_size)
        return Classifier(channels, size, data.num_classes)


def train_classifier(recipe: Recipe, data: Data, out: str | Path) -> Classifier | Matcher:
    """The feature net of the metrics; for captioned images, the matcher of images and captions."""
    classifier, images = new_classifier(recipe, data), data.images
    optim = _optim(recipe, recipe.classifier, recipe.batch, 2e-3)
    run = _run(recipe, "classifier", home(recipe, out) / "classifier", {"data": images.hash})
    _finish(train(classifier, classification_loss, images, optim, run))
    return classifier


def is_trained(recipe: Recipe) -> None:
    """ValueError where the teacher of a recipe is none that is trained."""
    if recipe.track == "sd":
        raise ValueError(
            "The teacher of 'sd' is the base itself, and nothing of it is trained: go on with "
            "`distill`, or train_stage_one."
        )


def new_teacher(recipe: Recipe, data: Data) -> Denoiser:
    """The teacher before its training."""
    is_trained(recipe)
    shape = {"channels": data.shape[0], "size": data.shape[-1]}
    if isinstance(data, Latents):
        return build_text_unet(**recipe.unet, **shape, text=copy.deepcopy(data.text.model))
    places = {"patch": recipe.patch, "attention": recipe.attention}
    return build_unet(**recipe.unet, **places, **shape, num_classes=data.num_classes)


def loss_of_teacher(recipe: Recipe, data: Data) -> Loss:
    """What it is trained to minimise."""
    return teacher_loss(data.null, recipe.drop, BOUNDED[recipe.prediction_type], recipe.t_power)


def train_teacher(recipe: Recipe, data: Data, out: str | Path) -> Denoiser:
    """The classifier-free-guided teacher's network, conditional and unconditional in one."""
    teacher = new_teacher(recipe, data)
    about = {"data": data.hash, "net": teacher.describe(), **_decoded_by(data)}
    about |= {"drop": recipe.drop, "t_power": recipe.t_power}
    optim = _optim(recipe, recipe.teacher, recipe.batch, recipe.rate, ema=recipe.ema)
    run = _run(recipe, "teacher", stage_folder(recipe, out, "teacher", TEACHER), about)
    _finish(train(teacher, loss_of_teacher(recipe, data), data, optim, run))
    return teacher


def before_stage_one(recipe: Recipe, data: Data, out: str | Path) -> tuple:
    """Stage one's teacher, the network with whose weights its student starts, and what is said of
    both in the student's card.

    They are one network, unless the teacher is Stable Diffusion. Its base says eps, has no card of
    its own, and is known by its weights, under whatever name.
    """
    if recipe.track != "sd":
        teacher = train_teacher(recipe, data, out)
        return teacher, teacher, _card_of(stage_folder(recipe, out, "teacher", TEACHER))
    teacher, start = stable_diffusion.base_and_start(recipe)
    net = start.describe()
    net["net"].pop("base", None)
    sha = start.net.sha if recipe.lora else fingerprint(start.net.unet)
    says = teacher.net.base.prediction_type
    return teacher, start, {"teacher": sha, "it says": says, "net": net, "data": data.hash}


def train_stage_one(recipe: Recipe, data: Data, out: str | Path) -> Denoiser:
    """One network with a w input that does what the guided pair does."""
    teacher, start, known = before_stage_one(recipe, data, out)
    w_range = (recipe.w_min, recipe.w_max)
    student = add_w_conditioning(start, w_range)
    if not recipe.pretrained:
        reset(student.net, recipe.seed)
    if recipe.negatives:
        add_negative(student, data.null)
    loss = stage_one_loss(
        GuidedDenoiser(
            share_out(teacher), data.null, negative_prompt if recipe.negatives else None
        ),
        w_range,
        w_power=recipe.w_power,
        balanced=recipe.balanced,
        weighting=_weighting(recipe),
        along=recipe.along,
    )
    if recipe.negatives:
        loss = against_others(loss, data.labels, data.null)
    how = {"ema": recipe.ema, "faster": {"cond_proj": recipe.w_rate, "time_emb": recipe.time_rate}}
    optim = _optim(recipe, recipe.stage_one, recipe.student_batch, recipe.rate_one, **how)
    about = {**_taught(recipe, data, known), "w_range": w_range}
    about |= {"along": recipe.along} if recipe.along else {}  # cards without it are of 0
    run = _run(recipe, "stage-one", stage_folder(recipe, out, "stage-one", STAGE_ONE), about)
    _finish(train(student, loss, data, optim, run))
    return student


def train_stage_two(
    recipe: Recipe, data: Data, out: str | Path, sampler: str = "ddim"
) -> Iterator[Denoiser]:
    """Students of recipe.start, ..., 4, 2, 1 steps, one after the other.

    For the sampler "ddim", for "stochastic", or for "ddim_encode": then they are encoders.
    """
    one_of("sampler", sampler, FOLDERS)
    yield from _halvings(
        train_stage_one(recipe, data, out),  # held by nobody once it has taught the first student
        data,
        recipe,
        taught_by=_card_of(stage_folder(recipe, out, "stage-one", STAGE_ONE)),
        folder=stage_folder(recipe, out, FOLDERS[sampler], STAGE_ONE),
        sampler=sampler,
        w_power=recipe.w_power,
        balanced=recipe.balanced,
    )


def train_two_students(recipe: Recipe, data: Data, out: str | Path) -> Iterator[GuidedDenoiser]:
    """The paper's variant without stage one: both halves of the guided pair are distilled.

    One network with dropped labels is the conditional and the unconditional student, and they are
    guided when sampling, at two evaluations per step. It fails at few steps: see notebook 07.
    ValueError where they are to take negatives as an input, which is what stage one teaches.
    """
    if recipe.negatives:
        raise ValueError(
            "Without stage one nothing teaches a negative condition: leave negatives=False."
        )
    teacher = train_teacher(recipe, data, out)
    for student in _halvings(
        teacher,
        data,
        recipe,
        taught_by=_card_of(stage_folder(recipe, out, "teacher", TEACHER)),
        folder=stage_folder(recipe, out, "two-students", TWO_STUDENTS),
        drop=0.5,
    ):
        yield GuidedDenoiser(student, data.null)


def _halvings(
    teacher: Denoiser,
    data: Data,
    recipe: Recipe,
    *,
    taught_by: dict,
    folder: Path,
    sampler: str = "ddim",
    **how,
) -> Iterator[Denoiser]:
    """Stage two as the recipe has it, from the teacher of which `taught_by` is said."""
    paired = teacher.takes_negative  # not asked later: `loss` must not hold the teacher

    def loss(*taught, **sampled) -> Loss:
        one = stage_two_loss(*taught, **sampled, **how, weighting=_weighting(recipe))
        return against_others(one, data.labels, data.null) if paired else one

    return distill_progressively(
        teacher,
        data,
        _optim(recipe, recipe.halving, recipe.student_batch, recipe.rate_two),
        _run(recipe, "stage-two", folder, _taught(recipe, data, taught_by)),
        start=recipe.start,
        sampler=sampler,
        loss=loss,
        late_rate=recipe.late_rate,
        pretrained=recipe.pretrained,
    )


def _optim(recipe: Recipe, updates: int, batch: int, rate: float, **more) -> Optim:
    """How a stage of this recipe moves the weights."""
    same = {"warm_up": recipe.warm_up, "eight_bit": recipe.eight_bit}
    return Optim(updates, batch, rate, **same, **more)


def _run(recipe: Recipe, name: str, folder: Path, about: dict) -> Run:
    """Where a stage of this recipe is trained, and what is kept of it."""
    return Run(
        name,
        seed=recipe.seed,
        folder=folder,
        about=about,
        notes={"recipe": asdict(recipe)},
        save_every=recipe.save_every,
        precision=recipe.precision,
    )


def _card_of(folder: Path) -> dict:
    """What is said of a teacher that was trained here."""
    return {"teacher": read_card(folder)["sha256"]}


def _taught(recipe: Recipe, data: Data, taught_by: dict) -> dict:
    """What a student's card says of how it was taught, and by which teacher."""
    keys = ("w_power", "balanced", "weighting", "pretrained")
    return {**taught_by, **_decoded_by(data)} | {key: getattr(recipe, key) for key in keys}


def _decoded_by(data: Data) -> dict:
    """What turns a model's samples into images: its card names the one autoencoder that may."""
    return {"autoencoder": fingerprint(data.vae)} if isinstance(data, Latents) else {}


def _weighting(recipe: Recipe) -> Weighting:
    return WEIGHTINGS[one_of("weighting", recipe.weighting, WEIGHTINGS)]


def make_judge(recipe: Recipe, data: Data, out: str | Path) -> Judge:
    """The feature net of this recipe with the statistics of the training split."""
    return Judge(train_classifier(recipe, data, out), data.images)


class Truth(dict[float, Tensor]):
    """Samples of a teacher by w, to which others are compared, and what they were made of."""

    def __init__(self, samples: dict[float, Tensor], made_of: str):
        super().__init__(samples)
        self.made_of = made_of


def teachers_own(
    teacher, data: Data, recipe: Recipe, out: str | Path, *, steps: int, weights: Iterable[float]
) -> Truth:
    """The teacher's own samples, recipe.samples at each w by DDIM, which are kept."""
    conds, _ = data.prompts(recipe.samples)
    how = {"shape": data.shape, "labels": conds, "steps": steps, "seed": recipe.seed}
    made_of = f"{fingerprint(teacher)}/{data.hash}/{steps}/{recipe.samples}/{recipe.seed}"

    def make(w: float) -> Tensor:
        make = functools.partial(generate, teacher, w=w, decode=data.decode, **how)
        return cached(home(recipe, out), "truth", f"{made_of}/{w}", make)

    return Truth({w: make(w) for w in weights}, made_of)


def w_ladder(recipe: Recipe) -> list[float]:
    """Guidance weights in steps of a half, from none to beyond what students are asked for."""
    return [k / 2 for k in range(math.ceil(2 * recipe.w_max) + 3)]


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
    sampler=ddim,
    truth: dict[float, Tensor] | None = None,
    ladder: Truth | None = None,
) -> list[dict]:
    """Rows of the results table for each number of steps and each w: see `metrics.evaluate`.

    With `truth`, the teacher's own samples at each w, rows have their distance to them. With a
    `ladder`, its own samples at many w, few or many of them, rows have delivered_w: the w at which
    those are nearest to the model's, from the same noise (see `delivered_by_samples`). Rows are
    kept in evaluations.json under the fingerprints of both networks, and found again there: a table
    that several notebooks share is computed once. Not so with samples that do not say what they
    were made of, as those of `teachers_own` do.
    """
    file = home(recipe, out) / "evaluations.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    device = judge.device.type
    half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    networks = [fingerprint(denoiser), fingerprint(judge.classifier), judge.reference, half]
    known = truth is None or isinstance(truth, Truth)
    rows = []

    def found(key: str, make: Callable):
        """What is kept under the key; else it is made, and kept."""
        if key not in kept:
            kept[key] = make()
            write_json(file, kept)
        return kept[key]

    for n, w in itertools.product(steps, weights):
        asked = [data.hash[:16], model, sampler_name(sampler), n, w, recipe.samples, recipe.seed]
        key = "/".join(map(str, [*networks, *asked, getattr(truth, "made_of", None)]))
        how = dict(steps=n, w=w, sampler=sampler, seed=recipe.seed)
        teacher = None if truth is None else truth[w]
        about = dict(model=model, n=recipe.samples, teacher=teacher)
        make = functools.partial(evaluate, denoiser, judge, data, **about, **how)
        row = found(key, make) if known else make()
        if ladder is not None:
            conds, _ = data.prompts(len(ladder[0.0]))
            how |= dict(shape=data.shape, labels=conds, decode=data.decode)
            key = "/".join(map(str, ["delivered", networks[0], half, *asked[2:5], ladder.made_of]))
            make = functools.partial(_delivered, denoiser, ladder, **how)
            row = row | {"delivered_w": found(key, make)}
        rows.append(row)
    return rows


def _delivered(denoiser, ladder: Truth, **how) -> float:
    return round(delivered_by_samples(generate(denoiser, **how), ladder), 3)


def training_minutes(recipe: Recipe, out: str | Path) -> dict[str, float]:
    """Minutes that the judge, the teacher and both stages took, by the names of their folders.

    Encoders, stochastic students and the models of comparisons are not counted; students that were
    trained for the package but do not come with it are.
    """
    folder = home(recipe, out)
    stages = ("autoencoder", "classifier", "teacher", "stage-one", FOLDERS["ddim"])
    shipped = folder / "training.json"
    spent = json.loads(shipped.read_text()) if shipped.exists() else {}
    for stage in stages:
        for card in (folder / stage).glob("**/card.json"):
            spent[card.parent.relative_to(folder).as_posix()] = read_card(card.parent)
    return {k: spent[k]["minutes"] for k in sorted(spent) if k.partition("/")[0] in stages}


def print_provenance(recipe: Recipe, data: Data, notebook: str) -> None:
    """What a reader needs to repeat a notebook: versions, git commit, recipe, seed and data."""
    about = {"recipe": recipe.name, "seed": recipe.seed, "data": data.hash[:16]}
    for key, value in provenance(notebook=notebook, **about, split=data.split).items():
        print(f"{key}: {value}")


def _finish(updates: Iterator) -> None:
    for _ in updates:
        pass
