"""Training: the same bits every time, also when it was stopped, killed or split."""

import copy
import hashlib
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from accelerate import PartialState
from helpers import plan, tiny_mlp

from cfgdistill import (
    CosineSchedule,
    Denoiser,
    GuidedDenoiser,
    Optim,
    Run,
    cli,
    distill_progressively,
    train,
)
from cfgdistill.core.losses import teacher_loss
from cfgdistill.core.stage_one import stage_one_loss
from cfgdistill.core.stage_two import halvings, stage_two_loss
from cfgdistill.data.named import load_data
from cfgdistill.teachers.files import load
from cfgdistill.training import loop as training
from cfgdistill.training import randomness, state
from cfgdistill.training.checkpoints import read_card, read_tensors, save_weights
from cfgdistill.training.environment import mixed_precision
from cfgdistill.training.progressive import reset
from cfgdistill.training.randomness import Draw, random_at

DATA = load_data("toy", images=300)
LOSS = teacher_loss(3, 0.1)
CPU = torch.device("cpu")


def run(model, **changes):
    given = dict(name="teacher", updates=12, batch=8, rate=1e-2, seed=0, ema=0.9, save_every=5)
    return train(model, LOSS, DATA, *plan(**{**given, **changes}))


def bits(model):
    return [p.detach().clone() for p in model.net.state_dict().values()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(bits(a), bits(b), strict=True))


def trained(**changes):
    model = tiny_mlp()
    return model, list(run(model, **changes))


# ---- the random numbers ------------------------------------------------------------------------


def test_the_numbers_of_an_update_depend_on_seed_name_and_number_alone():
    def first(*where):
        return torch.rand(4, generator=random_at(*where)).tolist()

    base = first(0, "teacher", 7)
    torch.rand(1000)
    torch.manual_seed(99)
    assert first(0, "teacher", 7) == base
    assert base not in (first(1, "teacher", 7), first(0, "stage-one", 7), first(0, "teacher", 8))


