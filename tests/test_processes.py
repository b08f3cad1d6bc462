"""Two processes on the CPU, as `accelerate launch` starts them, do what one does."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import unet_of

from cfgdistill import cli
from cfgdistill.course.recipes import get_recipe
from cfgdistill.training.checkpoints import read_card, read_tensors

TINY = "channels=(8,16) batch=4 classifier=3 teacher=5 stage_one=3 halving=1 start=2 images=40"
SETTINGS = ["--profile", "smoke"]
for setting in TINY.split():
    SETTINGS += ["--set", setting]
NAMES = ["teacher", "stage-one", "stage-two/steps-2", "stage-two/steps-1"]
LAUNCH = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1"
LAUNCH += " --mixed_precision no --dynamo_backend no --main_process_port 0 -m cfgdistill"
STUDENT = "out/digits-smoke/stage-two/steps-2"
EVALUATE = ["--w", "2", "--n", "37"]  # shares of 19 and 18
SAMPLE = ["--n", "6", "--to", "x.safetensors"]
# Both processes copy it, and its sampler draws on the way; emoji: latents, which both compute.
SHIPPED = ["digits/stage-two-stochastic/steps-2", "emoji/stage-two/steps-1"]


def start(where, *arguments):
    env = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE")}
    return subprocess.Popen(
        [sys.executable, "-m", *LAUNCH.split(), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=where,
        env={**env, "CI": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def two(where, *arguments):
    """The command with two processes: exit code, its one JSON, what was said on stderr."""
    process = start(where, *arguments)
    out, said = process.communicate()
    return process.returncode, json.loads(out) if out else None, said


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Folders and results of the same commands with one process and with two.

    Both evaluate and sample the student that was trained by one.
    """
    one, pair = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    student = str(one / STUDENT)
    commands = [["distill", *SETTINGS], ["evaluate", student, *EVALUATE]]
    commands += [["sample", student, *SAMPLE]]
    commands += [["evaluate", name, "--w", "2", "--n", "8"] for name in SHIPPED]
    results, before = {}, os.getcwd()
    os.chdir(one)
    try:
        with pytest.MonkeyPatch.context() as patch:
            said = []
            patch.setattr("builtins.print", lambda *words, **how: said.append(words[0]))
            for words in commands:
                assert cli.main(words) == 0, said
                results[_key(words)] = [json.loads(said.pop())]
    finally:
        os.chdir(before)
    for words in commands:
        code, result, said = two(pair, *words)
        assert code == 0, said
        results[_key(words)].append(result)
    return one, pair, results


def _key(words):
    return words[1] if words[1] in SHIPPED else words[0]


def models(where):
    return {name: where / "out" / "digits-smoke" / name for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_losses_of_every_update_and_settings_do_not_depend_on_the_number_of_processes(both, name):
    one, pair = (read_card(models(where)[name]) for where in both[:2])
    assert len(one["losses"]) == {"teacher": 5}.get(name, 3)
    # A card has four digits of a loss.
    assert pair["losses"] == pytest.approx(one["losses"], rel=1.1e-3)
    one["about"].pop("teacher", None), pair["about"].pop("teacher", None)  # sha256 of weights
    assert one["about"] == pair["about"]


def weights(folder):
    tensors, _ = read_tensors(folder / "model.safetensors")
    return torch.cat([tensors[key].flatten() for key in sorted(tensors)])


def test_the_weights_agree_to_a_small_part_of_how_far_they_moved(both):
    recipe = get_recipe("digits", "smoke", channels=(8, 16))
    tensors = unet_of(recipe, channels=1, size=8, num_classes=10).net.state_dict()
    start = torch.cat([tensors[key].flatten() for key in sorted(tensors)])
    one, pair = (weights(models(where)["teacher"]) for where in both[:2])
    # Not closer, for Adam's first steps are as long for a gradient of rounding errors as for any.
    assert (one - pair).norm() < 0.1 * (one - start).norm()
    for name in NAMES[1:]:
        one, pair = (weights(models(where)[name]) for where in both[:2])
        assert (one - pair).norm() < 1e-3 * one.norm()


def test_two_processes_write_once_and_print_one_json(both):
    for result in both[2]["distill"]:
        assert [m["updates"] for m in result["models"]] == [3, 3, 3]
    for where in both[:2]:
        files = {
            p.relative_to(where / "out" / "digits-smoke")
            for p in where.rglob("out/digits-smoke/**/*.*")
        }
        kept = {str(p.parent) for p in files} - {"classifier"}
        assert kept == set(NAMES) and {p.name for p in files} == {"model.safetensors", "card.json"}


def test_evaluation_does_not_depend_on_the_number_of_processes(both):
    (one,), (pair,) = (result["rows"] for result in both[2]["evaluate"])
    assert one.keys() == pair.keys()
    for row in (one, pair):
        assert (row.pop("model"), row.pop("sampler"), row["nfe"]) == ("steps-2", "ddim", 2)
        row.pop("ms_per_image")  # the only thing that may differ
        assert row.pop("warning").startswith("37 samples are too few for a distance of 64")
    assert pair == pytest.approx(one, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_are_judged_alike_by_two_processes_that_take_them_at_once(both, name):
    (one,), (pair,) = (result["rows"] for result in both[2][name])
    for row in (one, pair):
        assert row.pop("model") in name and row.pop("sampler") in ("stochastic", "ddim")
        row.pop("ms_per_image"), row.pop("warning")
    assert pair == pytest.approx(one, rel=1e-3, abs=1e-3)


def test_samples_do_not_depend_on_the_number_of_processes(both):
    assert both[2]["sample"][0] == both[2]["sample"][1]
    one, pair = (read_tensors(where / "x.safetensors")[0]["images"] for where in both[:2])
    # Another seed or another share would differ by about 1. Bits depend on the threads and the
    # kernels that a batch of this size gets: with two threads against one they do differ.
    torch.testing.assert_close(one, pair, atol=1e-4, rtol=0)


def test_a_batch_that_two_processes_cannot_share_is_refused_in_one_sentence(tmp_path):
    code, result, said = two(tmp_path, "train", *SETTINGS, "--set", "batch=5")
    assert code == 1 and result is None and not list(tmp_path.rglob("*.*"))
    sentence = "A batch of 5 cannot be shared by 2 processes: choose a multiple of their number."
    assert sentence in said.splitlines()


def test_ctrl_c_stops_both_processes_after_the_same_update_and_saves(tmp_path):
    given = ["--set", "teacher=5000", "--set", "save_every=2"]
    process = start(tmp_path, "train", *SETTINGS, *given)
    state = tmp_path / "out" / "digits-smoke" / "teacher" / "training.safetensors"
    while process.poll() is None and not state.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)  # the launcher passes it on to both
    out, said = process.communicate()
    assert process.returncode != 0 and out == ""
    assert "Stopped in teacher. The last checkpoint is in out/digits-smoke/teacher;" in said
    losses = read_tensors(state)[0]["losses"]
    assert 2 <= len(losses) < 5000 and losses.isfinite().all()
