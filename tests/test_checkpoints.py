"""Files that are replaced as a whole or not at all, and cards that say what they hold."""

import builtins
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import tiny_mlp
from safetensors.torch import load_file
from torch import nn

import cfgdistill
from cfgdistill import Denoiser, GuidedDenoiser
from cfgdistill.core.schedules import DiscreteSchedule
from cfgdistill.data.latents import cached
from cfgdistill.training import checkpoints
from cfgdistill.training.checkpoints import (
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
    assert card["cfgdistill"] == cfgdistill.__version__


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
        os, {"while writing": "fsync", "before the rename": "replace"}[moment], full
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
    replace = os.replace
    monkeypatch.setattr(
        os, "replace", lambda tmp, path: (order.append(path.name), replace(tmp, path))
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


# ---- several at once ----------------------------------------------------------------------------


def test_any_number_of_writers_of_one_file_at_once_never_fail_and_leave_it_whole(tmp_path):
    file, text = tmp_path / "model.json", "x" * 10_000
    with ThreadPoolExecutor(8) as pool:
        writes = [pool.submit(write_text, file, text) for _ in range(80)]
        for write in writes:
            write.result()
    assert file.read_text() == text and os.listdir(tmp_path) == ["model.json"]


def test_of_two_that_want_one_cached_tensor_at_once_one_makes_it(tmp_path):
    made, both = [], threading.Barrier(2)

    def make():
        made.append(1)
        time.sleep(0.05)
        return torch.ones(3)

    def want():
        both.wait()
        return cached(tmp_path, "latents", "key", make)

    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(want) for _ in range(2))
        assert torch.equal(first.result(), second.result())
    assert len(made) == 1 and len(os.listdir(tmp_path)) == 1


def test_an_equal_file_that_somebody_is_reading_on_windows_counts_as_written(tmp_path, monkeypatch):
    file = tmp_path / "model.json"
    write_text(file, "same")

    def denied(*given):
        raise PermissionError("used by another process")

    monkeypatch.setattr(os, "replace", denied)
    write_text(file, "same")
    with pytest.raises(OSError, match="used by another process"):
        write_text(file, "other")
    assert file.read_text() == "same" and os.listdir(tmp_path) == ["model.json"]


def test_a_file_is_flushed_through_a_descriptor_that_may_write(tmp_path, monkeypatch):
    # Windows refuses to flush any other.
    fcntl = pytest.importorskip("fcntl")
    modes, flush = [], os.fsync

    def look(number):
        modes.append(fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE)
        flush(number)

    monkeypatch.setattr(os, "fsync", look)
    write_text(tmp_path / "x", "text")
    assert modes and os.O_RDONLY not in modes


@pytest.mark.skipif(os.name != "posix", reason="needs a umask")
def test_who_may_read_a_file_is_what_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "x", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_a_lock_is_had_once_and_free_again_even_when_what_it_guarded_failed(tmp_path):
    file = tmp_path / "lock"
    with pytest.raises(ZeroDivisionError), checkpoints.alone(file):
        with pytest.raises(BlockingIOError, match=f"held by process {os.getpid()} on "):
            with checkpoints.alone(file, wait=0.0):
                pass
        1 / 0  # noqa: B018
    with checkpoints.alone(file, wait=0.0):
        assert file.exists()
    assert not file.exists()


# ---- what is kept --------------------------------------------------------------------------------


def test_tensors_that_share_memory_come_back_as_tensors_of_their_own(tmp_path):
    table = torch.arange(6.0)
    shared = {"a": table, "b": table, "part": table[2:4], "turned": table.reshape(2, 3).T}
    write_tensors(tmp_path / "x.safetensors", shared, {})
    assert same(read_tensors(tmp_path / "x.safetensors")[0], shared)


def test_a_network_with_tied_weights_is_kept_and_comes_back(tmp_path):
    model, other = tiny_mlp(0), tiny_mlp(1)
    for tied in (model, other):
        tied.net.again = tied.net.outer
    save_weights(model, tmp_path, {})
    load_weights(other, tmp_path)
    assert same(bits(model), bits(other)) and other.net.again is other.net.outer


@pytest.mark.parametrize(
    "about", [{"folder": Path("x")}, {"data": {1, 2}}, {"seed": torch.ones(2)}]
)
def test_what_cannot_be_kept_as_json_is_told_as_that_and_nothing_is_written(tmp_path, about):
    with pytest.raises(ValueError, match="is kept as JSON, in numbers, text"):
        save_weights(tiny_mlp(), tmp_path / "here", about)
    assert not (tmp_path / "here").exists()


def test_only_the_system_makes_it_a_full_disk(tmp_path, monkeypatch):
    def broken(*given):
        raise RuntimeError("a mistake in the program")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(RuntimeError, match="a mistake in the program"):
        write_text(tmp_path / "x", "text")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("first", ["its own", "another"])
def test_what_is_loaded_is_what_was_hashed_though_the_file_changes_meanwhile(
    tmp_path, monkeypatch, first
):
    for seed, name in enumerate("ab"):
        save_weights(tiny_mlp(seed), tmp_path / name, {})
    one, other = (tmp_path / name / "model.safetensors" for name in "ab")
    if first == "another":
        for old, new in ((one, tmp_path / "mine"), (other, one), (tmp_path / "mine", other)):
            old.rename(new)
    read = checkpoints.read_tensors

    def swapped_after(path):
        found = read(path)
        os.replace(other, path)
        return found

    monkeypatch.setattr(checkpoints, "read_tensors", swapped_after)
    model = tiny_mlp(2)
    with pytest.raises(ValueError, match="the sha256 differs"):
        load_weights(model, tmp_path / "a")
    assert same(bits(model), bits(tiny_mlp(2)))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_file_is_written_and_read_without_a_copy_of_it_in_memory(tmp_path):
    code = """
import re, sys, torch
from pathlib import Path
from cfgdistill.training.checkpoints import read_tensors, write_tensors
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
file = Path(sys.argv[1])
write_tensors(file, {"warm": torch.ones(1)}, {}), read_tensors(file)
tensors = {str(i): torch.ones(2**22) for i in range(4)}  # 64 MB
before = peak()
write_tensors(file, tensors, {})
written = peak()
read_tensors(file)
print(written - before, peak() - written)
"""
    words = [sys.executable, "-c", code, str(tmp_path / "x.safetensors")]
    written, read = map(float, subprocess.check_output(words, text=True).split())
    assert written < 16 and 32 < read < 80


@pytest.mark.parametrize("name", ["card.json", "model.safetensors"])
def test_nobody_is_told_to_delete_what_could_not_be_read(tmp_path, monkeypatch, name):
    save_weights(tiny_mlp(), tmp_path, {})

    real = builtins.open

    def denied(path, *given, **more):
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *given, **more)

    monkeypatch.setattr(builtins, "open", denied)
    monkeypatch.setattr(io, "open", denied)  # of a Path
    with pytest.raises((OSError, ValueError), match="cannot be read .*Permission denied") as told:
        load_weights(tiny_mlp(), tmp_path)
    said = str(told.value).replace(str(tmp_path), "")
    assert not re.search("delete|truncated|train it", said, re.IGNORECASE)


