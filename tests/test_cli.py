"""The command line: the walk of a newcomer, its JSON, and a sentence for whatever is wrong."""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from cfgdistill import Recipe, add_w_conditioning, cli, get_recipe, sample
from cfgdistill.data import named as data
from cfgdistill.teachers.files import load
from cfgdistill.training.checkpoints import read_card, read_tensors, save_weights, write_text

TINY = dict(
    channels=(8, 16),
    batch=4,
    classifier=2,
    teacher=3,
    stage_one=2,
    halving=1,
    start=2,
    images=40,
    samples=20,
)
SETTINGS = ["--profile", "smoke"]
for key, value in TINY.items():
    SETTINGS += ["--set", f"{key}={value}".replace(" ", "")]
ROW = {"model", "sampler", "steps", "nfe", "w", "ms_per_image"}
ROW |= {"frechet_distance", "kernel_distance", "inception_score"}
ROW |= {"precision", "recall", "class_accuracy"}
TORCH_FIDELITY = "torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder in which everything was trained by the command line, as out/..."""
    here, before = tmp_path_factory.mktemp("here"), Path.cwd()
    os.chdir(here)
    try:
        for sampler in ("ddim", "stochastic", "ddim_encode"):
            assert cli.main(["distill", "--sampler", sampler, *SETTINGS]) == 0
        assert cli.main(["evaluate", MODELS["student"], "--n", "4", "--w", "0"]) == 0
    finally:
        os.chdir(before)
    return here


@pytest.fixture
def run(here, capsys, monkeypatch):
    """run("sample ...") -> exit code, parsed JSON or None, what went to stderr."""
    monkeypatch.chdir(here)

    def run(*arguments, whole=False):
        words = [word for part in arguments for word in str(part).split()]
        words = list(arguments) if whole else words
        try:
            code = cli.main(words)
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        return code, json.loads(said.out) if said.out else None, said.err

    return run


MODELS = {
    "classifier": "out/digits-smoke/classifier",
    "teacher": "out/digits-smoke/teacher",
    "stage_one": "out/digits-smoke/stage-one",
    "student": "out/digits-smoke/stage-two/steps-2",
    "stochastic": "out/digits-smoke/stage-two-stochastic/steps-2",
    "encoder": "out/digits-smoke/encoder/steps-2",
}


# ---- the walk ----------------------------------------------------------------------------------

# `python -m cfgdistill` in forks of a process that has done most of the imports.
FORK = """
import json, os, runpy, sys, warnings
import cfgdistill.course.stages, sklearn.datasets
warnings.filterwarnings("ignore", "This process .* is multi-threaded")  # of Python 3.12, on fork
for words in json.loads(sys.argv[1]):
    if not (child := os.fork()):
        os.dup2(os.open(f"{words[0]}.out", os.O_WRONLY | os.O_CREAT), 1)
        sys.argv = ["cfgdistill", *words]
        runpy.run_module("cfgdistill", run_name="__main__")
    assert os.waitpid(child, 0)[1] == 0
"""


