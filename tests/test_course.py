"""The notebooks: each is what its script says, runs at smoke, and repeats what it has stored.

The tool that builds and runs them is tried on a tiny notebook first.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import course
import nbformat
import pytest

SCRIPTS = sorted((course.ROOT / "notebooks").glob("*.py"))
COURSE = [f"{number:02d}" for number in range(12)]
ON_IMAGES = [script for script in SCRIPTS if "02" <= script.stem[:2] <= "07"]

pytestmark = pytest.mark.xdist_group("tool")  # one worker after the other would build it again

TINY = """# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · Tiny

# %%
import json
import os
import time
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import display

# %% tags=["parameters"]
profile = os.environ.get("CFGDISTILL_PROFILE", "laptop")
out = os.environ.get("CFGDISTILL_OUT", "out")
seconds = 0

# %%
# NBVAL_CHECK_OUTPUT
print(1 + 1)

# %%
# NBVAL_CHECK_OUTPUT
print("two steps equal one:", True)

# %%
fig, axis = plt.subplots()
plt.close(fig)
display(fig, metadata={"image/png": {"alt": "Two empty axes."}})

# %%
row = {"model": "student", "sampler": "ddim", "steps": 4, "nfe": 4, "w": 1, "ms_per_image": 1.5}
row |= {"frechet_distance": 20.25, "class_accuracy": 0.995}
meta = {"dataset": "digits", "profile": profile, "seed": 0, "git_commit": "abc", "n_samples": 40}
meta |= {"feature_net": "a classifier", "reference": "digits train"}
Path(out, "results.json").write_text(json.dumps({"meta": meta, "rows": [row]}))
time.sleep(seconds)
"""


def tool(*arguments, notebooks: Path = course.ROOT / "notebooks", **environment):
    command = [sys.executable, course.__file__, "--notebooks", notebooks, *arguments]
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=os.environ | environment
    )


def nbval(notebook: Path, folder: Path, out: Path) -> subprocess.CompletedProcess:
    """Execute a built notebook again, at smoke, and compare its checked cells.

    With the models of the package, and so with what a reader meets first; but those of emoji lack
    the encoder that notebook 10 needs, and that would be trained for minutes.
    """
    about = {"CFGDISTILL_PROFILE": "smoke", "CFGDISTILL_DATASET": "digits"}
    about["CFGDISTILL_OUT"] = str(out)
    about["CFGDISTILL_RETRAIN"] = "1" if notebook.stem.startswith("10") else ""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--nbval-lax", "--timeout=600", str(notebook)],
        capture_output=True,
        text=True,
        cwd=course.ROOT,
        env=os.environ | course.kernel_environment(folder) | about,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A folder with one small script and the notebook that was built from it."""
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "04_tiny.py").write_text(TINY)
    built = tool("build", "--out", folder / "out", notebooks=folder)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture
def pair(tiny, tmp_path):
    """A copy of the tiny pair to break: its script, its notebook, and the problems found."""
    script, built = tmp_path / "04_tiny.py", tmp_path / "04_tiny.ipynb"
    script.write_text(TINY)
    built.write_bytes((tiny / built.name).read_bytes())
    return script, built, lambda: list(course.problems(tmp_path))


def edit(built: Path, change) -> None:
    notebook = nbformat.read(built, as_version=4)
    change(notebook)
    nbformat.write(notebook, built)


# ---- the tool -------------------------------------------------------------------------------


def test_a_fresh_pair_has_no_problems_and_a_second_build_gives_the_same_bytes(pair, tmp_path):
    script, built, problems = pair
    assert problems() == []
    before = built.read_bytes()
    built.unlink()
    assert tool("build", "04", "--out", tmp_path / "out", notebooks=tmp_path).returncode == 0
    assert built.read_bytes() == before


