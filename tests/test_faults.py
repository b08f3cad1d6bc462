"""Killed, out of disk, not a number, Ctrl-C: the real command, in a process of its own.

After each fault the same command again must finish with the very bits of a run that was not
disturbed. Where the moment of a fault matters, the command runs with one function of the system or
of torch replaced by one that does its work and then strikes; otherwise it is the plain command.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

from cfgdistill.training.checkpoints import read_card, read_tensors

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")

# 60 updates take half a second: long enough to strike in the middle of them.
TINY = "channels=(8,16) batch=4 teacher=60 stage_one=4 halving=1 start=2 images=40 save_every=2"
COMMAND = ["distill", "--profile", "smoke"]
for setting in TINY.split():
    COMMAND += ["--set", setting]
MAIN = "import sys; from cfgdistill.cli import main; sys.exit(main())"
HOME = Path("out/digits-smoke")
CHECKPOINT = HOME / "teacher" / "training.safetensors"


# A process that has done the imports, which are most of a command, and forks for each one.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["cfgdistill.cli", "cfgdistill.course.stages", "sklearn.datasets"])


def command(where, before):
    """The command in this process, after the code `before`."""
    os.chdir(where)
    for number, name in ((1, "../out.txt"), (2, "../said.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["cfgdistill", *COMMAND]
    exec(before + MAIN, {})


def run(where, before="", strike=None):
    """The command in the folder `where`, after the code `before`: exit code, JSON, stderr.

    With `strike`, that signal is sent as soon as there is a checkpoint of the teacher.
    """
    process = FORKS.Process(target=command, args=(where, before))
    process.start()
    if strike is not None:
        while process.is_alive() and not (where / CHECKPOINT).exists():
            time.sleep(0.001)
        os.kill(process.pid, strike)
    process.join()
    out, said = (where.with_name(name).read_text() for name in ("out.txt", "said.txt"))
    return process.exitcode, json.loads(out) if out else None, said


def run_for_itself(where):
    """The same without any fault, in a Python of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "cfgdistill", *COMMAND], capture_output=True, text=True, cwd=where
    )
    return done.returncode, json.loads(done.stdout), done.stderr


class Outcome(NamedTuple):
    code: int  # of the command that was disturbed
    result: dict | None
    said: str
    left: Path  # a copy of the folder as the fault left it
    again: Path  # the folder after the same command again
    code_again: int
    said_again: str


def disturbed(where, **how) -> Outcome:
    work = where / "work"
    work.mkdir()
    outcome = run(work, **how) if how else run_for_itself(work)
    shutil.copytree(work, where / "left", symlinks=True)
    code, _, said = run(work) if how else outcome
    return Outcome(*outcome, where / "left", work, code, said)


# ---- the faults ---------------------------------------------------------------------------------

KILL = "import os, signal\ndef kill(): os.kill(os.getpid(), signal.SIGKILL)\n"
# Dies in update {n}, when the weights have moved and nothing else knows of it.
IN_UPDATE = """
import torch
step, calls = torch.optim.AdamW.step, []
def last_step(self, *args, **more):
    step(self, *args, **more)
    calls.append(1)
    if len(calls) == {n}:
        kill()
torch.optim.AdamW.step = last_step
"""
# Dies when half of the second checkpoint is written.
IN_WRITE = """
fsync, calls = os.fsync, []
def torn(number):
    calls.append(1)
    if len(calls) == 2:
        os.truncate(number, 5000)
        kill()
    fsync(number)
os.fsync = torn
"""
# From the second checkpoint on there is room for 50,000 bytes, and it needs six times as many.
# This is the system's own refusal, by a limit on the size of files: it needs no privileges, as a
# small file system would. (safetensors does not write through a link to /dev/full.)
NO_ROOM = """
import os, resource
fsync, calls = os.fsync, []
def fill(number):
    fsync(number)
    calls.append(1)
    if len(calls) == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
os.fsync = fill
"""
# The noise of update 6 of the teacher is not a number, as from a faulty device.
POISON = """
import torch
randn, calls = torch.randn, []
def poisoned(*args, **more):
    calls.append(1)
    return randn(*args, **more) * (float("nan") if len(calls) == 6 else 1)
torch.randn = poisoned
"""


# There is no room for the card.
FULL_DISK = """
import errno, os
replace = os.replace
def full(tmp, path):
    if os.path.basename(path) == "card.json":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    replace(tmp, path)
os.replace = full
"""