def test_the_numbers_of_an_update_are_pinned():
    # A change here would make every seed mean something else than it did.
    digest = hashlib.sha256(b"(0, 'teacher', 7)").digest()
    seed = int.from_bytes(digest[:8], "little", signed=True)
    known = torch.rand(4, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(torch.rand(4, generator=random_at(0, "teacher", 7)), known)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_shares_of_several_processes_together_are_what_one_would_draw(processes):
    def all_kinds(share):
        draw = Draw((0, "teacher", 7), 8, share, CPU)
        return draw.integers(100), draw.uniform(), draw.normal((2, 3)), draw.uniform()

    size = 8 // processes
    shares = [all_kinds(slice(k * size, (k + 1) * size)) for k in range(processes)]
    for whole, parts in zip(all_kinds(slice(None)), zip(*shares, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(parts))


def test_draws_are_made_on_the_device_so_that_it_never_waits(monkeypatch):
    # The meta device stands for a GPU: it makes tensors, but torch has no generator for it.
    asked = []
    monkeypatch.setattr(
        randomness, "random_at", lambda *where, device: asked.append((where, str(device)))
    )
    meta = torch.device("meta")
    draw = Draw((0, "teacher", 7), 8, slice(2, 6), meta)
    draws = [draw.uniform(), draw.normal((3,)), draw.integers(5)]
    assert asked == [((0, "teacher", 7), "meta")] and {d.device for d in draws} == {meta}
    assert [list(d.shape) for d in draws] == [[4], [4, 3], [4]]


def test_draws_have_the_distribution_they_are_named_after():
    draw = Draw((0, "x", 0), 20_000, slice(None), CPU)
    u, n, i = draw.uniform(), draw.normal(()), draw.integers(3)
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.01
    assert abs(n.mean()) < 0.03 and abs(n.std() - 1) < 0.02
    assert (torch.bincount(i) - 20_000 / 3).abs().max() < 300 and i.device == CPU


# ---- the loop ----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_whatever_ran_before():
    first, updates = trained()
    torch.manual_seed(5)
    torch.rand(100)
    second, again = trained()
    assert same(first, second) and updates == again
    assert not same(first, trained(seed=1)[0])


def test_every_update_sees_the_numbers_of_its_own_place():
    seen = []

    def watch(model, x, cond, draw):
        seen.append((x, draw.uniform()))
        return LOSS(model, x, cond, draw)

    list(train(tiny_mlp(), watch, DATA, Optim(4, 8, 1e-3), Run("a", seed=7)))
    for k, (x, u) in enumerate(seen):
        draw = Draw((7, "a", k), 8, slice(None), CPU)
        known, _ = DATA.batch(draw.integers(300), draw.uniform())
        assert torch.equal(x, known) and torch.equal(u, draw.uniform())
    assert not torch.equal(seen[0][0], seen[1][0])


def test_every_update_is_yielded_with_its_number_loss_and_rate():
    _, updates = trained()
    assert [u.number for u in updates] == list(range(1, 13))
    assert all(u.loss > 0 for u in updates)


def test_the_rate_rises_over_50_updates_and_falls_linearly_to_0():
    _, updates = trained(updates=100, rate=0.2, ema=0.0)
    # update k (counting from 1): 0.2 min(1, k / 50) (1 - (k - 1) / 100)
    by_hand = {1: 0.004, 25: 0.2 * 0.5 * 0.76, 50: 0.2 * 0.51, 51: 0.1, 76: 0.05, 100: 0.002}
    for number, rate in by_hand.items():
        assert updates[number - 1].rate == pytest.approx(rate, rel=1e-12)
    _, updates = trained(updates=20, rate=0.2, ema=0.0, warm_up=4)
    for number, rate in {1: 0.05, 2: 0.1 * 19 / 20, 4: 0.2 * 17 / 20, 11: 0.1}.items():
        assert updates[number - 1].rate == pytest.approx(rate, rel=1e-12)


class Scalar(torch.nn.Module):
    """One parameter a, with loss a times a constant: every gradient is known."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(1, 1, bias=False)
        self.net.weight.data.fill_(1.0)

    def describe(self):
        return {}


def push(model, x, cond, draw):
    return 3.0 * model.net.weight.flatten().expand(len(x))


def test_the_first_update_of_adam_moves_a_parameter_by_the_rate():
    model = Scalar()
    [update] = train(model, push, DATA, Optim(1, 4, 0.5))
    assert update.rate == 0.5 / 50 and update.loss == 3.0
    assert model.net.weight.item() == pytest.approx(1 - 0.5 / 50, abs=1e-6)


class Two(torch.nn.Module):
    """Two parameters with the same gradient."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.ParameterDict({k: torch.ones(1) for k in ("slow", "fast_proj")})


def sum_of_both(model, x, cond, draw):
    return (model.net["slow"] + model.net["fast_proj"]).expand(len(x))


def test_named_parameters_learn_so_many_times_faster_and_the_others_as_before():
    model = Two()
    list(train(model, sum_of_both, DATA, Optim(1, 4, 0.5, faster={"fast_proj": 10.0})))
    # The first step of Adam is the rate itself.
    assert model.net["slow"].item() == pytest.approx(1 - 0.01, abs=1e-6)
    assert model.net["fast_proj"].item() == pytest.approx(1 - 0.1, abs=1e-6)


def test_faster_parameters_are_resumed_bit_for_bit_too(tmp_path):
    faster = {"label": 10.0, "outer": 3.0}
    whole, _ = trained(faster=faster)
    assert not same(whole, trained()[0])
    updates = run(tiny_mlp(), folder=tmp_path, faster=faster)
    for _ in range(7):
        next(updates)
    updates.close()
    part = tiny_mlp(seed=4)
    list(run(part, folder=tmp_path, faster=faster))
    assert same(whole, part)


def test_gradients_are_clipped_to_norm_1_before_adam_sees_them():
    model, gradients = Scalar(), []
    step = torch.optim.AdamW.step

    def watch(self, *args, **more):
        gradients.append(self.param_groups[0]["params"][0].grad.item())
        return step(self, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", watch)
        list(train(model, push, DATA, Optim(2, 4, 0.5)))
    assert gradients == pytest.approx([1.0, 1.0], abs=1e-5)  # 3 without clipping


def test_with_ema_the_model_ends_with_the_running_average_of_its_weights():
    model, path = Scalar(), [1.0]
    for _ in train(model, push, DATA, Optim(30, 4, 0.5, ema=0.9)):
        path.append(model.net.weight.item())
    average = path[0]
    for k, value in enumerate(path[1:], start=1):
        # diffusers' EMA starts at the first update with the weights themselves and warms up.
        decay = 0.0 if k == 1 else min(0.9, k / (k + 9))
        average = decay * average + (1 - decay) * value
    assert model.net.weight.item() == pytest.approx(average, abs=1e-5)
    assert abs(average - path[-1]) > 0.01


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained()
    assert not list(tmp_path.iterdir())


def test_training_lowers_the_loss_of_the_toy():
    _, updates = trained(updates=300, batch=64, ema=0.0)
    losses = [u.loss for u in updates]
    assert sum(losses[-50:]) < 0.8 * sum(losses[:50])


def test_a_trained_model_is_left_in_eval_mode_and_unwrapped():
    model, _ = trained()
    assert not model.training and type(model.net).__name__ == "MLP"


# ---- stopped, resumed, finished ----------------------------------------------------------------


def test_a_finished_folder_yields_nothing_and_loads(tmp_path):
    model, _ = trained(folder=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["card.json", "model.safetensors"]
    other = tiny_mlp(seed=3)
    assert list(run(other, folder=tmp_path)) == []
    assert same(model, other)


def test_the_card_of_a_finished_model_holds_its_settings_and_its_losses(tmp_path):
    _, updates = trained(folder=tmp_path, about={"data": DATA.hash})
    card = read_card(tmp_path)
    expected = {"data": DATA.hash, "name": "teacher", "updates": 12, "batch": 8, "rate": 1e-2}
    assert card["about"].items() >= {**expected, "seed": 0, "ema": 0.9}.items()
    assert card["losses"] == pytest.approx([u.loss for u in updates], rel=1e-3)
    assert card["updates_per_loss"] == 1


def test_training_in_a_folder_changes_no_bit(tmp_path):
    assert same(trained()[0], trained(folder=tmp_path)[0])


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("stops", [[1], [6], [3, 4, 9], [12]])
def test_closed_in_the_middle_and_resumed_is_bit_for_bit_the_uninterrupted_run(
    tmp_path, ema, stops
):
    whole, updates = trained(ema=ema)
    seen = []
    for stop in stops:
        part = tiny_mlp(seed=len(seen))  # 0 at first; a resumed run must not depend on its start
        generator = run(part, folder=tmp_path, ema=ema)
        for update in generator:
            seen.append(update)
            if update.number == stop:
                generator.close()
                break
        assert (tmp_path / "training.safetensors").exists()
        assert not (tmp_path / "card.json").exists()
    part = tiny_mlp(seed=99)
    seen += list(run(part, folder=tmp_path, ema=ema))
    assert same(whole, part) and seen == updates
    assert not (tmp_path / "training.safetensors").exists()


def test_work_is_saved_every_so_many_updates(tmp_path):
    whole, _ = trained(updates=12)
    generator = run(tiny_mlp(), folder=tmp_path)
    for _ in range(5):
        next(generator)
    kept = (tmp_path / "training.safetensors").read_bytes()  # save_every=5
    generator.close()
    (tmp_path / "training.safetensors").write_bytes(kept)  # as a power cut would have left it
    again = tiny_mlp()
    assert [u.number for u in run(again, folder=tmp_path)] == list(range(6, 13))
    assert same(whole, again)


def test_work_is_saved_every_five_minutes_however_many_updates_they_are(tmp_path, monkeypatch):
    clock, saves, save = [0.0], [], state.State.save

    def slow(*given):  # 70 seconds an update
        clock[0] += 70
        return LOSS(*given)

    for module in (training, state):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(state.State, "save", lambda run: (saves.append(run.done), save(run)))
    list(train(tiny_mlp(), slow, DATA, Optim(12, 8, 1e-2), Run(folder=tmp_path)))
    assert saves == [5, 10]


def test_many_losses_are_kept_as_means_over_equal_stretches(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "MOST_LOSSES", 5)
    _, updates = trained(folder=tmp_path, updates=13)
    losses, card = [u.loss for u in updates], read_card(tmp_path)
    means = [sum(losses[i : i + 3]) / 3 for i in (0, 3, 6, 9)] + [losses[12]]
    assert card["losses"] == pytest.approx(means, rel=1e-3) and card["updates_per_loss"] == 3


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path):
    def broken(model, x, cond, draw):
        value = LOSS(model, x, cond, draw)
        return value * float("nan") if broken.on else value

    broken.on = False
    model = tiny_mlp()
    settings = Optim(12, 8, 1e-2), Run("a", folder=tmp_path, save_every=5)
    generator = train(model, broken, DATA, *settings)
    for _ in range(5):
        next(generator)
    before, kept = bits(model), (tmp_path / "training.safetensors").read_bytes()
    broken.on = True
    with pytest.raises(
        FloatingPointError, match="loss became nan at update 6 of a.*same call again.*lower"
    ):
        next(generator)
    assert (tmp_path / "training.safetensors").read_bytes() == kept
    assert all(torch.equal(a, b) for a, b in zip(before, bits(model), strict=True))
    broken.on = False
    assert [u.number for u in train(model, broken, DATA, *settings)] == list(range(6, 13))


def test_a_loss_that_is_not_finite_without_a_folder_says_that_nothing_was_saved():
    with pytest.raises(FloatingPointError, match="update 1 of a. Nothing was saved"):
        list(
            train(
                tiny_mlp(),
                lambda model, x, cond, draw: LOSS(model, x, cond, draw) / 0,
                DATA,
                Optim(3, 4, 1e-3),
                Run("a"),
            )
        )


def test_ctrl_c_completes_the_update_saves_and_says_how_to_go_on(tmp_path):
    whole, updates = trained()
    before = signal.getsignal(signal.SIGINT)

    def press(model, x, cond, draw):
        if press.calls == 6:
            os.kill(os.getpid(), signal.SIGINT)  # in the middle of update 7
        press.calls += 1
        return LOSS(model, x, cond, draw)

    press.calls, seen, model = 0, [], tiny_mlp()
    settings = Optim(12, 8, 1e-2, ema=0.9), Run("teacher", folder=tmp_path)
    with pytest.raises(KeyboardInterrupt, match="Stopped in teacher.*the same call again resumes"):
        for update in train(model, press, DATA, *settings):
            seen.append(update)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(seen) == 6
    rest = list(train(model, LOSS, DATA, *settings))
    assert [u.number for u in rest] == list(range(8, 13)) and same(whole, model)
    assert seen + rest == updates[:6] + updates[7:]  # the interrupted update was done, not shown


def test_ctrl_c_between_updates_acts_at_once_and_saves(tmp_path):
    updates = run(tiny_mlp(), folder=tmp_path)
    next(updates)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)  # the caller's own code: not to be waited for
    updates.close()
    assert (tmp_path / "training.safetensors").exists()


def test_training_also_works_outside_the_main_thread():
    whole, done = trained()[0], []
    thread = threading.Thread(target=lambda: done.append(trained()[0]))
    thread.start()
    thread.join()
    assert same(whole, done[0])


KILLED = """
import os, random, signal, sys, time
import torch
from pathlib import Path
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from helpers import plan, tiny_mlp
from cfgdistill import Optim, Run, load_data, teacher_loss, train

data, loss = load_data("toy", images=300), teacher_loss(3, 0.1)

def work(folder):
    optim, run = Optim(100, 8, 1e-2, ema=0.9), Run("a", folder=folder, save_every=3)
    for _ in train(tiny_mlp(), loss, data, optim, run):
        pass

out = Path({out!r})
begun = time.monotonic()
work(out / "whole")
update = (time.monotonic() - begun) / 100
chance, kills, runs = random.Random(0), 0, 0
while kills < 5:  # a machine so busy that a run ends before we wake to kill it: another run
    folder = out / f"killed-{{runs}}"
    state, seen = folder / "training.safetensors", None
    while True:
        if not (child := os.fork()):
            work(folder)
            os._exit(0)
        while os.waitpid(child, os.WNOHANG) == (0, 0):  # until it has saved once more
            if state.exists() and (now := state.stat().st_mtime_ns) != seen:
                seen = now
                time.sleep(chance.uniform(0, 8) * update)  # at most three saves later
                break
            time.sleep(0.0005)
        else:  # the run is over
            assert (folder / "card.json").exists()
            break
        if kills >= 5:
            os.waitpid(child, 0)
            break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += not (folder / "card.json").exists()  # in the middle, not at the very end
    runs += 1
print(kills, runs)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_any_moment_and_resumed_is_bit_for_bit_the_uninterrupted_run(tmp_path):
    code = KILLED.format(tests=str(Path(__file__).parent), out=str(tmp_path))
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "CI": "1"},
    )
    assert answer.returncode == 0, answer.stderr
    kills, runs = map(int, answer.stdout.split())
    assert kills >= 5

    def left(name):
        weights = (tmp_path / name / "model.safetensors").read_bytes()
        return hashlib.sha256(weights).hexdigest(), read_card(tmp_path / name)["losses"]

    for run in range(runs):
        assert left(f"killed-{run}") == left("whole")


# ---- the halving loop --------------------------------------------------------------------------


def stage_two(teacher, **changes):
    given = dict(updates=3, batch=8, rate=1e-3) | changes
    how = {key: given.pop(key) for key in [*given] if key in ("start", "sampler", "pretrained")}
    return distill_progressively(teacher, DATA, *plan(**given), **{"start": 4, **how})


def test_halvings_go_down_to_1():
    assert halvings(8) == [8, 4, 2, 1] and halvings(1) == [1]


def test_the_halving_loop_yields_students_of_4_2_and_1_steps_and_leaves_its_teacher_alone():
    teacher = tiny_mlp(w_range=(0.0, 4.0))
    before = bits(teacher)
    students = list(stage_two(teacher))
    assert [s.steps for s in students] == [4, 2, 1] and teacher.steps is None
    assert all(torch.equal(a, b) for a, b in zip(before, bits(teacher), strict=True))
    models = [teacher, *students]
    assert not any(same(a, b) for a, b in zip(models, models[1:], strict=False))
    assert all(s.w_range == (0.0, 4.0) for s in students)


def test_with_no_updates_to_speak_of_every_student_is_a_copy_of_its_teacher():
    teacher = tiny_mlp(w_range=(0.0, 4.0))
    for student in stage_two(teacher, rate=0.0):
        assert same(teacher, student) and student.net is not teacher.net


def test_few_steps_get_three_times_the_updates_and_each_student_its_folder(tmp_path):
    list(stage_two(tiny_mlp(w_range=(0.0, 4.0)), start=8, updates=1, folder=tmp_path))
    counts = {p.name: read_card(p)["about"]["updates"] for p in tmp_path.iterdir()}
    assert counts == {"steps-8": 1, "steps-4": 3, "steps-2": 3, "steps-1": 3}
    assert read_card(tmp_path / "steps-2")["model"]["steps"] == 2


def test_a_halving_loop_that_stopped_goes_on_with_the_next_student(tmp_path):
    teacher = tiny_mlp(w_range=(0.0, 4.0))
    whole = list(stage_two(teacher))
    loop = stage_two(teacher, folder=tmp_path)
    next(loop)
    loop.close()
    assert [p.name for p in tmp_path.iterdir()] == ["steps-4"]
    resumed = list(stage_two(teacher, folder=tmp_path))
    assert all(same(a, b) for a, b in zip(whole, resumed, strict=True))


class Drift(torch.nn.Module):
    """v = a z: a linear flow, whose two-step target is known: a number, not a network."""

    def __init__(self, a=0.2):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(a))
        self.config = {}

    def forward(self, z, t, cond, w):
        return self.a * z


def test_a_folder_knows_from_how_many_steps_its_students_came(tmp_path):
    teacher = tiny_mlp(w_range=(0.0, 4.0))
    list(stage_two(teacher, start=2, folder=tmp_path))
    with pytest.raises(ValueError, match="start is 2 there and 1 here"):
        list(stage_two(teacher, start=1, folder=tmp_path))


def test_without_a_head_start_every_student_begins_with_weights_of_the_seed():
    teacher = tiny_mlp(seed=3, w_range=(0.0, 4.0))
    a, b = (list(stage_two(teacher, rate=0.0, pretrained=False)) for _ in range(2))
    assert all(same(x, y) for x, y in zip(a, b, strict=True)) and not same(teacher, a[0])
    (other, *_) = stage_two(teacher, rate=0.0, pretrained=False, seed=1)
    assert not same(a[0], other)


def test_reset_leaves_the_global_random_numbers_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    reset(tiny_mlp().net)
    assert torch.equal(before, torch.get_rng_state())


def test_drop_gives_the_null_label_at_its_rate():
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, z, t, cond, w):
            seen.append(cond)
            return z

    model = Denoiser(Spy(), CosineSchedule(), num_classes=3)
    draw = Draw((0, "x", 0), 4000, slice(None), CPU)
    stage_two_loss(model, 4, None, drop=0.25)(
        model, torch.zeros(4000, 2), torch.ones(4000).long(), draw
    )
    assert len(seen) == 3 and all(torch.equal(seen[0], other) for other in seen)
    assert set(seen[0].tolist()) == {1, 3}
    assert (seen[0] == 3).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_under_mixed_precision_both_networks_compute_in_bf16_and_the_rest_does_not(monkeypatch):
    monkeypatch.setattr(training, "mixed_precision", lambda device: "bf16")
    kinds = {"student": set(), "teacher": set(), "seen by a loss": set()}

    class Layer(torch.nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name, self.layer, self.config = name, torch.nn.Linear(2, 2), {}

        def forward(self, z, t, cond, w):
            assert z.dtype == t.dtype == w.dtype == torch.float32
            out = self.layer(z)
            kinds[self.name].add(out.dtype)
            return out

    teacher = Denoiser(Layer("teacher"), CosineSchedule(), w_range=(0.0, 4.0))
    student = Denoiser(Layer("student"), CosineSchedule(), w_range=(0.0, 4.0))

    def loss(model, x, cond, draw):
        losses = stage_two_loss(teacher, 4, (0.0, 4.0))(model, x, cond, draw)
        pred = model(x, 0.5, cond, 1.0)
        said = model.net(x, torch.full((len(x),), 0.5), cond, torch.ones(len(x)))
        kinds["seen by a loss"] |= {losses.dtype, pred.v.dtype, pred.x.dtype, said.dtype}
        return losses

    list(train(student, loss, DATA, Optim(2, 8, 0.1), Run(precision="mixed", device="cpu")))
    assert kinds["student"] == kinds["teacher"] == {torch.bfloat16}
    assert kinds["seen by a loss"] == {torch.float32}
    assert all(p.dtype == torch.float32 for p in student.parameters())


def test_runs_of_different_precision_follow_each_other_in_one_process(monkeypatch):
    monkeypatch.setattr(training, "mixed_precision", lambda device: "bf16")
    seen = []

    def loss(model, x, cond, draw):
        seen.append(torch.is_autocast_enabled("cpu"))
        return LOSS(model, x, cond, draw)

    for precision in ("mixed", "full", "mixed"):
        run_in = Run(precision=precision, device="cpu")
        list(train(tiny_mlp(), loss, DATA, Optim(1, 4, 1e-3), run_in))
    assert seen == [True, False, True]
    with pytest.raises(ValueError, match="There is no precision 'half'"):
        next(run(tiny_mlp(), precision="half"))


def test_each_halving_learns_the_v_of_two_steps_of_the_student_before_it():
    # With v = a z a step of angle d multiplies z by cos d + a sin d. Two of them are one step with
    # cos 2d + b sin 2d = (cos d + a sin d)^2; d = -pi/8 for the first student, then -pi/4.
    known, a = [], 0.2
    for d in (-math.pi / 8, -math.pi / 4):
        a = ((math.cos(d) + a * math.sin(d)) ** 2 - math.cos(2 * d)) / math.sin(2 * d)
        known.append(a)
    teacher = Denoiser(Drift(0.2), CosineSchedule(), w_range=(0.0, 1.0))
    students = list(stage_two(teacher, start=2, updates=75, rate=0.05))
    assert [s.net.a.item() for s in students] == pytest.approx(known, abs=5e-3)


def test_stage_one_learns_the_guided_pair():
    # The pair is v = (1 + w) a_cond - w a_null; at the fixed weight w = 2 that is one number.
    class Two(torch.nn.Module):
        def forward(self, z, t, cond, w):
            return torch.where(cond == 3, 0.1, 0.4)[:, None] * z

    guided = GuidedDenoiser(Denoiser(Two(), CosineSchedule()), 3)
    student = Denoiser(Drift(0.4), CosineSchedule(), w_range=(2.0, 2.0))
    list(
        train(
            student,
            stage_one_loss(guided, (2.0, 2.0)),
            DATA,
            Optim(300, 8, 0.05),
            Run("one"),
        )
    )
    assert student.net.a.item() == pytest.approx(3 * 0.4 - 2 * 0.1, abs=2e-3)


def test_training_a_copy_leaves_the_original_alone():
    model = tiny_mlp()
    other = copy.deepcopy(model)
    list(run(other))
    assert same(model, tiny_mlp())


@pytest.mark.parametrize(
    ("able", "kind"), [({}, "no"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16")]
)
def test_a_cpu_uses_bf16_only_where_it_computes_in_it(monkeypatch, able, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    for allowed in (True, False):  # whatever the processor of this machine can do
        answer = mock.Mock(return_value=allowed)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", answer)
        assert mixed_precision() == (kind if allowed else "no")
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # torch before 2.9 cannot say
    assert mixed_precision() == "no"


@pytest.mark.parametrize(
    ("capability", "kind"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_bf16_is_used_only_where_the_gpu_has_it(monkeypatch, capability, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert mixed_precision() == kind


# ---- frozen, edited, reused ----------------------------------------------------------------------


def frozen(model):
    return model.requires_grad_(False)


def trainable(model):
    return {key for key, p in model.net.named_parameters() if p.requires_grad}


def test_the_students_of_a_frozen_teacher_are_those_of_one_that_is_not():
    teacher = tiny_mlp(w_range=(0.0, 4.0))
    wanted = list(stage_two(teacher))
    found = list(stage_two(frozen(teacher)))
    assert all(same(a, b) for a, b in zip(wanted, found, strict=True))
    assert not trainable(teacher)  # which is left as it was


@pytest.mark.parametrize("how", ["frozen", "changed", "moved on"])
def test_what_is_done_to_a_yielded_student_does_not_reach_the_next_ones(how):
    teacher = tiny_mlp(w_range=(0.0, 4.0))
    wanted = [bits(student) for student in stage_two(teacher)]
    found = []
    for student in stage_two(teacher):
        found.append(bits(student))
        if how == "frozen":
            frozen(student)
        elif how == "changed":
            torch.nn.utils.vector_to_parameters(torch.zeros(10_000), student.parameters())
        else:
            student.steps, student.sampler = 64, "stochastic"
    assert all(
        torch.equal(x, y)
        for a, b in zip(wanted, found, strict=True)
        for x, y in zip(a, b, strict=True)
    )


def test_what_is_frozen_in_part_stays_so_in_a_student():
    teacher = tiny_mlp(w_range=(0.0, 4.0))
    teacher.net.outer.requires_grad_(False)
    student = teacher.for_steps(4)
    assert trainable(student) == trainable(teacher)
    assert {"outer.weight", "outer.bias"}.isdisjoint(trainable(student))


def test_a_model_in_which_nothing_can_be_trained_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="model of teacher can be trained.*are frozen: call"):
        next(run(frozen(tiny_mlp())))


def test_the_card_says_how_many_parameters_were_trained(tmp_path):
    model = tiny_mlp()
    model.net.outer.requires_grad_(False)
    list(run(model, folder=tmp_path))
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert read_card(tmp_path)["trained_parameters"] == count
    assert 0 < count < sum(p.numel() for p in model.parameters())


class Loud(Denoiser):
    """A denoiser of a user's own."""

    def forward(self, *given):
        return super().forward(*given)


def test_a_student_is_of_its_teachers_class_and_shares_its_schedule():
    teacher = Loud(tiny_mlp().net, CosineSchedule(), "eps", w_range=(0.0, 4.0), num_classes=3)
    teacher.nfe, teacher.own = 7, "kept"
    student = teacher.for_steps(8, "stochastic")
    assert type(student) is Loud and student.own == "kept"
    assert (student.steps, student.sampler, student.nfe) == (8, "stochastic", 0)
    assert student.schedule is teacher.schedule and student.net is not teacher.net
    assert (teacher.steps, teacher.sampler, teacher.nfe) == (None, None, 7)
    assert student.describe() == {**teacher.describe(), "steps": 8, "sampler": "stochastic"}


@pytest.mark.parametrize(
    ("start", "sampler", "sentence"),
    [
        (8, "stochastic", "student of 4 steps, and one of 8 does not halve them: start with 2"),
        (4, "stochastic", "student of 4 steps, and one of 4 does not halve them: start with 2"),
        (1, "stochastic", "student of 4 steps, and one of 1 does not halve them: start with 2"),
        (2, "ddim", "distilled for the sampler 'stochastic', so its students cannot be for 'ddim'"),
    ],
)
def test_a_halving_that_does_not_continue_a_halving_is_refused(start, sampler, sentence):
    teacher = tiny_mlp(w_range=(0.0, 4.0)).for_steps(4, "stochastic")
    with pytest.raises(ValueError, match=sentence):
        next(stage_two(teacher, start=start, sampler=sampler))
    loss = stage_two_loss(teacher, start, (0.0, 4.0), sampler=sampler)
    with pytest.raises(ValueError, match=sentence):
        loss(teacher.for_steps(start, sampler), torch.zeros(8, 2), None, None)


def test_a_student_is_distilled_further_as_if_the_halvings_had_not_been_interrupted():
    teacher = tiny_mlp(w_range=(0.0, 4.0))
    whole = list(stage_two(teacher))
    (two, _) = stage_two(whole[0], start=2)
    assert same(two, whole[1])


# ---- dropout, modes, seeds -----------------------------------------------------------------------


class Dropping(torch.nn.Module):
    """A network with dropout."""

    def __init__(self):
        super().__init__()
        self.inner, self.config = tiny_mlp().net, {}

    def forward(self, z, t, cond, w):
        return torch.nn.functional.dropout(self.inner(z, t, cond, w), 0.5, self.training)


def dropping(**about):
    return Denoiser(Dropping(), CosineSchedule(), num_classes=3, **about)


@pytest.mark.parametrize("stop", [None, 3])
def test_dropout_too_depends_on_seed_name_and_update_alone(tmp_path, stop):
    whole, updates = dropping(), []
    updates = list(run(whole))
    torch.manual_seed(5)
    torch.rand(100)
    part, seen = dropping(), []
    if stop is not None:
        begun = run(dropping(), folder=tmp_path)
        seen = [next(begun) for _ in range(stop)]
        begun.close()
    seen += list(run(part, folder=tmp_path))
    assert same(whole, part) and seen == updates
    assert [u.loss for u in run(dropping(), name="other")] != [u.loss for u in updates]


def test_processes_do_not_drop_the_same_of_their_shares(monkeypatch):
    losses = []
    for rank in range(2):
        monkeypatch.setattr(PartialState(), "process_index", rank)
        monkeypatch.setattr(training, "Draw", lambda *w: Draw(w[0], 8, slice(0, 8), w[3]))
        (update,) = run(dropping(), updates=1)
        losses.append(update.loss)
    assert losses[0] != losses[1]


def test_training_leaves_the_global_random_numbers_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(run(dropping()))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("stage", ["one", "two"])
def test_a_teacher_does_not_drop_out_whatever_mode_it_is_in(stage):
    teacher = dropping(w_range=None if stage == "one" else (0.0, 4.0))
    student, x = tiny_mlp(seed=1, w_range=(0.0, 4.0)), torch.ones(8, 2)
    assert teacher.training  # as modules are born
    if stage == "one":
        loss = stage_one_loss(GuidedDenoiser(teacher, 3), (0.0, 4.0))
    else:
        loss = stage_two_loss(teacher, 4, (0.0, 4.0))
    cond = torch.zeros(8).long()
    first, second = (loss(student, x, cond, Draw((0,), 8, slice(None), CPU)) for _ in range(2))
    assert torch.equal(first, second)


def test_a_seed_for_a_while_gives_every_gpu_its_numbers_back(monkeypatch):
    forked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)

    def fork(devices):
        forked.extend(devices)
        return nullcontext()

    monkeypatch.setattr(torch.random, "fork_rng", fork)
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    with randomness.seeded(9):
        pass
    assert forked == [0, 1, 2] and seeds == [9]


def test_a_seed_for_a_while_gives_the_numbers_of_manual_seed():
    torch.manual_seed(7)
    known = torch.rand(3)
    with randomness.seeded(7):
        assert torch.equal(torch.rand(3), known)


def test_no_module_of_the_package_forks_random_numbers_by_itself():
    package = Path(randomness.__file__).parent
    users = [p.name for p in package.glob("*.py") if "fork_rng" in p.read_text()]
    assert users == ["randomness.py"]


def test_reset_leaves_what_is_frozen_as_it_is():
    net = tiny_mlp().net
    net.outer.requires_grad_(False)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    reset(net, seed=9)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith("outer.")


# ---- rates ---------------------------------------------------------------------------------------


def test_of_two_rates_that_fit_a_name_the_first_holds_and_they_do_not_multiply():
    for faster, times in (
        ({"fast_proj": 10.0, "fast": 3.0}, 10.0),
        ({"fast": 3.0, "fast_proj": 10.0}, 3.0),
    ):
        model = Two()
        list(train(model, sum_of_both, DATA, Optim(1, 4, 0.5, faster=faster)))
        assert 1 - model.net["fast_proj"].item() == pytest.approx(times * 0.01, rel=1e-3)
        assert 1 - model.net["slow"].item() == pytest.approx(0.01, rel=1e-3)


# ---- compiled, launched --------------------------------------------------------------------------


def test_a_compiled_network_leaves_the_files_of_a_plain_one(tmp_path):
    plain, compiled = tiny_mlp(), tiny_mlp()
    compiled.net = torch.compile(compiled.net)
    with torch.compiler.set_stance("force_eager"):
        for model, folder in ((plain, "plain"), (compiled, "compiled")):
            begun = run(model, folder=tmp_path / folder)
            next(begun)
            begun.close()
            list(run(model, folder=tmp_path / folder))
    names = {
        folder: read_tensors(tmp_path / folder / "model.safetensors")[0].keys()
        for folder in ("plain", "compiled")
    }
    assert names["plain"] == names["compiled"] == tiny_mlp().net.state_dict().keys()
    assert same(load(tmp_path / "compiled"), plain)
    again = tiny_mlp(seed=5)
    again.net = torch.compile(again.net)
    assert list(run(again, folder=tmp_path / "plain")) == [] and same(again, plain)
    student = compiled.for_steps(4)
    assert trainable(student) and student.net is not compiled.net


def test_a_checkpoint_is_not_let_go_before_the_finished_model_was_read_back(tmp_path, monkeypatch):
    def damaged(model, folder, about, **more):
        save_weights(model, folder, about, **more)
        (folder / "model.safetensors").write_bytes(b"what the disk made of it")

    monkeypatch.setattr(state, "save_weights", damaged)
    with pytest.raises(ValueError, match="cannot be read"):
        list(run(tiny_mlp(), folder=tmp_path))
    assert len(read_tensors(tmp_path / "training.safetensors")[0]["losses"]) == 10


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        *(("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron-LM"), ("FSDP", "FSDP1")),
        ("PARALLELISM_CONFIG", "tensor or context parallelism"),
    ],
)
def test_a_launcher_that_shards_in_another_way_is_refused_in_a_sentence(monkeypatch, key, kind):
    monkeypatch.setenv(f"ACCELERATE_USE_{key}", "true")
    sentence = f"was asked for {kind}, which is not supported here: use --multi_gpu where"
    with pytest.raises(ValueError, match=sentence):
        next(run(tiny_mlp()))
    assert cli.main(["train", "--profile", "smoke"]) == 1  # before any data is read


