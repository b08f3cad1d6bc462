"""The check of a room's machine: ok where all is well, a sentence for each thing that is not."""

import ast
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import machine
import pytest
import torch

import cfgdistill


def test_a_machine_on_which_this_test_runs_is_ready_but_for_its_versions_and_its_load():
    others = [name for name in ("packages", "disk and memory") if problems(name)]
    done = subprocess.run([sys.executable, machine.__file__], capture_output=True, text=True)
    found = [name for name in machine.CHECKS if f"{name:22s}ok\n" not in done.stdout]
    assert found == others, done.stdout
    assert done.returncode == bool(others) and done.stderr == ""
    assert others or done.stdout.endswith("This machine is ready.\n")


def problems(name):
    return machine.problems(machine.CHECKS[name])


@pytest.mark.parametrize("version, ready", [((3, 10), False), ((3, 11), True), ((3, 14), False)])
def test_python_has_to_be_one_of_those_that_the_course_is_meant_for(version, ready):
    found = [*machine.python(version)]
    assert bool(found) is not ready
    assert ready or f"Python {version[0]}.{version[1]}: install one from 3.11 to 3.13" in found[0]


def test_the_check_itself_can_be_read_by_a_python_that_is_too_old():
    ast.parse(Path(machine.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))


def test_what_is_missing_or_not_the_tested_version_is_named_with_the_line_that_mends_it(
    tmp_path, monkeypatch
):
    tested = tmp_path / "constraints.txt"
    tested.write_text(f"tqdm==0.1\ntorch=={torch.__version__.partition('+')[0]}\n")
    assert [*machine.packages(tested)] == [
        f"tqdm {metadata.version('tqdm')} is not the version that is tested: "
        f"{machine.INSTALL} tqdm==0.1."
    ]
    monkeypatch.setattr(machine, "wanted", lambda *_: ["torch", "no-such-package"])
    assert [*machine.packages(tested)] == [
        f"no-such-package is missing: {machine.INSTALL} no-such-package."
    ]

    def absent(*_):
        raise metadata.PackageNotFoundError("cfgdistill")

    monkeypatch.setattr(machine, "wanted", absent)
    (found,) = machine.packages(tested)
    assert found.startswith("cfgdistill is not installed for ")


def test_everything_that_the_notebooks_ask_for_is_looked_at_and_nothing_of_other_extras():
    needed = {*machine.wanted("cfgdistill", "notebooks")}
    assert {"torch", "diffusers", "jupyterlab", "papermill"} <= needed
    assert not {"pytest", "sphinx", "nbgrader"} & needed


def test_a_model_that_is_damaged_or_missing_is_named(tmp_path):
    (tmp_path / "whole").write_bytes(b"abc")
    (tmp_path / "damaged").write_bytes(b"abd")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of abc
    names = ("whole", "damaged", "missing")
    (tmp_path / "manifest.json").write_text(json.dumps(dict.fromkeys(names, known)))
    found = [*machine.models(tmp_path)]
    assert [line.split()[0] for line in found] == [
        "data/pretrained/damaged",
        "data/pretrained/missing",
    ]
    (found,) = machine.models(tmp_path / "elsewhere")
    assert "manifest.json cannot be read: copy the folder data again" in found


@pytest.mark.parametrize("broken", [torch.zeros(10, 1, 8, 8), torch.full((10, 1, 8, 8), torch.nan)])
def test_a_student_that_draws_nothing_is_noticed(broken, monkeypatch):
    assert [*machine.student()] == []
    monkeypatch.setattr(cfgdistill, "sample", lambda *_, **__: broken)
    assert len([*machine.student()]) == 1


def test_a_kernel_of_another_python_and_one_that_does_not_start_are_told(tmp_path, monkeypatch):
    spec = tmp_path / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    about = {"display_name": "P", "language": "python"}
    start = ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": [sys.executable, *start], **about}))
    assert machine.problems(machine.kernel) == []
    monkeypatch.setattr(machine, "KERNEL", "print('runs /another/python')")
    (found,) = machine.problems(machine.kernel)
    assert found.startswith("Jupyter's kernel is /another/python, not this Python: run ")
    spec.write_text(json.dumps({"argv": ["false"], **about}))
    (found,) = machine.problems(machine.kernel)
    assert found.startswith("It cannot be checked, because of ")


def test_a_full_disk_and_full_memory_are_told():
    found = [*machine.room(disk=0.5, memory=1.25)]
    assert [line.split(":")[0] for line in found] == [
        "Only 0.5 GiB of the disk are free",
        "Only 1.2 GiB of memory are free",
    ]
    assert [*machine.room(disk=2.0, memory=2.0)] == []


def test_whatever_goes_wrong_the_other_checks_are_made_and_the_exit_status_is_1(
    monkeypatch, capsys
):
    def broken():
        raise OSError("the disk\nhas gone")
        yield

    checks = {"first": broken, "second": lambda: ["It is late."], "third": lambda: []}
    monkeypatch.setattr(machine, "CHECKS", checks)
    with pytest.raises(SystemExit) as end:
        machine.main()
    assert end.value.code == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{'first':22s}",
        "  It cannot be checked, because of OSError: has gone",
        f"{'second':22s}",
        "  It is late.",
        f"{'third':22s}ok",
        "2 things are wrong.",
    ]