FAULTS = {
    "nothing": {},
    "killed from outside": {"strike": signal.SIGKILL},
    "killed in an update": {"before": KILL + IN_UPDATE.format(n=7)},
    "killed in a checkpoint": {"before": KILL + IN_WRITE},
    # In the last of three updates of the student of 2 steps.
    "killed in a halving": {"before": KILL + IN_UPDATE.format(n=60 + 4 + 3)},
    "ctrl-c": {"strike": signal.SIGINT},
    "no room": {"before": NO_ROOM},
    "full disk": {"before": FULL_DISK},
    "not a number": {"before": POISON},
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """{fault: future outcome}. Two run at a time."""
    quiet = mock.patch.dict(os.environ, CI="1", OMP_NUM_THREADS="1")
    with quiet, ThreadPoolExecutor(2) as pool:
        yield {
            name: pool.submit(disturbed, tmp_path_factory.mktemp(name.replace(" ", "-")), **how)
            for name, how in FAULTS.items()
        }


@pytest.fixture
def after(outcomes):
    """after(fault): its outcome, when the same command again has ended as if nothing had been."""

    def after(fault: str) -> Outcome:
        outcome, known = outcomes[fault].result(), outcomes["nothing"].result()
        assert outcome.code_again == 0 and outcome.said_again == ""
        assert digests(outcome.again) == digests(known.left)
        return outcome

    return after


def digests(where):
    """sha256 of every file of weights; nothing half-done may lie beside them."""
    files = [p for p in (where / "out").rglob("*") if not p.is_dir()]
    assert {p.name for p in files} == {"model.safetensors", "card.json"}
    weights = [p for p in files if p.suffix == ".safetensors"]
    return {str(p.relative_to(where)): hashlib.sha256(p.read_bytes()).hexdigest() for p in weights}


def updates_kept(where, model="teacher"):
    """How many updates the checkpoint holds; it can be read."""
    return len(read_tensors(where / HOME / model / "training.safetensors")[0]["losses"])


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_the_undisturbed_run_ends_with_four_models_whose_digests_it_prints(after):
    known = after("nothing")
    assert known.code == 0 and known.said == ""
    found = digests(known.left)
    assert sorted(m["sha256"] for m in known.result["models"]) == sorted(
        value for name, value in found.items() if "teacher" not in name
    )
    assert len(set(found.values())) == 4


# ---- kill -9 ------------------------------------------------------------------------------------


def test_killed_from_outside_it_loses_only_work_since_the_last_checkpoint(after):
    was = after("killed from outside")
    assert (was.code, was.said) == (-signal.SIGKILL, "")
    assert 2 <= updates_kept(was.left) < 60
    assert not (was.left / HOME / "teacher" / "card.json").exists()


def test_killed_in_the_middle_of_an_update_it_resumes_from_the_last_checkpoint(after):
    was = after("killed in an update")
    assert (was.code, was.said) == (-signal.SIGKILL, "")
    assert updates_kept(was.left) == 6


def test_killed_in_the_middle_of_a_checkpoint_it_resumes_from_the_one_before(after):
    was = after("killed in a checkpoint")
    assert (was.code, was.said) == (-signal.SIGKILL, "")
    (torn,) = (was.left / HOME / "teacher").glob("training.safetensors.*.tmp")
    assert torn.stat().st_size == 5000 and updates_kept(was.left) == 2


def test_killed_in_the_middle_of_a_halving_it_keeps_what_was_finished(after):
    was = after("killed in a halving")
    assert (was.code, was.said) == (-signal.SIGKILL, "")
    for name in ("teacher", "stage-one"):
        card = read_card(was.left / HOME / name)
        assert card["sha256"] in digests(was.again).values()
        for file in names(was.left / HOME / name):  # and did not train them again
            old, new = (where / HOME / name / file for where in (was.left, was.again))
            assert old.stat().st_mtime_ns == new.stat().st_mtime_ns
    assert updates_kept(was.left, "stage-two/steps-2") == 2
    assert names(was.left / HOME / "stage-two") == ["steps-2"]


# ---- Ctrl-C -------------------------------------------------------------------------------------


def test_ctrl_c_saves_ends_with_130_and_says_how_to_resume_in_one_sentence(after):
    was = after("ctrl-c")
    assert (was.code, was.result) == (130, None)
    assert was.said in (
        "Stopped in teacher. The last checkpoint is in out/digits-smoke/teacher; "
        "the same call again resumes from it.\n",
        "Stopped. The same command again uses what is saved.\n",  # pressed between two updates
    )
    assert 2 <= updates_kept(was.left) < 60


# ---- full disk ----------------------------------------------------------------------------------


def test_a_checkpoint_without_room_leaves_the_old_one_and_is_told_in_one_sentence(after):
    was = after("no room")
    assert (was.code, was.result) == (1, None) and was.said.count("\n") == 1
    assert was.said.startswith(f"{CHECKPOINT} could not be written")
    assert "File too large" in was.said and "Free some space" in was.said
    assert updates_kept(was.left) == 4
    assert names(was.left / HOME / "teacher") == ["training.safetensors"]


def test_a_full_disk_at_the_end_of_a_stage_leaves_its_checkpoint_and_is_told_in_one_sentence(after):
    was = after("full disk")
    assert (was.code, was.result) == (1, None) and was.said.count("\n") == 1
    assert was.said.startswith(f"{HOME / 'teacher' / 'card.json'} could not be written")
    assert "No space left on device" in was.said and "Free some space" in was.said
    assert updates_kept(was.left) == 60
    assert names(was.left / HOME / "teacher") == ["model.safetensors", "training.safetensors"]


# ---- a loss that is not a number ----------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_at_its_update_and_keeps_the_last_good_checkpoint(after):
    was = after("not a number")
    assert (was.code, was.result) == (1, None)
    assert was.said == (
        "The loss became nan at update 6 of teacher. The last checkpoint is in "
        "out/digits-smoke/teacher; the same call again resumes from it. "
        "Try a lower learning rate.\n"
    )
    assert updates_kept(was.left) == 4