def test_fsdp2_of_one_process_shares_nothing_out_and_changes_no_bit(monkeypatch):
    wanted, _ = trained()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert same(wanted, trained()[0])


def test_what_else_a_launcher_asks_for_changes_no_bit_and_is_told_in_one_line(monkeypatch):
    wanted, _ = trained()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    told = "mixed_precision bf16, gradient_accumulation_steps 4, dynamo_backend EAGER, asked of"
    with pytest.warns(UserWarning, match=told):
        found, _ = trained()
    assert same(wanted, found)


# ---- what is asked for while it runs -------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_every_signal_to_stop_completes_the_update_and_saves(tmp_path, name):
    number = getattr(signal, name)
    before = signal.signal(number, signal.default_int_handler)

    def press(model, x, cond, draw):
        os.kill(os.getpid(), number)
        return LOSS(model, x, cond, draw)

    try:
        settings = Optim(12, 8, 1e-2), Run("teacher", folder=tmp_path)
        with pytest.raises(KeyboardInterrupt, match="Stopped in teacher"):
            list(train(tiny_mlp(), press, DATA, *settings))
        assert signal.getsignal(number) is signal.default_int_handler
        assert len(read_tensors(tmp_path / "training.safetensors")[0]["losses"]) == 1
        signal.signal(number, signal.SIG_IGN)  # as under nohup
        assert len(list(train(tiny_mlp(), press, DATA, *settings))) == 11
    finally:
        signal.signal(number, before)


