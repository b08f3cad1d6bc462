"""Every shipped model measured again: data/pretrained/results.json, and what is made from it.

That is the README's table, all numbers in data/pretrained/RESULTS.md, data/figures/NAME*.png.

    python data/make_results.py [digits] [cifar10] [emoji] [sd]    (`make results`: all of them)

Rows that are already in out/results are not computed again: after Ctrl-C the same command goes on.
Students that are not shipped are measured too where `cfgdistill distill` has trained them there.
With CFGDISTILL_RESNET=resnet56.th, a file of github.com/akamaster/pytorch_resnet_cifar10, CIFAR-10
is also judged by that network, which this project has not trained.
"""

import json
import math
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from cfgdistill import (
    GuidedDenoiser,
    Judge,
    base_denoiser,
    ddim,
    delivered_w,
    generate,
    get_recipe,
    open_pipeline,
    stochastic,
    tabulate,
    use_pretrained,
)
from cfgdistill.course import stages
from cfgdistill.judge.delivered import TIMES
from cfgdistill.judge.plotting import quality_against_nfe, sample_grid
from cfgdistill.teachers.shipped import names
from cfgdistill.training.checkpoints import provenance, write_text

ROOT = Path(__file__).resolve().parent
HOME, README = ROOT / "pretrained", ROOT.parent / "README.md"
RESULTS = HOME / "results.json"
FIGURES = ROOT / "figures"
STUDENTS = (8, 4, 2, 1)


@dataclass(frozen=True)
class Plan:
    """What is measured for one data set."""

    teacher: dict[int, tuple[int, ...]]  # its steps, the most first, in the table of n samples
    weights: tuple[float, ...]
    values: dict[str, str]  # in the first tables of RESULTS.md, with their formats
    ladder: tuple[int, int]  # samples and steps of the teacher's own, by which delivered_w is read
    captions: tuple[str, ...] = ()  # of the figure; else ten classes
    bf16: bool = False  # whether the networks compute in bfloat16


IMAGES = {"frechet_distance": ".2f", "delivered_w": ".2f"}
CAPTIONED = {"distance_to_teacher": ".3f", "retrieval_score": ".1%", "delivered_w": ".2f"}
PROMPTS = ("red heart", "green apple", "cat face", "strawberry")
PROMPTS += ("castle", "angry face", "rainbow", "octopus")
WEIGHTS = (0.0, 0.3, 1.0, 2.0, 4.0)
PLANS = {
    "digits": Plan({1000: (256, 16, 8, 4, 2, 1)}, WEIGHTS, IMAGES, (256, 128)),
    "cifar10": Plan(
        {10_000: (16, 8, 4), 1000: (256, 16, 8, 4, 2, 1)}, WEIGHTS, IMAGES, (128, 64), bf16=True
    ),
    "emoji": Plan({150: (50, 16, 8, 4, 2, 1)}, (0.0, 1.0, 2.0), CAPTIONED, (150, 50), PROMPTS),
    "sd": Plan({150: (25, 8, 4, 2, 1)}, (0.0, 1.0, 2.0), CAPTIONED, (150, 25), PROMPTS),
}
JUDGED_AS = {"sd": "emoji"}  # whose judge, and pictures of whose captions


