"""Colab and Kaggle, with a stand-in for google.colab: what is installed, said, kept, stopped."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import course
import jupytext
import pytest
import torch

from cfgdistill.course import colab

STAND_IN = """
from pathlib import Path

def mount(folder):
    Path(folder, "MyDrive").mkdir(parents=True, exist_ok=True)
"""


@pytest.fixture
def there(tmp_path, monkeypatch):
    """On Colab, in an empty folder, with a Drive; afterwards nothing goes on."""
    place(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(colab, "DRIVE", tmp_path / "drive")
    monkeypatch.setattr(colab, "EVERY", 0.01)
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    for name in ("CFGDISTILL_PROFILE", "CFGDISTILL_OUT"):  # what set_up sets is taken back
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    (tmp_path / "machine").mkdir()
    monkeypatch.chdir(tmp_path / "machine")
    yield tmp_path
    while colab._ending:
        colab._ending.pop()()
    for name in [name for name in sys.modules if name.startswith("google.colab")]:
        del sys.modules[name]


def place(folder: Path) -> None:
    package = folder / "site" / "google" / "colab"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "drive.py").write_text(STAND_IN)


def until(true) -> None:
    for _ in range(3000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


# ---- what is said and installed -----------------------------------------------------------------


def test_elsewhere_the_cell_does_nothing_and_needs_nothing_but_python():
    code = (
        "import sys\nfrom cfgdistill.course.colab import set_up\nset_up(drive=False, minutes=None)"
    )
    code += "\nassert not {'torch', 'numpy', 'packaging', 'diffusers'} & {*sys.modules}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_cpu_gets_laptop_a_gpu_colab_and_who_has_chosen_keeps_the_choice(
    there, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    colab.set_up()
    assert "Colab: no GPU (the menu Runtime has one); profile laptop" in capsys.readouterr().out
    t4 = type("Properties", (), {"total_memory": 14.6 * 2**30})
    monkeypatch.delenv("CFGDISTILL_PROFILE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: t4)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    colab.set_up()
    said = "Colab: Tesla T4, 14.6 GiB, half precision is fp16; profile colab\n"
    assert capsys.readouterr().out.endswith(said)
    monkeypatch.setenv("CFGDISTILL_PROFILE", "smoke")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    colab.set_up()
    said = capsys.readouterr().out
    assert "Kaggle: Tesla T4" in said and said.endswith("profile smoke\n")


def test_drive_is_refused_where_there_is_none(there, monkeypatch):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    with pytest.raises(ValueError, match="on Colab only; Kaggle keeps what lies in /kaggle/work"):
        colab.set_up(drive=True)
    monkeypatch.setattr(colab, "place", lambda: None)
    with pytest.raises(ValueError, match="on Colab only; out is kept on this disk: say drive=Fal"):
        colab.set_up(drive=True)


def wheel(folder: Path, name: str, needs: str = "") -> None:
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        about = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        file.writestr(f"{info}/METADATA", about + (f"Requires-Dist: {needs}\n" if needs else ""))
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        )
        file.writestr(f"{info}/RECORD", "")


def test_what_is_absent_is_installed_unless_that_would_change_what_is_here(
    tmp_path, monkeypatch, capsys
):
    wheel(tmp_path, "quite_new")
    wheel(tmp_path, "greedy", "tqdm>=999")
    wheel(tmp_path, "tqdm")  # were it not pinned, this one
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_DRY_RUN": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(metadata, "requires", lambda _: ["quite_new", "tqdm>=1", "torch<2"])
    assert colab.lacking() == (["quite_new"], [f"torch {torch.__version__} (<2)"])
    colab.install_missing()
    said = capsys.readouterr().out
    assert said.startswith(f"Not the versions that are tested: torch {torch.__version__} (<2). No")
    monkeypatch.setattr(metadata, "requires", lambda _: ["greedy>=1", "gone; extra == 'x'"])
    with pytest.raises(RuntimeError, match=r"^greedy>=1 cannot be installed beside what is here"):
        colab.install_missing()
    here = metadata.version("cfgdistill")
    monkeypatch.undo()
    assert here and colab.lacking()[0] == []  # all that this package asks for is here


# ---- what is kept -------------------------------------------------------------------------------


@pytest.fixture
def keeper(tmp_path):
    return colab.Keeper(tmp_path / "out", tmp_path / "safe")


def write(keeper, name: str, text: str) -> None:
    path = keeper.work / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    keeper.save()


def back(keeper, name: str):
    """What another machine gets."""
    other = colab.Keeper(keeper.work.parent / "other", keeper.safe)
    other.restore()
    path = other.work / name
    return path.read_text() if path.exists() else None


def test_two_copies_of_a_file_are_kept_and_the_last_whole_one_comes_back(keeper):
    for text in ("one", "two", "three", "three"):
        write(keeper, "a/training", text)
    numbers = [number for number, _ in keeper._copies(Path("a/training"))]
    assert numbers == [2, 3] and not [*keeper.safe.rglob("*.tmp")]
    (keeper.safe / "a" / "training.tmp").write_text("thr")  # a copy that was cut off
    assert back(keeper, "a/training") == "three"
    (keeper.work.parent / "other" / "a" / "training").unlink()
    keeper._copies(Path("a/training"))[-1][1].write_text("thr")  # Drive has lost its end
    assert back(keeper, "a/training") == "two"


def test_what_is_being_written_and_locks_are_not_copied_and_what_was_let_go_is_let_go(keeper):
    for name in ("a/lock", "a/card.json.tmp", "a/.tmp123/part", "a/training"):
        write(keeper, name, "x")
    assert {path.name.partition("@")[0] for path in keeper.safe.rglob("*@*")} == {"training"}
    (keeper.work / "a" / "training").unlink()  # the run is finished
    write(keeper, "a/card.json", "{}")
    assert {path.name.partition("@")[0] for path in keeper.safe.rglob("*@*")} == {"card.json"}


def test_what_is_here_is_not_replaced_and_a_card_without_its_weights_does_not_come_back(keeper):
    write(keeper, "a/training", "theirs")
    write(keeper, "b/model.safetensors", "weights")
    known = hashlib.sha256(b"weights").hexdigest()
    write(keeper, "b/card.json", json.dumps({"sha256": known}))
    assert back(keeper, "b/model.safetensors") == "weights"
    assert (keeper.work.parent / "other" / "b" / "card.json").exists()
    (keeper.work / "a" / "training").write_text("mine")
    assert keeper.restore() == 0 and (keeper.work / "a" / "training").read_text() == "mine"
    keeper._copies(Path("b/model.safetensors"))[-1][1].unlink()
    (keeper.work / "b" / "card.json").unlink()
    (keeper.work / "b" / "model.safetensors").unlink()
    assert keeper.restore() == 0 and not (keeper.work / "b" / "card.json").exists()


def test_a_full_drive_is_a_warning_and_training_goes_on(keeper, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(keeper, "save", full)
    with pytest.warns(UserWarning, match="Not copied to .*No space left.* this machine alone"):
        keeper._try()


def test_the_end_of_a_cell_is_a_time_to_copy(keeper, monkeypatch):
    IPython = pytest.importorskip("IPython")
    calls = {}

    class Shell:
        class events:
            register = calls.__setitem__

            def unregister(name, call):
                assert calls.pop(name) is call

    monkeypatch.setattr(colab, "EVERY", 1000)
    monkeypatch.setattr(IPython, "get_ipython", Shell)
    keeper.start()
    keeper.work.mkdir()
    (keeper.work / "a").write_text("a")
    calls["post_run_cell"](SimpleNamespace(error_in_exec=None))  # as of IPython 7 and 9
    assert back(keeper, "a") == "a"
    while colab._ending:
        colab._ending.pop()()
    assert calls == {}


KILLED = """
import contextlib, io, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path[:0] = [{tests!r}, {site!r}]
from helpers import tiny_mlp
from cfgdistill import Optim, Run, load_data, teacher_loss, train
from cfgdistill.course import colab

