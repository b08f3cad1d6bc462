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
from typing import NamedTuple
from unittest import mock

import course
import jupytext
import nbformat
import pytest

from cfgdistill.teachers.shipped import checked

NOTEBOOKS = course.ROOT / "notebooks"
SCRIPTS = sorted(NOTEBOOKS.glob("*.py"))
COURSE = [f"{number:02d}" for number in range(16)]
ON_IMAGES = [script for script in SCRIPTS if "02" <= script.stem[:2] <= "07"]

# Kernels of another instruction set: with them every sum has other last bits.
OTHER_KERNELS = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2"}

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
retrain = bool(os.environ.get("CFGDISTILL_RETRAIN"))
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


class Done(NamedTuple):
    code: int
    out: str
    said: str


@pytest.fixture
def tool(capsys):
    """tool(arguments, notebooks=folder, VARIABLE=value): what the command does, in this process."""

    def tool(*arguments, notebooks: Path = NOTEBOOKS, **environment) -> Done:
        end = None
        with mock.patch.dict(os.environ, environment):
            try:
                course.main(["--notebooks", *map(str, (notebooks, *arguments))])
            except SystemExit as stop:
                end = stop.code
        out, said = capsys.readouterr()
        if isinstance(end, str):  # as Python ends with it
            return Done(1, out, f"{said}{end}\n")
        return Done(end or 0, out, said)

    return tool