def test_a_script_edited_after_building_is_stale_also_when_its_new_text_was_copied_over(pair):
    script, built, problems = pair
    script.write_text(TINY.replace("1 + 1", "2 + 2"))
    assert len(problems()) == 1 and "differs from its script" in problems()[0]
    # What `jupytext --update` leaves: the new text above the old output.
    built.write_text(built.read_text().replace("print(1 + 1)", "print(2 + 2)"))
    assert len(problems()) == 1 and "stale" in problems()[0]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda n: n.cells[5].outputs[0].metadata.clear(), "alt text"),
        (lambda n: n.cells[4].update(execution_count=None), "not executed"),
        (lambda n: n.metadata.update(widgets={}), "metadata.widgets"),
        (lambda n: n.cells[3].update(outputs=[]), "1 cells with outputs"),
        (lambda n: n.cells.pop(0), "differs from its script"),
        (lambda n: n.cells[2].metadata.pop("tags"), "differs from its script"),
        (
            lambda n: n.cells[1].update(outputs=[nbformat.v4.new_output("error", ename="E")]),
            "ended with an error",
        ),
        (
            lambda n: n.cells[3].outputs[0].update(text=f"{course.ROOT}/out"),
            "a path of this machine",
        ),
    ],
)
def test_every_fault_of_a_built_notebook_is_reported(pair, change, words):
    _, built, problems = pair
    edit(built, change)
    assert len(problems()) == 1 and words in problems()[0], problems()


def test_a_script_needs_a_notebook_and_a_notebook_a_script(pair):
    script, built, problems = pair
    kept = built.read_bytes()
    built.unlink()
    assert len(problems()) == 1 and "no .ipynb beside it" in problems()[0]
    built.write_bytes(kept)
    script.unlink()
    assert len(problems()) == 1 and "no script beside it" in problems()[0]


def test_a_script_needs_a_kernel_header_and_a_profile(pair):
    script, built, problems = pair
    script.write_text(TINY[TINY.index("# %%") :].replace("profile =", "size ="))
    found = "\n".join(problems())
    assert "kernelspec header" in found and "assigns `profile`" in found


def test_an_unknown_parameter_fails_before_anything_runs_and_names_the_near_one(tiny, tmp_path):
    script = tiny / "04_tiny.py"
    with pytest.raises(SystemExit, match=r"parameter 'second': did you mean seconds\?"):
        course.run([script], tmp_path, {"profile": "smoke"}, {"second": 3})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["run", "--profile", "smkoe"], "did you mean 'smoke'?"),
        (["run", "--dataset", "digit"], "did you mean 'digits'?"),
        (["run", "04_tinny"], "did you mean 04_tiny?"),
    ],
)
def test_an_unknown_name_fails_in_one_sentence(tiny, tmp_path, arguments, words):
    with pytest.raises(SystemExit) as failure:
        course.main(["--notebooks", str(tiny), *arguments, "--out", str(tmp_path)])
    assert words in failure.value.code and "\n" not in failure.value.code


