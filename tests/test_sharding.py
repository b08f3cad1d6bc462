"""FSDP2 with two processes on the CPU: what one process does, each holding half of every weight."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sharded
import torch

from cfgdistill import load
from cfgdistill.training.checkpoints import read_card, read_tensors

LAUNCH = "accelerate.commands.launch --use_fsdp --fsdp_version 2 --num_processes 2 --num_machines 1"
LAUNCH += " --mixed_precision no --dynamo_backend no --main_process_port 0"
HERE = Path(__file__).parent
MODELS = ["teacher", "steps-2", "steps-1"]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A folder in which one process and two have worked, also on each other's work, and losses."""
    folder = tmp_path_factory.mktemp("both")
    one = {word: getattr(sharded, word)(folder / f"{word}-1") for word in ("whole", "begin")}
    shutil.copytree(folder / "begin-1", folder / "one-then-two")
    words = ["whole/whole-2", "begin/two-then-one", "go_on/one-then-two", "shares/nowhere"]
    env = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE")}
    answer = subprocess.run(
        [sys.executable, "-m", *LAUNCH.split(), str(HERE / "sharded.py"), str(folder), *words],
        capture_output=True,
        text=True,
        env={**env, "CI": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert answer.returncode == 0, answer.stderr
    two = json.loads(answer.stdout)
    shutil.copytree(folder / "two-then-one", folder / "kept")
    two["two-then-one"] = sharded.go_on(folder / "two-then-one")
    return folder, one, two


def weights(folder):
    tensors, _ = read_tensors(folder / "model.safetensors")
    return torch.cat([tensors[key].flatten() for key in sorted(tensors)])


def test_losses_of_both_stages_are_those_of_one_process(both):
    _, one, two = both
    assert len(one["whole"]) == 12
    assert two["whole/whole-2"] == pytest.approx(one["whole"], rel=1e-5, abs=1e-5)


def test_each_process_holds_half_of_every_network_and_of_its_average(both):
    for held in both[2]["shares/nowhere"]:
        assert 0.45 < held < 0.55


@pytest.mark.parametrize("name", MODELS)
def test_the_finished_model_is_gathered_into_the_same_folder(both, name):
    one, two = (both[0] / f"whole-{n}" / name for n in (1, 2))
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}
    tensors = [read_tensors(folder / "model.safetensors")[0] for folder in (one, two)]
    shapes = [{key: (v.shape, v.dtype) for key, v in each.items()} for each in tensors]
    assert shapes[0] == shapes[1]
    cards = [read_card(folder) for folder in (one, two)]
    assert cards[0]["losses"] == pytest.approx(cards[1]["losses"], rel=1.1e-3)  # of four digits
    assert cards[0]["trained_parameters"] == cards[1]["trained_parameters"]
    assert cards[0]["about"] == cards[1]["about"]
    assert (weights(one) - weights(two)).norm() < 1e-3 * weights(one).norm()
    assert load(two).steps == load(one).steps


@pytest.mark.parametrize("name", ["one-then-two", "two-then-one"])
def test_a_run_goes_on_with_another_number_of_processes(both, name):
    folder, one, two = both
    rest = two.get(name) or two[f"go_on/{name}"]
    assert rest == pytest.approx(one["whole"][3:6], rel=1e-5, abs=1e-5)
    assert sorted(p.name for p in (folder / name).iterdir()) == ["card.json", "model.safetensors"]
    whole = weights(folder / "whole-1" / "teacher")  # of the moving average
    assert (weights(folder / name) - whole).norm() < 1e-3 * whole.norm()


def test_a_truncated_share_is_refused_in_a_sentence(both, tmp_path):
    shutil.copytree(both[0] / "kept", tmp_path / "kept")
    share = min((tmp_path / "kept" / "training-3").iterdir())
    share.write_bytes(share.read_bytes()[:1000])
    with pytest.raises(ValueError, match="kept in .*training-3 cannot be read: it is truncated"):
        sharded.go_on(tmp_path / "kept")