def test_a_signal_after_the_last_look_is_not_forgotten(tmp_path, monkeypatch):
    over = training._over_processes

    def look(value, how):  # the second of each update is the look at who asked to stop
        found = over(value, how)
        if how == "sum":
            os.kill(os.getpid(), signal.SIGINT)
        return found

    monkeypatch.setattr(training, "_over_processes", look)
    seen = []
    with pytest.raises(KeyboardInterrupt, match="Stopped in teacher"):
        for update in run(tiny_mlp(), folder=tmp_path):
            seen.append(update)
    assert len(seen) == 1
    assert len(read_tensors(tmp_path / "training.safetensors")[0]["losses"]) == 2


def test_two_runs_in_one_folder_at_once_are_refused_and_the_first_goes_on(tmp_path):
    whole, first = trained()[0], tiny_mlp()
    begun = run(first, folder=tmp_path)
    next(begun)
    with pytest.raises(ValueError, match=rf"trained in .* already .*process {os.getpid()} on "):
        next(run(tiny_mlp(), folder=tmp_path, seed=1))
    list(begun)
    assert same(whole, first) and list(run(tiny_mlp(), folder=tmp_path)) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["card.json", "model.safetensors"]


def test_a_machine_that_died_blocks_nobody(tmp_path):
    (tmp_path / "lock").write_text("process 1 on another-machine")
    (tmp_path / "card.json.1-ab.tmp").write_text("{")
    assert len(list(run(tiny_mlp(), folder=tmp_path))) == 12
    assert sorted(p.name for p in tmp_path.iterdir()) == ["card.json", "model.safetensors"]


def test_the_card_names_every_precision_in_which_a_run_computed(tmp_path, monkeypatch):
    for kind, stop in (("bf16", 2), ("bf16", 4), ("no", None)):
        monkeypatch.setattr(training, "mixed_precision", lambda device, kind=kind: kind)
        begun = run(tiny_mlp(), folder=tmp_path, precision="mixed")
        for update in begun:
            if update.number == stop:
                begun.close()
                break
    assert read_card(tmp_path)["precisions"] == ["bf16", "no"]


def test_what_cannot_be_kept_is_told_before_anything_is_trained(tmp_path):
    calls = []

    def loss(*given):
        calls.append(1)
        return LOSS(*given)

    said = Run(folder=tmp_path, notes={"where": tmp_path})
    with pytest.raises(ValueError, match="is kept as JSON"):
        list(train(tiny_mlp(), loss, DATA, Optim(2, 4, 1e-3), said))
    assert not calls