def nbval(notebook: Path, folder: Path, out: Path) -> subprocess.CompletedProcess:
    """Execute a built notebook again and compare its checked cells, with no plugin but nbval."""
    others = [flag for name in ("timeout", "xdist", "jaxtyping") for flag in ("-p", f"no:{name}")]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *others, "-c", course.ROOT / "pyproject.toml"]
        + ["--nbval-lax", notebook],
        capture_output=True,
        text=True,
        cwd=course.ROOT,
        env=os.environ | course.kernel_environment(folder) | {"CFGDISTILL_OUT": str(out)},
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A folder with one small script and the notebook that was built from it, by the command."""
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "04_tiny.py").write_text(TINY)
    built = subprocess.run(
        [sys.executable, course.__file__, "--notebooks", folder, "build", "--out", folder / "out"],
        capture_output=True,
        text=True,
    )
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


def test_a_fresh_pair_has_no_problems_and_a_second_build_gives_the_same_bytes(pair, tool, tmp_path):
    script, built, problems = pair
    assert problems() == []
    before = built.read_bytes()
    built.unlink()
    assert tool("build", "04", "--out", tmp_path / "out", notebooks=tmp_path).code == 0
    assert built.read_bytes() == before


def test_a_script_edited_after_building_is_stale_also_when_its_new_text_was_copied_over(pair):
    script, built, problems = pair
    script.write_text(TINY.replace("1 + 1", "2 + 2"))
    assert len(problems()) == 1 and "differs from its script" in problems()[0]
    # What `jupytext --update` leaves: the new text above the old output.
    built.write_text(built.read_text().replace("print(1 + 1)", "print(2 + 2)"))
    assert len(problems()) == 1 and "stale" in problems()[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda n: n.cells[3].update(source="print(3)"),
        lambda n: n.cells[0].update(source="# My notes"),
        lambda n: n.cells.append(nbformat.v4.new_code_cell("mine = 1")),
        lambda n: n.cells.insert(1, nbformat.v4.new_markdown_cell("mine")),
    ],
    ids=["code edited", "text edited", "code added", "text added"],
)
def test_what_somebody_wrote_into_a_notebook_outlives_building_it_again(pair, change):
    script, built, problems = pair
    edit(built, change)
    theirs, fresh = built.read_bytes(), jupytext.read(script)
    for name in ("04_tiny.yours.ipynb", "04_tiny.yours-2.ipynb"):
        course.replace(built, fresh)
        assert built.with_name(name).read_bytes() == theirs
        assert built.read_bytes() != theirs and list(script.parent.glob("*.tmp")) == []
        built.write_bytes(theirs)
    course.replace(built, fresh)
    assert not any("yours" in problem for problem in problems())
    built.write_text('{"cells": [what I wrote')
    course.replace(built, fresh)
    assert built.with_name("04_tiny.yours-4.ipynb").read_text() == '{"cells": [what I wrote'


@pytest.mark.parametrize("name", ["nothing", "outputs", "the script, also copied over", "old"])
def test_a_notebook_without_work_of_somebodys_is_built_again_without_leaving_a_copy(pair, name):
    script, built, _ = pair
    fresh = jupytext.read(script)
    if name == "outputs":
        edit(built, lambda n: n.cells[3].update(outputs=[], execution_count=7))
    if name == "the script, also copied over":
        fresh.cells[3].source = "print(3)"
        edit(built, lambda n: n.cells[3].update(source="print(3)"))
    if name == "old":  # by a build that kept no hash of text, before the text was changed
        edit(built, lambda n: n.cells[0].metadata.clear())
        fresh.cells[0].source = "# Another title"
    course.replace(built, fresh)
    assert [path.name for path in script.parent.glob("*.ipynb")] == [built.name]


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


def test_a_chosen_parameter_is_of_the_type_of_its_default(tiny):
    script = jupytext.read(tiny / "04_tiny.py")
    defaults = {name: course.default_of(script, name) for name in ("profile", "seconds", "retrain")}
    assert defaults == {"profile": "laptop", "seconds": 0, "retrain": False}
    for text, value in {"false": False, "0": False, "No": False, "True": True, "1": True}.items():
        assert course.as_chosen("retrain", text, False) is value
    assert course.as_chosen("seconds", "3", 0) == 3
    assert course.as_chosen("profile", "3", "laptop") == "3"
    for text, default, kind in [("maybe", False, "true or false"), ("0.5", 0, "a whole number")]:
        with pytest.raises(SystemExit, match=f"^The parameter 'x' is {kind}, not '{text}'.$"):
            course.as_chosen("x", text, default)


def test_every_parameter_of_the_course_has_a_default_whose_type_can_be_told():
    for script in map(jupytext.read, SCRIPTS):
        for name in course.parameters_of(script):
            assert isinstance(course.default_of(script, name), str | int)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["run", "--profile", "smkoe"], "did you mean 'smoke'?"),
        (["run", "--dataset", "digit"], "did you mean 'digits'"),
        (["run", "04_tinny"], "did you mean 04_tiny?"),
    ],
)
def test_an_unknown_name_fails_in_one_sentence(tiny, tmp_path, arguments, words):
    with pytest.raises(SystemExit) as failure:
        course.main(["--notebooks", str(tiny), *arguments, "--out", str(tmp_path)])
    assert words in failure.value.code and "\n" not in failure.value.code


def test_a_failing_cell_is_shown_with_its_error_and_without_a_traceback(tool, tmp_path):
    (tmp_path / "00_bad.py").write_text(
        '# %% tags=["parameters"]\nprofile = "smoke"\n\n# %%\nx = 1\nraise ValueError(1)\n'
    )
    failed = tool("run", "--out", tmp_path / "out", notebooks=tmp_path)
    assert failed.code == 1
    assert failed.said.endswith("    x = 1\n    raise ValueError(1)\n\nValueError: 1\n")
    assert "00_bad failed in this cell" in failed.said and "Traceback" not in failed.said


def test_folders_named_relatively_or_from_home_are_found_by_kernels_that_work_elsewhere(
    tool, tmp_path, monkeypatch
):
    (tmp_path / "00_where.py").write_text(
        'import os\n\n# %% tags=["parameters"]\nprofile = "smoke"\n\n# %%\n'
        'for name in ("DATA", "CAPTIONS", "BASE"):\n'
        '    assert os.path.isfile(os.environ[f"CFGDISTILL_{name}"] + "/it"), name\n'
    )
    for folder in ("mine", "home/theirs"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "it").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    named = {"DATA": "mine", "CAPTIONS": "./mine", "BASE": "~/theirs"}
    named = {f"CFGDISTILL_{name}": folder for name, folder in named.items()}
    done = tool("run", "--out", tmp_path / "elsewhere", notebooks=tmp_path, **named)
    assert done.code == 0, done.said


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_ends_with_one_line_and_130(tiny, tmp_path):
    process = subprocess.Popen(
        [sys.executable, course.__file__, "--notebooks", tiny, "run", "-p", "seconds=100000"]
        + ["--out", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "results.json").exists():  # from here on the notebook sleeps
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors == "Stopped. The same command goes on where it was.\n"


def test_the_demo_prints_its_table_and_writes_pages_with_alt_text(tiny, tool, tmp_path):
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
    assert demo.code == 0, demo.said
    assert f"Trained models found in {out} are loaded" in demo.out
    assert re.search(r"\nstudent +4 +4 +20\.25 +99\.5% +1\.50\n", demo.out)
    assert demo.out.count("(missing)") == 2  # this notebook writes no samples.png, no curve
    assert 'alt="Two empty axes."' in (out / "html" / "04_tiny.html").read_text()
    executed = nbformat.read(out / "notebooks" / "04_tiny.ipynb", as_version=4)
    assert 'profile = "smoke"' in executed.cells[3].source


def test_pages_show_formulas_and_load_nothing_from_a_network():
    scripts = [jupytext.read(script) for script in SCRIPTS]
    text = [cell for script in scripts for cell in script.cells if cell.cell_type == "markdown"]
    html = course.page(nbformat.v4.new_notebook(cells=text), "all")
    for formula in re.findall("<math.*?</math>", html, flags=re.S):
        assert "\\" not in formula, formula  # a command of TeX that was not understood
    plain = re.sub("<(pre|code|style)[ >].*?</\\1>", "", html, flags=re.S)
    assert html.count("<math") > 400 and "$" not in plain
    assert "<script" not in html and not re.findall("<link|@import|url\\(.?http", html)


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
    true = tmp_path / "true.ipynb"
    true.write_bytes(built.read_bytes())
    edit(built, lambda notebook: notebook.cells[3].outputs[0].update(text="3\n"))
    assert nbval(built, tmp_path, tmp_path).returncode == 1
    assert [*differences(true, true)] == [] and len([*differences(true, built)]) == 1


# ---- the notebooks --------------------------------------------------------------------------


def test_the_course_is_complete_and_every_notebook_is_what_its_script_says():
    assert [script.stem[:2] for script in SCRIPTS] == COURSE
    assert list(course.problems(course.ROOT / "notebooks")) == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_has_eight_compared_cells_or_more_and_a_short_cell_of_imports(script):
    sources = [cell.source for cell in course.code_cells(jupytext.read(script))]
    assert sum(source.startswith(course.CHECKED) for source in sources) >= 8
    (imports,) = (source for source in sources if "\nimport cfgdistill as cd" in source)
    lines = [line for line in imports.splitlines() if line.startswith(("from ", "import "))]
    assert len(lines) <= 10


def differences(executed: Path, built: Path):
    """The checked cells whose outputs are not those stored, as nbval compares them."""
    cells = (course.code_cells(nbformat.read(path, as_version=4)) for path in (executed, built))
    own = (
        [c for c in some if "injected-parameters" not in c.metadata.get("tags", [])]
        for some in cells
    )
    for new, old in zip(*own, strict=True):
        if old.source.startswith(course.CHECKED) and printed(new) != printed(old):
            yield f"{old.source}\n\n{printed(new)} instead of {printed(old)}"


def printed(cell) -> list:
    """What a cell shows, but for pictures and the numbers of executions."""
    return [
        output.get("text") or {k: v for k, v in output["data"].items() if k != "image/png"}
        for output in cell.outputs
    ]


# What a kernel does before the first cell: from then on figures are drawn at all ends of controls.
ENDS = """
import matplotlib.pyplot as plt