def in_processes(commands, where) -> dict:
    """{verb: its one JSON} of commands that each have a process, where nothing else is said."""
    given = json.dumps([[*map(str, words)] for words in commands])
    done = subprocess.run(
        [sys.executable, "-c", FORK, given],
        capture_output=True,
        text=True,
        cwd=where,
        env={**os.environ, "CI": "1"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return {words[0]: json.loads((where / f"{words[0]}.out").read_text()) for words in commands}


def test_train_distill_sample_evaluate_in_processes_of_their_own_print_json_and_nothing_else(
    tmp_path,
):
    folder = Path("out/digits-smoke")
    student = folder / "stage-two" / "steps-2"
    commands = [
        ["train", *SETTINGS],
        ["distill", *SETTINGS],
        ["sample", student, "--w", 1, "--n", 12, "--to", "four.png"],
        ["evaluate", student, "--w", 0, 3, "--n", 65, "--to", "rows.json"],
    ]
    results = in_processes(commands, tmp_path)
    [teacher] = results["train"]["models"]
    assert teacher["folder"] == str(folder / "teacher") and teacher["updates"] == 3
    models = results["distill"]["models"]
    names = ["stage-one", "stage-two/steps-2", "stage-two/steps-1"]
    assert [m["folder"] for m in models] == [str(folder / name) for name in names]
    for model in [teacher, *models]:
        weights = (tmp_path / model["folder"] / "model.safetensors").read_bytes()
        assert model["sha256"] == hashlib.sha256(weights).hexdigest()
    assert results["sample"] == {"file": "four.png", "n": 12, "steps": 2, "nfe": 2, "w": 1.0}
    assert (tmp_path / "four.png").read_bytes().startswith(b"\x89PNG")
    table = results["evaluate"]
    assert table == json.loads((tmp_path / "rows.json").read_text())
    assert [(r["w"], r["steps"], r["nfe"]) for r in table["rows"]] == [(0.0, 2, 2), (3.0, 2, 2)]


def test_every_bar_goes_to_stderr_and_none_is_drawn_under_ci(here, run, monkeypatch):
    for key in ("CI", "TQDM_DISABLE"):
        monkeypatch.delenv(key, raising=False)
    code, result, said = run("sample", MODELS["student"], "--n 4")
    assert code == 0 and result["n"] == 4 and "batches" in said
    code, result, said = run("evaluate", MODELS["student"], "--n 4 --w 0")
    assert code == 0 and "rows" in said
    code, result, said = run("train", *SETTINGS, "--set teacher=2 --out bars")
    assert code == 0 and "teacher" in said
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert run("sample", MODELS["student"], "--n 4")[2] == ""
    monkeypatch.delenv("TQDM_DISABLE")
    monkeypatch.setenv("CI", "true")
    assert run("sample", MODELS["student"], "--n 4")[2] == ""
    for key in ("CI", "TQDM_DISABLE"):
        monkeypatch.setenv(key, "0")
    assert "batches" in run("sample", MODELS["student"], "--n 4")[2]
    assert "teacher" in run("train", *SETTINGS, "--set teacher=2 --out more-bars")[2]
    monkeypatch.setenv("CI", "perhaps")
    assert run("sample", MODELS["student"], "--n 4")[0] == 1


# ---- what the verbs say ------------------------------------------------------------------------


def test_the_result_of_training_is_what_the_cards_say(run):
    code, result, _ = run("distill", *SETTINGS)
    recipe = json.loads(json.dumps(asdict(get_recipe("digits", "smoke", **TINY))))
    assert code == 0 and result["recipe"] == recipe
    for model in result["models"]:
        card = read_card(model["folder"])
        assert model["sha256"] == card["sha256"] and model["loss"] == card["losses"][-1]
        assert model["updates"] == card["about"]["updates"] == len(card["losses"])


def test_stage_one_alone_ends_before_stage_two(run, tmp_path):
    code, result, _ = run("distill --stage one", *SETTINGS, "--out", tmp_path)
    assert code == 0 and [Path(m["folder"]).name for m in result["models"]] == ["stage-one"]
    assert not (tmp_path / "digits-smoke" / "stage-two").exists()


def test_a_changed_setting_reaches_the_recipe(run, tmp_path):
    given = "--set rate=1 --set weighting=snr --set pretrained=False --set images=None"
    code, result, _ = run("train", *SETTINGS, given, "--out", tmp_path)
    changed = {"rate": 1.0, "weighting": "snr", "pretrained": False, "images": None}
    assert code == 0 and result["recipe"].items() >= changed.items()
    assert type(result["recipe"]["rate"]) is float


@pytest.mark.parametrize(
    ("model", "given", "steps", "nfe"),
    [
        ("teacher", "--steps 3", 3, 6),  # guided: two evaluations a step
        ("teacher", "", 64, 128),
        ("teacher", "--steps 3 --sampler ancestral", 3, 6),
        ("stage_one", "--steps 3", 3, 3),
        ("student", "", 2, 2),
        ("stochastic", "", 2, 2),
    ],
)
def test_the_cost_is_two_evaluations_a_step_for_a_guided_model_and_one_for_the_others(
    run, model, given, steps, nfe
):
    code, drawn, _ = run("sample", MODELS[model], given, "--n 130")  # two batches
    assert code == 0 and (drawn["steps"], drawn["nfe"]) == (steps, nfe)
    code, table, _ = run("evaluate", MODELS[model], given, "--n 20 --w 2")
    [row] = table["rows"]
    assert (row["steps"], row["nfe"], row["w"]) == (steps, nfe, 2.0)


def test_rows_have_the_documented_keys_and_finite_values_for_every_steps_and_w(run):
    given = f"--steps 1 2 --w 0 3 --n 10 --seed 4 --teacher {MODELS['stage_one']}"
    code, table, _ = run("evaluate", MODELS["teacher"], given)
    rows = table["rows"]
    wanted = [(steps, w) for steps in (1, 2) for w in (0.0, 3.0)]
    assert code == 0 and [(r["steps"], r["w"]) for r in rows] == wanted
    for row in rows:
        assert row.keys() == ROW | {"distance_to_teacher", "warning"}  # of so few samples
        assert all(math.isfinite(v) for v in row.values() if not isinstance(v, str))
    assert {"torch", "git_commit", "feature_net", "reference"} <= table["meta"].keys()
    assert (table["meta"]["n_samples"], table["meta"]["seed"]) == (10, 4)


def test_samples_as_tensors_are_those_of_the_model_for_these_labels_w_and_noise(run, here):
    from cfgdistill import ddim, last
    from cfgdistill.training.randomness import random_at

    given = "--classes 7 3 --n 5 --w 2 --seed 9 --to images.safetensors"
    assert run("sample", MODELS["student"], given)[0] == 0
    tensors, about = read_tensors(here / "images.safetensors")
    assert about["conds"] == [7, 3, 7, 3, 7] and (about["seed"], about["w"]) == (9, 2.0)
    z = torch.stack([torch.randn(1, 8, 8, generator=random_at(9, "sample", i)) for i in range(5)])
    x = last(ddim(load(here / MODELS["student"]), z, 2, torch.tensor(about["conds"]), 2.0))
    assert torch.equal(tensors["images"], x.clamp(-1, 1))


def test_what_images_shall_not_be_is_a_class_by_its_name_or_number(run, tmp_path):
    file = tmp_path / "four.safetensors"
    given = ("digits/stage-two/steps-4", "--n 2 --classes 4 --w 2 --negative 9 --to", file)
    code, said, _ = run("sample", *given)
    assert (code, said["nfe"]) == (0, 8)  # two evaluations a step
    known = sample(load("digits/stage-two/steps-4"), [4, 4], 2.0, negative=9)
    assert torch.equal(read_tensors(file)[0]["images"], known)
    told = ("digits/stage-two-negatives/steps-1", "--n 2 --classes 4 --negative 9 --to", file)
    assert run("sample", *told)[1]["nfe"] == 1
    code, _, said = run("sample", "digits/stage-two/steps-2", "--n 2 --negative 9")
    assert code == 1 and "train one that takes the negative as an input" in said
    for what in ("nine", 5000 * "9"):
        code, _, said = run("sample", "digits/stage-two/steps-4", "--n 2 --negative", what)
        assert code == 1 and f"There is no class '{what[:4]}" in said and len(said) < 1000


def test_several_strengths_are_said_with_commas_and_reach_the_network(run, tmp_path):
    student = add_w_conditioning(load("digits/teacher"), ((0.0, 2.0), (0.0, 1.0))).for_steps(2)
    for p in student.net.unet.time_embedding.cond_proj.parameters():  # 0 until it is trained
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) / 10
    save_weights(student, tmp_path / "student", {})
    how = (tmp_path / "student", "--n 2 --classes 3 --to", tmp_path / "two.safetensors")
    for words, w in (("--w 1.5,0.25", (1.5, 0.25)), ("", (1.0, 1.0))):
        code, said = run("sample", *how, words)[:2]
        assert code == 0 and tuple(said["w"]) == w
        images = read_tensors(tmp_path / "two.safetensors")[0]["images"]
        assert torch.equal(images, sample(student, [3, 3], w))
    code, _, said = run("sample", *how, "--w 1.5")
    assert code == 1 and "takes 2 guidance strengths, not 1" in said


def test_samples_need_neither_the_data_nor_a_copy_of_a_shipped_model(run, tmp_path, monkeypatch):
    monkeypatch.setattr("cfgdistill.course.stages.load_recipe_data", None)
    monkeypatch.setattr("cfgdistill.course.pretrained.use_pretrained", None)
    to = ("--to", tmp_path / "x.png")
    named = run("sample cifar10/stage-two/steps-1 --classes frog 8 --n 2", *to)
    assert named[0] == 0 and named[1]["nfe"] == 1
    assert run("sample emoji/stage-two/steps-1 --prompt octopus --n 1", *to)[0] == 0


def test_on_a_terminal_results_are_tables_and_with_json_they_are_not(here, capsys, monkeypatch):
    monkeypatch.chdir(here)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    words = ["evaluate", MODELS["student"], "--w", "0", "3", "--n", "4"]
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    [head] = [line for line in lines if line.startswith("model ")]
    rows = [line.split() for line in lines[lines.index(head) + 1 :][:2]]
    place = head.split().index("w")
    assert [row[place] for row in rows] == ["0.0", "3.0"] and rows[0][0] == "steps-2"
    assert max(len(line) for line in lines if line.startswith("meta")) <= 100
    assert cli.main([*words, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2
    assert cli.main(["sample", MODELS["student"], "--n", "4"]) == 0
    assert capsys.readouterr().out == "file: samples.png\nn: 4\nsteps: 2\nnfe: 2\nw: 1.0\n"


def test_evaluation_uses_the_classifier_beside_the_model_or_makes_one_where_told(run, tmp_path):
    before = read_card(MODELS["classifier"])["sha256"]
    assert run("evaluate", MODELS["student"], "--n 4 --w 0 --out", tmp_path)[0] == 0
    assert read_card(tmp_path / "digits-smoke" / "classifier")["sha256"] == before
    kept = Path(MODELS["classifier"], "card.json").stat().st_mtime_ns
    assert run("evaluate", Path(MODELS["student"]).absolute(), "--n 4 --w 0")[0] == 0
    assert Path(MODELS["classifier"], "card.json").stat().st_mtime_ns == kept


@pytest.mark.parametrize("verb", ["", "plan", "train", "distill", "sample", "evaluate"])
def test_help_teaches_every_verb_and_every_option(capsys, verb):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"] if verb else ["--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and max(map(len, said.splitlines())) <= 100
    if verb == "":
        assert all(
            f"  {name} " in said for name in ("plan", "train", "distill", "sample", "evaluate")
        )
        assert "accelerate launch" in said and "130" in said
    else:
        assert "guid" in said or "Stage one" in said or "Frechet" in said


# ---- what is refused ---------------------------------------------------------------------------

STUDENT, TEACHER = MODELS["student"], MODELS["teacher"]
REFUSED = {
    "train --dataset digit": "no data set 'digit': did you mean 'digits'",
    "plan --dataset digits": "Plans are for Stable Diffusion",
    "train --profile lapto": "no profile 'lapto': did you mean 'laptop'",
    "train --set chanels=(8,16)": "no setting 'chanels': did you mean 'channels'",
    "train --set dataset=cifar10": "no setting 'dataset'",
    "train --set teacher=many": "teacher='many' does not fit: teacher is a whole number from 1 to",
    "train --set teacher=1.5": "teacher=1.5 does not fit",
    "train --set teacher=True": "teacher=True does not fit",
    "train --set teacher={1,2}": "teacher={1, 2} does not fit",
    "train --set teacher": "teacher='' does not fit",
    "train --set batch=1000000000": "batch is a whole number from 1 to 1,000,000.",
    "train --set images=many": "images is a whole number from 1 to 1,000,000,000, or None.",
    "train --set channels=8": "channels is multiples of 8, one per resolution, such as (24, 48).",
    "train --set rate=nan": "rate is a number from 0 to 1000.",
    "train --set rate=1e400": "rate=inf does not fit",
    "train --set precision=half": "no precision 'half'",
    "train --set weighting=srn": "no weighting 'srn': did you mean 'snr'?",
    "train --set start=3": "start is a power of two",
    "train --set w_min=5": "w_min=5 is above w_max=4: students learn the guidance weights",
    "train --out a-file": "a-file cannot be used (File exists): choose another place",
    "distill --stage three": "no stage 'three'. The stages are one, two.",
    "distill --sampler dim": "no sampler 'dim': did you mean 'ddim'",
    "distill --sampler ancestral": "The samplers are ddim, stochastic, ddim_encode.",
    "sample nowhere": "nowhere holds no finished model",
    "sample out": "out holds no finished model",
    "sample a-file": "a-file holds no finished model",
    f"sample {MODELS['classifier']}": "no denoiser but a classifier",
    f"sample {MODELS['encoder']}": "holds an encoder, which makes noise from images",
    "sample truncated": "truncated or not a checkpoint",
    "sample flipped": "the sha256 differs",
    "sample points": "a model of points, not of images",
    f"sample {STUDENT} --w 9": "w = 9 is outside [0, 4]",
    f"sample {TEACHER} --w -1": "w = -1 is outside [0, 1000]",
    f"sample {STUDENT} --steps 4": "distilled for 2 steps, not 4",
    f"sample {STUDENT} --sampler stochastic": "for the sampler 'ddim', not 'stochastic'",
    f"sample {MODELS['stochastic']} --sampler ddim": "for the sampler 'stochastic', not 'ddim'",
    f"sample {TEACHER} --sampler ddim_encode": "The samplers are ddim, stochastic, ancestral.",
    f"sample {TEACHER} --classes 3 11": "whole numbers in 0 .. 9, or names such as '0', not",
    f"sample {TEACHER} --classes 10": "whole numbers in 0 .. 9, or names such as '0', not",
    f"sample {TEACHER} --classes -1": "Labels must be whole numbers in 0 .. 9",
    f"sample {TEACHER} --to x.jpg": "written as .png or .safetensors, not as 'x.jpg'",
    f"sample {TEACHER} --to a-file/x.png": "a-file/x.png could not be written (File exists)",
    "evaluate nowhere": "nowhere holds no finished model",
    "evaluate no-recipe": "names no recipe of this package, so its data set is unknown",
    f"evaluate {STUDENT} --steps 2 1": "distilled for 2 steps, not 1",
    f"evaluate {STUDENT} --w 0 7": "w = 7 is outside [0, 4]",
    f"evaluate {TEACHER} --steps 2 --teacher nowhere": "nowhere holds no finished model",
    f"evaluate {TEACHER} --steps 2 --teacher {STUDENT}": "is a student: compare with a model of",
    f"evaluate {TEACHER} --steps 2 --to a-file/e.json": "a-file/e.json could not be written (File",
    f"evaluate {TEACHER} --steps 2 --to out": "out is a folder: name a file with --to",
    "sample stock": "stock is a pipeline for stock diffusers: open it with from_pretrained there",
    f"evaluate {TEACHER} --steps 2 --fid": "The published FID compares with all 50,000 training",
}
USAGE = {
    "": "the following arguments are required: VERB",
    "learn": "invalid choice: 'learn'",
    "sample": "the following arguments are required: folder",
    f"sample {STUDENT} --n 0": "write a whole number from 1 on to 1,000,000, not '0'",
    f"sample {STUDENT} --steps 0": "write a whole number from 1 on to 1,000,000, not '0'",
    f"sample {STUDENT} --seed -1": "write a whole number from 0 on, not '-1'",
    f"sample {STUDENT} --w nan": "write a number such as 1.5, up to 1000, not 'nan'",
    f"sample {STUDENT} --w much": "write a number such as 1.5, up to 1000, not 'much'",
    f"sample {TEACHER} --w 1e38": "write a number such as 1.5, up to 1000, not '1e38'",
    f"sample {TEACHER} --n 1000000000": "write a whole number from 1 on to 1,000,000, not",
    f"evaluate {STUDENT} --n 3": "write a whole number from 4 on to 1,000,000, not '3'",
}


@pytest.fixture(scope="module")
def broken(here):
    """Folders and files that are not what a verb needs."""
    (here / "a-file").write_text("text")
    (here / "stock").mkdir()
    (here / "stock" / "model_index.json").write_text("{}")
    for name in ("truncated", "flipped", "no-recipe", "points"):
        shutil.copytree(here / TEACHER, here / name)
    file = here / "truncated" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    file = here / "flipped" / "model.safetensors"
    bits = bytearray(file.read_bytes())
    bits[-5] ^= 1
    file.write_bytes(bytes(bits))
    card = read_card(here / TEACHER)
    del card["recipe"]
    write_text(here / "no-recipe" / "card.json", json.dumps(card))
    from helpers import tiny_mlp

    save_weights(tiny_mlp(), here / "points", {})


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_done_is_told_in_one_sentence_with_exit_code_1(
    run, here, broken, words, monkeypatch
):
    monkeypatch.setattr(torch.nn.Conv2d, "forward", None)  # and before any network computes
    before = {p for p in here.rglob("*")}
    code, result, said = run(words)
    assert (code, result) == (1, None)
    assert REFUSED[words] in said and said.count("\n") == 1
    made = {p for p in here.rglob("*")} - before
    assert not any(p.is_file() for p in made)


@pytest.mark.parametrize("words", USAGE)
def test_wrong_usage_is_exit_code_2_with_the_usage(run, words):
    code, result, said = run(words)
    assert (code, result) == (2, None)
    assert said.startswith("usage: python -m cfgdistill") and USAGE[words] in said


def test_a_folder_of_another_recipe_is_refused_naming_the_difference(run):
    code, _, said = run("train", *SETTINGS, "--set teacher=4")
    assert code == 1 and "another run: updates is 3 there and 4 here" in said


@pytest.mark.parametrize("dataset", ["cifar10", "imagenet64"])
def test_data_that_cannot_be_had_are_told_with_what_to_do(run, monkeypatch, dataset):
    monkeypatch.delenv("CFGDISTILL_DATA", raising=False)

    def offline(*arguments, **more):
        raise ConnectionError("offline")

    monkeypatch.setattr("datasets.load_dataset", offline)
    code, _, said = run(f"train --profile smoke --dataset {dataset}")
    assert code == 1 and "or set CFGDISTILL_DATA" in said and "OSError" not in said


def test_the_published_fid_without_torch_fidelity_is_refused_before_any_sampling(
    run, monkeypatch, tmp_path
):
    # All of CIFAR-10 in name and number, in grey: it is never looked at.
    grey = torch.zeros(1, 3, 32, 32, dtype=torch.uint8).expand(50_000, -1, -1, -1)
    labels = torch.arange(50_000) % 10
    fake = data.Data("cifar10", "train", grey, labels, tuple("0123456789"), 255)
    object.__setattr__(fake, "hash", "grey")
    monkeypatch.setattr("cfgdistill.course.stages.load_data", lambda *given, **how: fake)
    tiny = "--set channels=(8,8) --set batch=2 --set teacher=1 --set images=None"
    assert run("train --dataset cifar10 --profile smoke --out", tmp_path, tiny)[0] == 0
    monkeypatch.setattr(torch.nn.Conv2d, "forward", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setattr(TORCH_FIDELITY, False)
    code, _, said = run("evaluate", tmp_path / "cifar10-smoke" / "teacher", "--fid --steps 1")
    assert code == 1 and "needs torch-fidelity" in said and "pip install" in said
    assert not (tmp_path / "cifar10-smoke" / "classifier").exists()


def test_without_w_a_model_is_asked_for_the_usual_weights_as_far_as_it_takes_them(run, tmp_path):
    high = "--set w_min=2.5 --set w_max=14"
    assert run("distill --stage one", *SETTINGS, high, "--out", tmp_path)[0] == 0
    [folder] = tmp_path.rglob("stage-one*")
    assert run("sample", folder, "--steps 1 --n 4")[1]["w"] == 2.5
    table = run("evaluate", folder, "--steps 1 --n 4", "--out", tmp_path)[1]
    assert [row["w"] for row in table["rows"]] == [2.5, 3.0]
    assert [row["w"] for row in run("evaluate", STUDENT, "--n 4")[1]["rows"]] == [0.0, 1.0, 3.0]


@pytest.mark.parametrize("model", ["teacher", "stage_one", "student", "stochastic"])
def test_data_of_the_same_name_that_are_not_the_models_own_are_refused(run, monkeypatch, model):
    other = data.load_data("digits", "test", 40)
    monkeypatch.setattr("cfgdistill.course.stages.load_data", lambda *given, **how: other)
    code, _, said = run("evaluate", MODELS[model])
    assert code == 1 and "was trained on other data than the digits that are found now" in said


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """The home of a tiny model that draws from text."""
    out, before = tmp_path_factory.mktemp("captioned"), Path.cwd()
    few = "autoencoder=1 teacher=1 stage_one=1 images=16 batch=4 channels=(8,16) vae_channels=(8,8)"
    settings = [word for entry in few.split() for word in ("--set", entry)]
    given = ["distill", "--stage", "one", "--dataset", "emoji", "--profile", "smoke", *settings]
    os.chdir(out)
    try:
        assert cli.main(given) == 0
    finally:
        os.chdir(before)
    return out / "out" / "emoji-smoke"


def test_what_draws_from_text_is_decoded_by_its_own_autoencoder_or_not_at_all(
    captioned, run, tmp_path, monkeypatch
):
    monkeypatch.setattr("cfgdistill.course.pretrained.use_pretrained", lambda *arguments: None)
    drawn = ("--prompt cat --steps 1 --n 1 --to", tmp_path / "cat.png")
    assert run("sample", captioned / "stage-one", *drawn)[0] == 0
    judged = "--steps 1 --w 0 --n 4"
    monkeypatch.setattr("cfgdistill.training.loop.Draw", None)  # nothing is trained from here on
    away = tmp_path / "away"
    shutil.copytree(captioned / "stage-one", away)
    assert run("sample", away, *drawn)[0] == 0  # its decoder came along
    code, _, said = run("evaluate", away, judged)
    assert code == 1 and "the autoencoder that was trained with it is not in" in said
    other = tmp_path / "other" / "emoji-smoke"
    shutil.copytree(captioned, other)
    card = read_card(other / "autoencoder")
    card["latents"]["scale"] *= 2
    write_text(other / "autoencoder" / "card.json", json.dumps(card))
    code, _, said = run("evaluate", other / "stage-one", judged)
    assert code == 1 and "was trained with another autoencoder than the one in" in said


def test_samples_that_are_no_numbers_are_refused_naming_w(run, monkeypatch):
    nothing = torch.full((4, 1, 8, 8), math.nan)
    monkeypatch.setattr("cfgdistill.teachers.drawing.last", lambda steps: nothing)
    code, _, said = run("sample", TEACHER, "--w 900 --n 4")
    assert code == 1 and "With w = 900.0 the samples are no numbers" in said


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_where_memory_ends_the_sentence_names_what_was_asked(run, monkeypatch, error):
    def full(*arguments):
        raise error

    monkeypatch.setattr("cfgdistill.course.stages.train_teacher", full)
    code, _, said = run("train", *SETTINGS, "--set batch=1000000")
    assert code == 1 and "not enough memory for --set" in said and "batch=1000000" in said
    assert said.count("\n") == 1


def test_ctrl_c_where_nothing_more_is_known_is_told_in_one_sentence(run, monkeypatch):
    def pressed(*given):
        raise KeyboardInterrupt  # as Python's own handler does

    monkeypatch.setattr("cfgdistill.course.stages.train_teacher", pressed)
    known = "Stopped. The same command again uses what is saved.\n"
    assert run("train", *SETTINGS) == (130, None, known)


def test_a_disk_that_fills_up_costs_neither_the_old_picture_nor_the_new_table(
    run, monkeypatch, tmp_path
):
    def full(*arguments, **more):
        raise OSError(28, "No space left on device")

    old = tmp_path / "x.png"
    old.write_text("old")
    monkeypatch.setattr("cfgdistill.judge.plotting.save_images", full)
    code, _, said = run("sample", STUDENT, "--n 4 --to", old)
    assert code == 1 and f"{old} could not be written (No space left on device)" in said
    assert old.read_text() == "old" and list(tmp_path.iterdir()) == [old]
    monkeypatch.setattr("cfgdistill.training.checkpoints.write_text", full)
    code, table, said = run("evaluate", STUDENT, "--n 4 --w 0 --to", tmp_path / "rows.json")
    assert code == 1 and len(table["rows"]) == 1 and "No space left on device" in said


def test_a_prompt_is_what_was_typed_in_every_locale():
    assert cli._text("café") == cli._text("caf\udcc3\udca9") == "café"
    for broken in ("\ud800", "\udcff"):
        with pytest.raises(argparse.ArgumentTypeError, match="write text in UTF-8"):
            cli._text(broken)


def test_a_reader_who_has_enough_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "cfgdistill", "sample", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("where", ["import", "work", "twice"])
def test_stopped_at_any_moment_it_says_so_in_one_sentence(monkeypatch, capsys, name, where):
    from cfgdistill.__main__ import run

    number = getattr(signal, name, signal.SIGINT)  # Windows has no SIGHUP
    handlers = {n: signal.getsignal(n) for n in map(signal.Signals, (number, signal.SIGINT))}

    class Fake(ModuleType):
        def __getattr__(self, name):
            if where == "import":
                signal.raise_signal(number)
            return self.work

        @staticmethod
        def work():
            try:
                signal.raise_signal(number)
            finally:
                if where == "twice":
                    signal.raise_signal(number)

    monkeypatch.setitem(sys.modules, "cfgdistill.cli", Fake("cfgdistill.cli"))
    try:
        assert run() == 130
    finally:
        for n, handler in handlers.items():
            signal.signal(n, handler)
    said = capsys.readouterr().err
    assert said == "Stopped. The same command again uses what is saved.\n"


# ---- whatever is asked for ----------------------------------------------------------------------

NUMBERS = "-1 0 1 2 3 4 7 10 1.5 nan inf -inf 1e38 1e400 1000000 99999999999999999999999 0x10 1_0"
WORDS = [
    "",
    "x",
    "None",
    "True",
    "'x'",
    "[]",
    "()",
    "(8,)",
    "(8,16)",
    "(7,)",
    "{1}",
    "{1:2}",
    "b''",
]
WORDS += ["1j", "...", "(" * 200, "9" * 5000, "\udc80", "ü", "snr", "eps", "half", *NUMBERS.split()]
PLACES = ["", ".", "out", "new", "a-file", "a-file/x", "x" * 300, "new/x.png", "x.safetensors", "ü"]
JUNK = [None, True, -1, 0, 3, 1.5, 10**30, 1e300, "", "x", "../..", [], [3], {}, {"a": 1}, [[]]]


class Any:
    """Odd requests, drawn from what the command line itself says it takes."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        [verbs] = [action.choices for action in cli.parser()._actions if action.choices]
        self.verbs = verbs

    def request(self) -> list[str]:
        verb = self.random.choice(list(self.verbs))
        words = [verb]
        for action in self.verbs[verb]._actions[1:]:  # the first one is --help
            if not action.option_strings:
                words.append(self.random.choice([*MODELS.values(), *PLACES, "card"]))
            elif action.dest == "set":
                words += [w for _ in range(self.random.randrange(3)) for w in ("--set", self.set())]
            elif self.random.random() < 0.3:
                words += [action.option_strings[0], *self.values(action)]
        if verb in ("train", "distill") and self.random.random() < 0.8:
            words += SETTINGS[:2]
        return words

    def values(self, action) -> list[str]:
        if action.nargs == 0:
            return []
        own = re.findall(r"\w+", action.help or "")  # names that the help mentions
        few = [
            self.random.choice([*WORDS, *PLACES, *own]) for _ in range(self.random.randint(1, 2))
        ]
        return few if action.nargs == "+" else few[:1]

    def set(self) -> str:
        entry = self.random.choice(dataclasses.fields(Recipe)).name
        return f"{entry}={self.random.choice(WORDS)}"

    def card(self, card: dict) -> dict:
        """A card with one entry, at any depth, that is missing or something else."""
        card = json.loads(json.dumps(card))
        place = card
        while True:
            key = self.random.choice(list(place))
            if not (isinstance(place[key], dict) and place[key]) or self.random.random() < 0.2:
                break
            place = place[key]
        if self.random.random() < 0.2:
            del place[key]
        else:
            place[key] = self.random.choice(JUNK)
        if self.random.random() < 0.5:  # as cards were before this was in them
            card.pop("model_sha256", None)
        return card


@pytest.fixture
def light(monkeypatch, broken):
    """Whatever takes time does nothing: what is left is all that reads, checks and refuses."""
    judge = SimpleNamespace(name="judge", reference="none")
    monkeypatch.setattr("cfgdistill.course.stages.train", lambda *given: iter(()))
    monkeypatch.setattr("cfgdistill.training.progressive.train", lambda *given: iter(()))
    monkeypatch.setattr("cfgdistill.course.stages.make_judge", lambda *given: judge)
    monkeypatch.setattr("cfgdistill.judge.metrics.evaluate", lambda *given, **how: {})
    monkeypatch.setattr("cfgdistill.export.stock.export", lambda *given, **how: "exported")
    monkeypatch.setattr("cfgdistill.course.pretrained.use_pretrained", lambda recipe, out: recipe)
    monkeypatch.setattr(
        "cfgdistill.course.stages.load_captioned", lambda *given, **how: load_nothing()
    )
    monkeypatch.setattr("datasets.load_dataset", lambda *given, **how: load_nothing())
    monkeypatch.delenv("CFGDISTILL_DATA", raising=False)

    def samples(model, shape, labels, **how):
        return iter([torch.zeros(1, *shape)])

    monkeypatch.setattr("cfgdistill.judge.metrics.samples", samples)


class Unreachable(OSError):
    """Its name is no word that a sentence must not hold."""


def load_nothing():
    raise Unreachable("There are no such data here.")


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_asked_for_is_done_or_refused_in_one_sentence(run, here, light, seed):
    any = Any(seed)
    card = here / "card" / "card.json"
    if not card.exists():
        shutil.copytree(here / STUDENT, card.parent)
    plain = read_card(here / STUDENT)
    for _ in range(50):
        write_text(card, json.dumps(any.card(plain)))
        words = (
            any.request()
            if any.random.random() < 0.7
            else [any.random.choice(["sample", "evaluate", "export"]), "card"]
        )
        try:
            code, _, said = run(*words, whole=True)
        except BaseException as error:
            raise AssertionError(f"{words} {card.read_text()[:3000]}") from error
        assert code in (0, 1, 2), words
        if code == 1:
            assert said.count("\n") == 1 and said.endswith(".\n"), (words, said)
            assert "Error" not in said and len(said) < 1000, (words, said)


# ---- several processes, one of which is this one ------------------------------------------------


def alone(cpu):
    """In the place of PartialState, which would wait for the other processes."""
    several = int(os.environ.get("WORLD_SIZE", 1))
    first = contextlib.nullcontext
    return SimpleNamespace(
        device=torch.device("cpu"), num_processes=several, main_process_first=first
    )


def test_only_the_first_process_reports_and_draws_a_bar(run, monkeypatch, tmp_path):
    monkeypatch.setattr("accelerate.PartialState", alone)
    for key in ("CI", "TQDM_DISABLE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TQDM_DISABLE", "")
    given = ("sample", STUDENT, "--n 4 --to", tmp_path / "x.png")
    assert run(*given) == (0, None, "") and not list(tmp_path.iterdir())
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TQDM_DISABLE", "")
    assert run(*given)[1]["n"] == 4 and (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (f"evaluate {STUDENT} --n 126", "would have 1 of 126 samples, too few for 2 processes"),
        (f"evaluate {STUDENT} --n 20 --fid", "The published FID is for a single process"),
    ],
)
def test_what_two_processes_cannot_share_is_refused(run, monkeypatch, given, sentence):
    monkeypatch.setattr("accelerate.PartialState", alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, said = run(given)
    assert code == 1 and sentence in said and said.count("\n") == 1


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_outside_of_training_too_ends_with_130_and_one_sentence(monkeypatch, capsys, name):
    def press():
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(5)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    monkeypatch.setattr(cli, "main", press)
    try:
        with pytest.raises(SystemExit) as told:
            runpy.run_module("cfgdistill.__main__", run_name="__main__")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert told.value.code == 130
    assert capsys.readouterr().err == "Stopped. The same command again uses what is saved.\n"