def measure(name: str, out: Path) -> tuple[list[dict], dict]:
    """All rows of one data set, and what its stage one delivers."""
    plan = PLANS[name]
    recipe = use_pretrained(get_recipe(name, "laptop"), out)
    data = stages.load_recipe_data(recipe, out)
    judged, theirs = recipe, data
    if name in JUDGED_AS:
        judged = use_pretrained(get_recipe(JUDGED_AS[name], "laptop"), out)
        theirs = stages.load_recipe_data(judged, out)
    judges = [stages.make_judge(judged, theirs, out)]
    if name == "cifar10" and "CFGDISTILL_RESNET" in os.environ:
        judges.append(Judge(ResNet.open(Path(os.environ["CFGDISTILL_RESNET"])), data))
    judges = Judges(judges)
    network = taught_by = stages.before_stage_one(recipe, data, out)[0]
    if recipe.track == "sd":  # which samples on its own schedule, and teaches on the students'
        network = base_denoiser(open_pipeline(recipe.base))
    teacher = GuidedDenoiser(network, data.null)
    stage_one = stages.train_stage_one(recipe, data, out)
    given = delivered(stage_one, GuidedDenoiser(taught_by, data.null), data)  # single precision
    students = [("stage_one", stage_one, ddim, 16)]
    for kind, sampler in (("ddim", ddim), ("stochastic", stochastic)):
        chain = stages.home(recipe, out) / stages.FOLDERS[kind]
        if (chain / "steps-1" / "card.json").exists():  # shipped, or trained there
            students += [
                ("student", student, sampler, student.steps)
                for student in stages.train_stage_two(recipe, data, out, kind)
                if student.steps in STUDENTS
            ]
    if plan.bf16:
        for denoiser in [network, *(student for _, student, *_ in students)]:
            denoiser.net = InBfloat16(denoiser.net)
    samples, most = plan.ladder
    few, rungs = replace(recipe, samples=samples), stages.w_ladder(recipe)
    ladder = stages.teachers_own(teacher, data, few, out, steps=most, weights=rungs)
    rows = []
    for n, steps in plan.teacher.items():
        truth = None
        if "distance_to_teacher" in plan.values:
            counted = replace(recipe, samples=n)
            how = dict(steps=steps[0], weights=plan.weights)
            truth = stages.teachers_own(teacher, data, counted, out, **how)
        models = [*(("teacher", teacher, ddim, k) for k in steps), *students]
        for model, denoiser, sampler, k in models:
            # Samplers that add noise leave the path that starts in the same noise, and with as many
            # steps as the ladder has the teacher delivers what it is asked for.
            whole = model == "teacher" and k >= most
            found = stages.evaluate_rows(
                denoiser,
                judges,
                data,
                replace(recipe, samples=n),
                out,
                model=model,
                steps=(k,),
                weights=plan.weights,
                sampler=sampler,
                truth=truth,
                ladder=ladder if sampler is ddim and not whole else None,
            )
            about = {"dataset": name, "n_samples": n, "seed": recipe.seed}
            rows += [{**about, **row} for both in found for row in judges.apart(both)]
            print(f"{name}: {n:,} samples, {model}, {k} steps", flush=True)
    own = _groups(rows)[-len(judges.judges)]  # of the last table, by the first judge
    draw(name, data, models, own)
    return rows, given


def delivered(student, teacher, data, n: int = 2048) -> dict:
    """How much guidance stage one's network gives, by `delivered_w`, and of how many examples."""
    _, most = student.w_range
    weights = [*dict.fromkeys((0.0, 0.3, *range(1, math.ceil(most)), most))]
    found = {f"{w:g}": round(delivered_w(student, teacher, data, w, n=n), 3) for w in weights}
    return {"n": n, "times": TIMES, "seed": 0, "delivered_w": found}


def draw(name: str, data, models: list[tuple], rows: list[dict]) -> None:
    """The same noise through all models, and quality against evaluations: two figures."""
    plan = PLANS[name]
    most = models[0][-1]
    labels, columns = torch.arange(10).repeat(2), 10
    if plan.captions:
        labels, columns = data.meaning.conditions(plan.captions), len(plan.captions)
    grid = {}
    for w in (0.0, 1.0, plan.weights[-1]):
        how = dict(shape=data.shape, labels=labels, w=w, decode=data.decode)
        column = grid[f"w = {w:g}"] = {}
        for model, denoiser, sampler, steps in models:
            if sampler is ddim and (model == "student" or steps in (most, 4, 1)):
                nfe = 2 * steps if model == "teacher" else steps
                title = f"{model}, {steps} step{'s' * (steps > 1)}, {nfe} NFE"
                column[title] = generate(denoiser, steps=steps, **how)
    own = [row for row in rows if row["sampler"] == "ddim" and row.get("distance_to_teacher", 1)]
    own = [row for row in own if row["w"] in (0, 1, plan.weights[-1])]
    figures = {"": sample_grid(grid, columns)}
    figures["-quality"] = quality_against_nfe(own, list(plan.values)[:1])
    for kind, fig in figures.items():
        fig.savefig(FIGURES / f"{name}{kind}.png")