def test_a_failing_cell_is_shown_with_its_error_and_without_a_traceback(tmp_path):
    (tmp_path / "00_bad.py").write_text(
        '# %% tags=["parameters"]\nprofile = "smoke"\n\n# %%\nx = 1\nraise ValueError(1)\n'
    )
    failed = tool("run", "--out", tmp_path / "out", notebooks=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.endswith("    x = 1\n    raise ValueError(1)\n\nValueError: 1\n")
    assert "00_bad failed in this cell" in failed.stderr and "Traceback" not in failed.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_ends_with_one_line_and_130(tiny, tmp_path):
    process = subprocess.Popen(
        [sys.executable, course.__file__, "--notebooks", tiny, "run", "-p", "seconds=60"]
        + ["--out", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "results.json").exists():  # from here on the notebook sleeps
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "Stopped. The same command goes on where it was.\n"


def test_the_demo_prints_its_table_and_writes_pages_with_alt_text(tiny, tmp_path):
    # Somebody's own kernel of the same name, which must not be the one that is used.
    foreign = tmp_path / "home" / "kernels" / "python3" / "kernel.json"
    foreign.parent.mkdir(parents=True)
    foreign.write_text(json.dumps({"argv": ["false"], "display_name": "P", "language": "python"}))
    out = tmp_path / "a {folder}"  # papermill alone would take { } for a parameter
    card = out / "digits-smoke" / "teacher" / "card.json"
    card.parent.mkdir(parents=True)
    card.write_text("{}")
    demo = tool(
        *("demo", "--profile", "smoke", "--out", out),
        notebooks=tiny,
        JUPYTER_PATH=str(tmp_path / "home"),
    )
    assert demo.returncode == 0, demo.stderr
    assert f"Trained models found in {out} are loaded" in demo.stdout
    assert re.search(r"\nstudent +4 +4 +20\.25 +99\.5% +1\.50\n", demo.stdout)
    assert demo.stdout.count("(missing)") == 2  # this notebook writes no samples.png, no curve
    assert 'alt="Two empty axes."' in (out / "html" / "04_tiny.html").read_text()
    executed = nbformat.read(out / "notebooks" / "04_tiny.ipynb", as_version=4)
    assert 'profile = "smoke"' in executed.cells[3].source


def test_the_table_has_a_row_per_model_and_steps_and_a_column_per_w():
    meta = {"dataset": "digits", "profile": "laptop", "seed": 0, "git_commit": "abc"}
    meta |= {"feature_net": "digits classifier, 64 features", "reference": "digits train"}
    meta |= {"n_samples": 1000, "real_floor": 1.234}
    rows = [
        {
            "model": model,
            "sampler": "ddim",
            "steps": steps,
            "nfe": nfe,
            "w": w,
            "frechet_distance": 10.0 * steps + w,
            "class_accuracy": 0.5,
            "ms_per_image": 1.0 + w,
        }
        for model, steps, nfe in (("teacher", 32, 64), ("student", 4, 4))
        for w in (0, 1)
    ]
    assert course.results_table({"meta": meta, "rows": rows[:-1]}).splitlines() == [
        "digits at laptop, seed 0, commit abc",
        "Frechet distance to digits train, on digits classifier, 64 features, "
        "1000 samples each, real against real 1.23",
        "NFE: network evaluations per image; the guided teacher needs two per step",
        "",
        "                       Frechet distance  class accuracy",
        "model      steps  NFE     w = 0   w = 1    w = 0  w = 1  ms/image",
        "teacher       32   64    320.00  321.00    50.0%  50.0%      1.00",
        "student        4    4     40.00       -    50.0%      -      1.00",
    ]


def test_nbval_notices_an_output_that_is_no_longer_true(pair, tmp_path):
    _, built, _ = pair
    assert nbval(built, tmp_path, tmp_path).returncode == 0
    edit(built, lambda notebook: notebook.cells[3].outputs[0].update(text="3\n"))
    assert nbval(built, tmp_path, tmp_path).returncode == 1


# ---- the notebooks --------------------------------------------------------------------------


def test_the_course_is_complete_and_every_notebook_is_what_its_script_says():
    assert [script.stem[:2] for script in SCRIPTS] == COURSE
    assert list(course.problems(course.ROOT / "notebooks")) == []


@pytest.mark.xdist_group("notebooks")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_notebook_runs_at_smoke(script, course_out):
    arguments = ["--profile", "smoke", "--out", course_out]
    done = tool("run", script.stem, *arguments, CFGDISTILL_RETRAIN="1")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.xdist_group("notebooks")
@pytest.mark.timeout(1800)  # 07 takes five minutes on one core
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_checked_cells_of_notebook_repeat_what_is_stored(script, course_out, tmp_path):
    done = nbval(script.with_suffix(".ipynb"), tmp_path, course_out)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not os.environ.get("CFGDISTILL_DATA"), reason="CFGDISTILL_DATA is not set")
@pytest.mark.xdist_group("notebooks on cifar10")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("script", ON_IMAGES, ids=lambda script: script.stem)
def test_notebook_runs_on_cifar10(script, course_out):
    arguments = ["--profile", "smoke", "--dataset", "cifar10", "--out", course_out / "cifar10"]
    done = tool("run", script.stem, *arguments, CFGDISTILL_RETRAIN="1")
    assert done.returncode == 0, done.stdout + done.stderr