colab.DRIVE, colab.EVERY, root = Path({root!r}) / "drive", 0.01, Path({root!r})
data, loss = load_data("toy", images=300), teacher_loss(3, 0.1)

def work(number, drive):
    (root / f"machine-{{number}}").mkdir()
    os.chdir(root / f"machine-{{number}}")
    with contextlib.redirect_stdout(io.StringIO()):
        colab.set_up(drive=drive)
    optim, run = Optim(100, 8, 1e-2, ema=0.9), Run("a", folder="out/a", save_every=3)
    for update in train(tiny_mlp(), loss, data, optim, run):
        time.sleep(0.01 * drive)
        first = Path("first")
        first.exists() or first.write_text(str(update.number))

work("whole", False)
chance, kills, kept = random.Random(0), 0, root / "drive/MyDrive/cfgdistill/out/a"
for number in range(50):
    if not (child := os.fork()):
        work(number, True)
        os._exit(0)
    seen = {{*kept.glob("training.safetensors@*")}}
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if kills < 5 and {{*kept.glob("training.safetensors@*")}} - seen:  # it was copied once more
            time.sleep(chance.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)  # and the machine is gone, with its disk
            os.waitpid(child, 0)
            kills += 1
            break
        time.sleep(0.001)
    else:
        break
print(number, kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_machines_that_are_lost_at_any_moment_end_with_the_bits_of_one_that_was_not(tmp_path):
    place(tmp_path)
    code = KILLED.format(
        tests=str(Path(__file__).parent), site=str(tmp_path / "site"), root=str(tmp_path)
    )
    environment = {key: v for key, v in os.environ.items() if not key.startswith("CFGDISTILL_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env=environment | {"CI": "1"},
    )
    assert done.returncode == 0, done.stderr
    last, kills = map(int, done.stdout.split())
    assert kills == 5
    weights = "out/a/model.safetensors"
    whole = (tmp_path / "machine-whole" / weights).read_bytes()
    assert (tmp_path / f"machine-{last}" / weights).read_bytes() == whole
    began = [int((tmp_path / f"machine-{n}" / "first").read_text()) for n in range(last + 1)]
    assert began[0] == 1 and began[-1] > 1 and began == sorted(began), began


# ---- what is stopped ----------------------------------------------------------------------------

BUDGET = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from helpers import tiny_mlp
from cfgdistill import Optim, Run, load_data, teacher_loss, train
from cfgdistill.course import colab

def work(folder, pause):
    optim, run = Optim(300, 8, 1e-2), Run("a", folder=folder)
    done = 0
    for update in train(tiny_mlp(), teacher_loss(3, 0.1), data, optim, run):
        done += 1
        time.sleep(pause)
    return done

data = load_data("toy", images=300)
assert work("whole", 0) == 300
colab.set_up(minutes=2 / 60)
try:
    work("part", 0.02)
except KeyboardInterrupt:
    print("stopped")
colab.set_up()
assert 0 < work("part", 0) < 300  # it goes on, and nothing stops it
assert Path("part/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
"""


def test_after_its_minutes_a_training_stops_with_what_it_has_and_the_same_cell_goes_on(tmp_path):
    code = BUDGET.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"CI": "1"},
    )
    assert done.returncode == 0, done.stderr
    over, stopped = done.stdout.splitlines()
    assert over.startswith("The 0.0333333 minutes are over. What was trained is kept; run")
    assert stopped == "stopped"


def test_a_training_that_is_interrupted_in_its_callers_lines_is_closed_at_the_end_of_the_cell():
    closed = []

    def training():
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    def finish(updates):
        for _ in updates:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as kept:
        finish(training())
    assert closed == []  # IPython keeps the error, and with it the arguments of `finish`
    colab.let_go(SimpleNamespace(error_in_exec=kept.value))
    assert closed == [True]
    colab.let_go(SimpleNamespace(error_in_exec=None))


CELLS = [
    """
from pathlib import Path
from helpers import tiny_mlp
from cfgdistill import Optim, Run, load_data, teacher_loss, train
from cfgdistill.course import colab
colab.DRIVE, colab.EVERY, data = Path({drive!r}), 1000, load_data("toy", images=300)
for _ in train(tiny_mlp(), teacher_loss(3, 0.1), data, Optim(1, 8, 1e-2)):
    pass
""",
    "colab.set_up(drive=True, minutes=2 / 60)",
    """
for update in train(
    tiny_mlp(), teacher_loss(3, 0.1), data, Optim(10**6, 8, 1e-2), Run("a", folder="out/a")
):
    sum(range(100_000))  # as long as an update, so that either may be interrupted
""",
]


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps the lock's file open")
def test_in_a_kernel_the_cell_stops_after_its_minutes_and_its_checkpoint_is_on_drive(
    there, monkeypatch
):
    manager = pytest.importorskip("jupyter_client.manager")
    tests = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", f"{there / 'site'}{os.pathsep}{tests}")
    monkeypatch.setenv("CI", "1")
    kernel, client = manager.start_new_kernel(kernel_name="python3", startup_timeout=300)
    said = []
    try:
        for cell in CELLS:
            client.execute_interactive(
                cell.format(drive=str(there / "drive")),
                timeout=600,
                output_hook=lambda message: said.append(message["content"]),
            )
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
    assert any("minutes are over" in part.get("text", "") for part in said), said
    assert [part["ename"] for part in said if "ename" in part] == ["KeyboardInterrupt"], said
    kept = there / "drive" / "MyDrive" / "cfgdistill" / "out" / "a"
    assert [path.name[:28] for path in kept.iterdir()] == ["training.safetensors@000001-"]


def test_another_call_ends_what_an_earlier_one_has_started(there, monkeypatch, capsys):
    monkeypatch.setattr(colab, "stop", lambda minutes: print("stopped"))
    colab.set_up(drive=True, minutes=0.02 / 60)
    assert len(colab._ending) == 2
    Path("out").mkdir()
    Path("out/a").write_text("a")
    safe = there / "drive" / "MyDrive" / "cfgdistill" / "out"
    until(lambda: [*safe.glob("a@000001-*")])
    until(lambda: "stopped" in capsys.readouterr().out)
    colab.set_up(minutes=1 / 60)
    colab.set_up()
    assert colab._ending == []
    Path("out/b").write_text("b")
    time.sleep(0.1)
    assert not [*safe.glob("b@*")]


# ---- the notebooks ------------------------------------------------------------------------------

SCRIPTS = [jupytext.read(file) for file in course.select(course.ROOT / "notebooks", [])]


def test_libraries_draw_no_bars_of_their_own_where_it_is_quiet():
    import diffusers
    import transformers

    before = [each.utils.logging.get_verbosity() for each in (diffusers, transformers)]
    colab.quiet()
    try:
        for library in (diffusers, transformers):
            logging = library.utils.logging
            assert not logging.is_progress_bar_enabled()
            assert logging.get_verbosity() == logging.ERROR
    finally:
        for library, level in zip((diffusers, transformers), before, strict=True):
            library.utils.logging.set_verbosity(level)
            library.utils.logging.enable_progress_bar()


def test_every_badge_opens_its_own_notebook_on_the_main_branch():
    project = tomllib.loads((course.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = project["urls"]["Repository"].removeprefix("https://github.com/")
    for file in course.select(course.ROOT / "notebooks", []):
        text = file.read_text(encoding="utf-8")
        opened = re.findall(r"\]\((https://colab\.research\.google\.com/github/[^)]*)\)", text)
        where = f"github/{repository}/blob/main/notebooks/{file.stem}.ipynb"
        assert opened == [f"https://colab.research.google.com/{where}"], file.stem


def test_the_set_up_cell_is_the_first_to_run_short_and_the_same_wherever_it_is():
    first = {course.code_cells(script)[0].source for script in SCRIPTS}
    (cell,) = [source for source in first if "set_up(" in source]
    assert len([line for line in cell.splitlines() if line]) <= 10
    assert '"--no-deps"' in cell  # pip would else change what is there
    done = subprocess.run([sys.executable, "-c", cell], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