class InBfloat16(nn.Module):
    """A network that computes in bfloat16, as its description says."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    @property
    def config(self) -> dict:
        return {**self.net.config, "computes_in": "bfloat16"}

    def forward(self, z, t, cond, w):
        with torch.autocast(z.device.type, torch.bfloat16):
            return self.net(z, t, cond, w)


class Judges(Judge):
    """Several judges of the same samples, in the place of one."""

    def __init__(self, judges: list[Judge]):
        self.judges, self.device = judges, judges[0].device
        self.reference = ", ".join(judge.reference for judge in judges)
        self.num_features = max(judge.num_features for judge in judges)
        self.classifier = nn.ModuleList(judge.classifier for judge in judges)

    def reset(self) -> None:
        for judge in self.judges:
            judge.reset()

    def update(self, x, labels) -> None:
        for judge in self.judges:
            judge.update(x, labels)

    def compute(self) -> dict[str, float]:
        """What each says, under "number of the judge: name of the value"."""
        values = [judge.compute() for judge in self.judges]
        return {f"{k}:{key}": value for k, own in enumerate(values) for key, value in own.items()}

    def apart(self, row: dict) -> list[dict]:
        """A row for each judge, from one with what all of them say."""
        rows = []
        for k, judge in enumerate(self.judges):
            own = {
                key.partition(":")[2] or key: value
                for key, value in row.items()
                if ":" not in key or key.startswith(f"{k}:")
            }
            rows.append({"feature_net": judge.name, "reference": judge.reference, **own})
        return rows


class ResNet(nn.Module):
    """He et al. 2015, section 4.2, with parameter-free shortcuts: 64 features, and 10 classes.

    Images in [-1, 1]; the file's own normalization is done here.
    """

    num_features = 64
    kind, score = "ResNet", "class_accuracy"

    def __init__(self, depth: int):
        super().__init__()
        self.kind = f"ResNet-{depth}"
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        widths, blocks = (16, 16, 32, 64), (depth - 2) // 6
        for k in (1, 2, 3):
            body = [_Block(widths[k - 1], widths[k], stride=1 if k == 1 else 2)]
            body += [_Block(widths[k], widths[k], stride=1) for _ in range(blocks - 1)]
            setattr(self, f"layer{k}", nn.Sequential(*body))
        self.linear = nn.Linear(64, 10)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None], False)

    @classmethod
    def open(cls, file: Path) -> "ResNet":
        """resnet56-4bfd9763.th and its like."""
        depth = int(file.stem.removeprefix("resnet").split("-")[0])
        kept = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
        net = cls(depth)
        net.load_state_dict({key.removeprefix("module."): value for key, value in kept.items()})
        return net.eval()

    def forward(self, x):
        x = ((x + 1) / 2 - self.mean) / self.std
        x = self.bn1(self.conv1(x)).relu()
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))

    def head(self, features):
        return self.linear(features)


class _Block(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outer), nn.BatchNorm2d(outer)
        self.stride, self.pad = stride, (outer - inner) // 2

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        short = x[:, :, :: self.stride, :: self.stride]
        return (y + nn.functional.pad(short, (0, 0, 0, 0, self.pad, self.pad))).relu()


# ---- the README -----------------------------------------------------------------------------


NAMES = {"teacher": "guided teacher", "stage_one": "stage one", "student": "student"}
TITLES = {
    "frechet_distance": "Frechet",
    "kernel_distance": "kernel distance",
    "inception_score": "inception score",
    "class_accuracy": "class accuracy",
    "retrieval_score": "retrieval",
    "precision": "precision",
    "recall": "recall",
    "distance_to_teacher": "distance to teacher",
    "delivered_w": "delivered w",
}


def table(rows: list[dict], values: dict[str, str]) -> str:
    """A Markdown table of one data set and one judge: a line per model, columns per value and w."""
    weights = sorted({row["w"] for row in rows})
    heads = ["model", "steps", "NFE"]
    for key in values:
        heads += [f"{TITLES[key]}, w = {weights[0]:g}", *(f"w = {w:g}" for w in weights[1:])]
    named = [{**row, "model": NAMES[row["model"]]} for row in rows]
    text = [[*heads, "ms per image"], ["---"] * (len(heads) + 1), *tabulate(named, values)]
    return "\n".join(f"| {' | '.join(line)} |" for line in text)


def caption(rows: list[dict]) -> str:
    """What a reader must know about the numbers of a table."""
    row = rows[0]
    return (
        f"Judge: {row['feature_net']} (its Frechet distance is not FID); {row['n_samples']:,} "
        f"samples, reference {row['reference']}, seed {row['seed']}. NFE: network evaluations per "
        "image."
    )


def cost(training: dict[str, dict], name: str) -> str:
    """What the training of one data set took, and what distillation did, stage one and two."""
    stages_of = {k.removeprefix(f"{name}/"): v for k, v in training.items() if k.startswith(name)}
    minutes: dict[str, float] = {}  # of one core
    for stage, spent in stages_of.items():
        part = stage.split("/")[0]
        minutes[part] = minutes.get(part, 0) + spent["minutes"] * spent["cores"]
    distilled = sum(minutes[part] for part in ("stage-one", "stage-two") if part in minutes)
    spent = ", ".join(f"{part} {value:.1f}" for part, value in minutes.items())
    said = f"Training, in minutes of one CPU core: {spent}."
    if "teacher" not in minutes:
        return f"{said} The teacher is a base as it is."
    ratio = distilled / minutes["teacher"]
    return f"{said} Stages one and two took {ratio:.1f} times the teacher's."


def asked_and_given(given: dict) -> str:
    """Whether the dial of stage one works, in a sentence."""
    low, high = given["times"]
    return (
        f"Asked for w = {', '.join(given['delivered_w'])}, the network of stage one gives "
        f"{', '.join(f'{v:.2f}' for v in given['delivered_w'].values())} (`delivered_w`: "
        f"{given['n']:,} training examples, t in [{low:g}, {high:g}], seed {given['seed']}). The "
        "column *delivered w* is read from samples: the w at which the teacher's own, from the "
        "same noise, are nearest to the model's; not for samplers that add noise on their way."
    )


def _groups(rows: list[dict]) -> list[list[dict]]:
    """Those rows together that may be compared: of one data set, judge and number of samples."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        key = (row["dataset"], row["feature_net"], row["n_samples"])
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def summary(results: dict) -> str:
    """The README's table: CIFAR-10 by our own net, five models at two guidance weights."""
    own = [row for row in _groups(results["rows"]) if row[0]["dataset"] == "cifar10"][-2]
    shown = [("teacher", 256), ("teacher", 16), ("teacher", 4), ("student", 4), ("student", 1)]
    rows = [
        row
        for model, steps in shown
        for row in own
        if (row["model"], row["steps"], row["sampler"]) == (model, steps, "ddim")
        and row["w"] in (0.0, 1.0, 4.0)
    ]
    return f"{table(rows, PLANS['cifar10'].values)}\n\n{caption(rows)}"