def changed(card, **entries):
    return json.dumps({**card, **entries})


BAD_CARDS = {
    "no JSON": lambda card: "{",
    "bytes": lambda card: "\x00\x01",
    "a list": lambda card: json.dumps([card]),
    "a number": lambda card: "1e999",
    "nested deep": lambda card: "[" * 100_000 + "]" * 100_000,
    "nested deep inside": lambda card: json.dumps(card)[:-1] + ', "x": ' + '{"a":' * 100_000,
    **{
        f"without {key}": lambda card, key=key: json.dumps(
            {k: v for k, v in card.items() if k != key}
        )
        for key in ("about", "model", "sha256")
    },
    **{
        f"{key} = {value!r}": lambda card, key=key, value=value: changed(card, **{key: value})
        for key in ("about", "model", "sha256", "recipe", "minutes", "losses", "cores")
        for value in (None, True, ["a"], {"a": 1}, "text", 3)
        if not isinstance(value, checkpoints.KINDS[key]) or isinstance(value, bool)
    },
    "another prediction type": lambda card: changed(
        card, model={**card["model"], "prediction_type": "eps"}
    ),
}


@pytest.mark.parametrize("kind", BAD_CARDS)
def test_what_is_no_card_of_ours_is_refused_in_one_sentence(tmp_path, kind):
    save_weights(tiny_mlp(), tmp_path, {}, minutes=1.0, cores=2, losses=[1.0], recipe={})
    card = json.loads((tmp_path / "card.json").read_text())
    assert read_card(tmp_path) == card
    (tmp_path / "card.json").write_text(BAD_CARDS[kind](card))
    with pytest.raises(ValueError, match="card.json is not one of ours") as told:
        read_card(tmp_path)
    assert "\n" not in str(told.value) and len(str(told.value)) < 500


def test_the_commit_of_a_repository_around_an_environment_is_not_ours(tmp_path, monkeypatch):
    installed = tmp_path / ".venv" / "checkpoints.py"
    installed.parent.mkdir()
    installed.write_text(Path(checkpoints.__file__).read_text())
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    (tmp_path / "theirs.py").write_text("")
    for command in (["init", "-q"], ["add", "theirs.py"], ["commit", "-qm", "theirs"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(checkpoints, "__file__", str(installed))
    assert git_commit() is None
    for command in (["add", "-f", str(installed)], ["commit", "-qm", "ours"]):
        subprocess.run([*git, *command], check=True)
    assert len(git_commit()) == 40
