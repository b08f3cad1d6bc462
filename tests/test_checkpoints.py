"""Files that are replaced as a whole or not at all, and cards that say what they hold."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import tiny_mlp
from safetensors.torch import load_file
from torch import nn

import cfgdistill
from cfgdistill import Denoiser, GuidedDenoiser, checkpoints
from cfgdistill.checkpoints import (
    fingerprint,
    git_commit,
    load_weights,
    provenance,
    read_card,
    read_tensors,
    refuse_other,
    save_weights,
    write_tensors,
    write_text,
)
from cfgdistill.schedules import DiscreteSchedule


def bits(model):
    return {key: value.clone() for key, value in model.net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_weights_come_back_bit_for_bit_with_what_was_said_about_them(tmp_path):
    model, other = tiny_mlp(0), tiny_mlp(1)
    assert not same(bits(model), bits(other))
    save_weights(model, tmp_path, {"seed": 5, "w": (0.0, 4.0)}, minutes=1.5)
    card = load_weights(other, tmp_path, {"seed": 5, "w": (0.0, 4.0)})
    assert same(bits(model), bits(other))
    assert card["about"] == {"seed": 5, "w": [0.0, 4.0]} and card["minutes"] == 1.5
    assert card["model"]["net"]["net"] == "MLP" and card["model"]["prediction_type"] == "v"


def test_the_card_names_the_sha256_of_the_file_and_the_file_is_plain_safetensors(
    tmp_path,
):
    save_weights(tiny_mlp(), tmp_path, {})
    data = (tmp_path / "model.safetensors").read_bytes()
    assert read_card(tmp_path)["sha256"] == hashlib.sha256(data).hexdigest()
    assert same(load_file(tmp_path / "model.safetensors"), bits(tiny_mlp()))


def test_the_same_weights_make_the_same_file(tmp_path):
    for name in ("a", "b"):
        save_weights(tiny_mlp(), tmp_path / name, {})
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


def test_equal_models_and_only_they_have_the_same_fingerprint():
    same, other = tiny_mlp(0), tiny_mlp(0)
    assert fingerprint(same) == fingerprint(other) != fingerprint(tiny_mlp(1))
    with torch.no_grad():
        other.net.outer.bias[0] += 1e-6
    assert fingerprint(same) != fingerprint(other) and len(fingerprint(same)) == 16


def test_equal_bytes_that_mean_something_else_have_another_fingerprint():
    model, table = tiny_mlp(), torch.tensor([0.75, 0.25])
    others = [
        Denoiser(model.net, DiscreteSchedule(table), "v", num_classes=3),
        Denoiser(model.net, model.schedule, "eps", num_classes=3),
        model.for_steps(4),
        GuidedDenoiser(model, 3),
        GuidedDenoiser(model, 2),
    ]
    four = torch.zeros(4)
    for name, value in (("a", four), ("b", four), ("a", four[None]), ("a", four.int())):
        held = nn.Module()
        held.register_buffer(name, value)
        others.append(held)
    assert len({fingerprint(other) for other in (model, *others)}) == len(others) + 1


def test_a_computed_table_is_known_by_what_it_was_made_of():
    table = torch.tensor([0.75, 0.25], dtype=torch.float64)
    near = torch.nextafter(table, torch.ones(1).double())
    here, there = (
        Denoiser(tiny_mlp().net, DiscreteSchedule(t, {"betas": 2}).zero_terminal_snr())
        for t in (table, near)
    )
    assert (
        here.describe()["schedule"]["alphas_cumprod"]
        != there.describe()["schedule"]["alphas_cumprod"]
    )
    assert fingerprint(here) == fingerprint(there)
    refuse_other(Path("x"), here.describe(), there.describe())
    other = Denoiser(tiny_mlp().net, DiscreteSchedule(table, {"betas": 2}))
    assert fingerprint(other) != fingerprint(here)
    with pytest.raises(ValueError, match="schedule.zero_terminal_snr is None there and True here"):
        refuse_other(Path("x"), other.describe(), here.describe())


def test_a_fingerprint_does_not_depend_on_the_order_in_which_layers_were_added():
    layers = {"a": nn.Linear(2, 3), "b": nn.Linear(3, 2)}
    there, back = (
        nn.ModuleDict(dict(order)) for order in (layers.items(), [*layers.items()][::-1])
    )
    assert [*there.state_dict()] != [*back.state_dict()]
    assert fingerprint(there) == fingerprint(back)


def test_tensors_and_their_state_come_back(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(3)}
    write_tensors(tmp_path / "x.safetensors", tensors, {"done": 7, "names": ["ü", "b"]})
    back, state = read_tensors(tmp_path / "x.safetensors")
    assert same(back, tensors) and state == {"done": 7, "names": ["ü", "b"]}


@pytest.mark.parametrize("moment", ["while writing", "before the rename"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, moment):
    def full(*args, **more):
        raise OSError("No space left on device")

    file = tmp_path / "model.json"
    write_text(file, "old")
    monkeypatch.setattr(
        *{
            "while writing": (Path, "write_text", full),
            "before the rename": (os, "replace", full),
        }[moment]
    )
    with pytest.raises(OSError, match=r"model.json could not be written \(No space left"):
        write_text(file, "new")
    monkeypatch.undo()
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["model.json"]


def test_a_reader_never_sees_half_a_file(tmp_path, monkeypatch):
    file, seen = tmp_path / "model.json", []
    write_text(file, "old")
    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (seen.append(file.read_text()), flush(fd)))
    write_text(file, "new")
    assert seen == ["old"] and file.read_text() == "new"  # on the disk before it is renamed


def test_the_card_is_written_last_so_a_folder_with_a_card_is_complete(tmp_path, monkeypatch):
    order = []
    write = checkpoints._write
    monkeypatch.setattr(
        checkpoints, "_write", lambda path, how: (order.append(path.name), write(path, how))
    )
    save_weights(tiny_mlp(), tmp_path, {})
    assert order == ["model.safetensors", "card.json"]


def test_folders_are_made_when_they_are_missing(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "here")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "here"


def test_the_git_commit_is_the_one_of_the_checkout():
    answer = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(cfgdistill.__file__).parent,
        capture_output=True,
        text=True,
    )
    expected = answer.stdout.strip() if answer.returncode == 0 else None
    commit = git_commit()
    assert (commit and commit.rstrip("+")) == expected


def test_the_git_commit_is_none_where_there_is_no_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


def test_provenance_names_the_versions_and_what_it_is_given():
    facts = provenance(profile="smoke", seed=0)
    assert facts["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["profile"] == "smoke" and json.loads(json.dumps(facts)) == facts


def test_a_difference_in_a_long_table_is_told_in_a_short_sentence(tmp_path):
    one, other = ({"table": [k / 1024 + d for k in range(1024)]} for d in (0, 1))
    with pytest.raises(ValueError, match=r"table is \[0.0, .*\.\.\. .* characters") as told:
        checkpoints.refuse_other(tmp_path, one, other)
    assert len(str(told.value)) < 300 + len(str(tmp_path))