def everything(results: dict) -> str:
    """All numbers as one Markdown page: for each data set, judge and number of samples a first
    table, and one of every other value."""
    parts = ["# All numbers", "Made by `make results` from `results.json`."]
    named = ""
    for rows in _groups(results["rows"]):
        name, n = rows[0]["dataset"], rows[0]["n_samples"]
        if name != named:
            parts += [f"## {name}", cost(results["meta"]["training"], name)]
            if name in results["meta"].get("delivered", {}):
                parts.append(asked_and_given(results["meta"]["delivered"][name]))
            named = name
        parts += [f"### {name}, {n:,} samples judged by {rows[0]['feature_net']}"]
        first = PLANS[name].values
        parts += [table(rows, first), caption(rows)]
        others = [key for key in TITLES if key in rows[0] and key not in first]
        forms = {"inception_score": ".2f", "kernel_distance": ".2g"}
        parts += [table(rows, {key: forms.get(key, ".4f")}) for key in others]
    return "\n\n".join(parts) + "\n"


def with_table(readme: str, results: dict) -> str:
    """The README with what stands between <!-- results --> and <!-- end --> made anew."""
    head, begin, rest = readme.partition("<!-- results -->\n")
    _, end, tail = rest.partition("<!-- end -->")
    return f"{head}{begin}{summary(results)}\n{end}{tail}" if begin and end else readme


def training_of(shipped: list[str]) -> dict[str, dict]:
    """{"digits/stage-one": its updates, minutes and cores} of all that was trained for a model."""
    return {
        f"{name}/{stage}": spent
        for name in shipped
        for stage, spent in json.loads(
            (RESULTS.parent / name / "training.json").read_text()
        ).items()
    }


def main(chosen: list[str]) -> None:
    shipped = list(dict.fromkeys(name.split("/")[0] for name in names()))
    if wrong := [name for name in chosen if name not in shipped]:
        raise SystemExit(f"Nothing is shipped for {wrong[0]!r}: choose from {', '.join(shipped)}.")
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": [], "meta": {}}
    out, chosen = Path("out/results"), chosen or shipped
    rows = [row for row in before["rows"] if row["dataset"] not in chosen]
    given = dict(before["meta"].get("delivered", {}))
    for name in chosen:
        own, given[name] = measure(name, out)
        rows += own
    training = training_of(shipped)
    given = {name: given[name] for name in shipped if name in given}
    results = {"meta": provenance(training=training, delivered=given), "rows": rows}
    write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    write_text(RESULTS.with_suffix(".md").with_stem("RESULTS"), everything(results))
    write_text(README, with_table(README.read_text(), results))


if __name__ == "__main__":
    main(sys.argv[1:])