from cfgdistill.course import widgets

still = widgets.explore


def explore(draw, alt, **controls):
    start = {name: widgets._start(control) for name, control in controls.items()}
    for name, control in controls.items():
        ends = {tuple: lambda: control[1:3], list: lambda: control[1:], str: lambda: ["", "?"]}
        for end in ends.get(type(control), lambda: [not control])():
            plt.close(draw(**{**start, name: end}))
    still(draw, alt, **controls)
    print("moved:", *controls)


widgets.explore = explore
"""


@pytest.fixture
def moved(monkeypatch):
    """The controls of a notebook are moved when it is executed."""
    plain = course.kernel_environment

    def kernel_environment(folder: Path) -> dict[str, str]:
        first = folder / "ipython" / "profile_default" / "startup" / "ends.py"
        first.parent.mkdir(parents=True)
        first.write_text(ENDS)
        return plain(folder)

    monkeypatch.setattr(course, "kernel_environment", kernel_environment)


def check(done: Done, script: Path, out: Path) -> None:
    """Nothing failed, what is compared is as stored, and the figures have been moved."""
    assert done.code == 0, done.out + done.said
    executed = out / "notebooks" / script.with_suffix(".ipynb").name
    assert not [*differences(executed, script.with_suffix(".ipynb"))]
    for cell in course.code_cells(nbformat.read(executed, as_version=4)):
        if "widgets.explore(" in cell.source:
            assert any("moved: " in output.get("text", "") for output in cell.outputs)


@pytest.fixture(scope="session")
def course_out(tmp_path_factory):
    """One `out` for all notebooks, so that 03 and 04 find the teacher that 02 trained."""
    return tmp_path_factory.mktemp("out")


def of_the_course(*scripts: Path):
    """Scripts as parameters, in two groups that share no model: they run side by side."""
    groups = {True: "notebooks with text", False: "notebooks"}
    return pytest.mark.parametrize(
        "script",
        [
            pytest.param(
                s, id=s.stem, marks=pytest.mark.xdist_group(groups["08" <= s.stem[:2] <= "11"])
            )
            for s in scripts
        ],
    )


@pytest.mark.timeout(6000)
@of_the_course(*SCRIPTS)
def test_notebook_trains_its_models_at_smoke_and_repeats_what_is_stored(
    script, course_out, tool, moved
):
    done = tool("run", script.stem, "--out", course_out, CFGDISTILL_RETRAIN="1")
    check(done, script, course_out)


@pytest.mark.timeout(6000)
@of_the_course(*SCRIPTS[:10])
def test_notebook_with_models_of_the_package_repeats_what_is_stored_on_another_processor(
    script, course_out, tool, moved
):
    """All last bits may differ with other kernels, and no word of what is compared.

    Not 10: the models of emoji lack the encoder that it needs, which would be trained for minutes.
    11 has its models at `laptop` only, and is next.
    """
    done = tool("run", script.stem, "--out", course_out, CFGDISTILL_RETRAIN="", **OTHER_KERNELS)
    check(done, script, course_out)


@pytest.mark.timeout(6000)
@of_the_course(SCRIPTS[11])
def test_the_students_of_the_small_base_are_found_and_drawn(script, course_out, tool, moved):
    done = tool("run", script.stem, "--out", course_out, "--profile", "laptop")
    check(done, script, course_out)
    executed = nbformat.read(course_out / "notebooks" / f"{script.stem}.ipynb", as_version=4)
    said = [str(cell.outputs) for cell in course.code_cells(executed)]
    assert any("from eps" in text and "directly" in text for text in said)
    card = course_out / "sd-laptop" / "stage-one" / "card.json"
    assert card.read_bytes() == checked("sd/stage-one/card.json")  # so nothing was trained


@pytest.mark.skipif(not os.environ.get("CFGDISTILL_DATA"), reason="CFGDISTILL_DATA is not set")
@pytest.mark.timeout(6000)
@pytest.mark.xdist_group("notebooks on cifar10")
@pytest.mark.parametrize("script", ON_IMAGES, ids=lambda script: script.stem)
def test_notebook_runs_on_cifar10(script, course_out, tool, moved):
    arguments = ["--dataset", "cifar10", "--out", course_out / "cifar10"]
    done = tool("run", script.stem, *arguments, CFGDISTILL_RETRAIN="1")
    assert done.code == 0, done.out + done.said
