"""The editions for a class: what a blank is, what goes where, and what nbgrader makes of them."""

import ast
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import course
import editions
import jupytext
import nbformat
import pytest

SCRIPTS = sorted((course.ROOT / "notebooks").glob("*.py"))
HEAD = "# ---\n# jupyter:\n#   kernelspec:\n#     name: python3\n#     display_name: P\n# ---\n\n"
GRADE = '"locked": false, "schema_version": 3, "task": false, "points": 1'
SMALL = f"""{HEAD}# %% [markdown]
# # A title
#
# ## 1. First
#
# ### Exercise 1: twice *(fill in a line, 2 minutes)*

# %% cellView="form" nbgrader={{"grade": false, "grade_id": "twice", "solution": true, {GRADE}}}
def twice(x):
    ### BEGIN SOLUTION
    double = x + x
    return double
    ### END SOLUTION

# %% nbgrader={{"grade": true, "grade_id": "check", "solution": false, {GRADE}}}
print("twice 2 is", twice(2))
### BEGIN HIDDEN TESTS
assert twice(3) == 6
### END HIDDEN TESTS

# %% [markdown] tags=["solution"]
# <details><summary>Why</summary>
#
# A sum.
#
# </details>

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# They say 4.
#
# </details>

# %% [markdown]
# The first section goes on.
#
# ## 2. Second

# %%
print("the end")
"""
WRITTEN = "def twice(x):\n    double = x + x\n    return double"


@pytest.fixture
def small():
    return jupytext.reads(SMALL, "py:percent")


def sources(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells]


def test_a_student_gets_blanks_and_at_the_end_of_the_section_the_folded_solutions(small):
    found = sources(editions.student(small))
    assert found[0] == "# A title" and found[1].startswith("## 1. First\n\n### Exercise 1")
    assert found[2:5] == [
        "def twice(x):\n    ...  # your answer",
        'print("twice 2 is", twice(2))',
        "The first section goes on.",
    ]
    summary = "<details><summary>Solution of exercise 1</summary>"
    assert found[5] == f"{summary}\n\n```python\n{WRITTEN}\n```\n\n</details>"
    assert "A sum." in found[6] and found[7:] == ["## 2. Second", 'print("the end")']


def test_a_teacher_gets_everything_unfolded_and_the_minutes(small):
    edition = editions.instructor(small)
    found = sources(edition)
    assert found[1].startswith("2 minutes") and found[1].endswith(
        "| 1 | twice | fill in a line | 2 |"
    )
    assert found[2:4] == [WRITTEN, 'print("twice 2 is", twice(2))']
    assert [source.startswith("<details open>") for source in found[4:6]] == [True, True]
    assert not any({"cellView", "nbgrader"} & {*cell.metadata} for cell in edition.cells)


def test_a_grader_gets_the_marks_and_no_answers_in_words(small):
    edition = editions.autograder(small)
    assert sources(edition)[1:3] == sources(small)[1:3]
    assert edition.cells[1].metadata["nbgrader"]["schema_version"] == 3
    assert not any("details" in source for source in sources(edition))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_stub_and_solution_are_equal_but_for_the_blanks(script):
    notebook = jupytext.read(script)
    stubs, solutions = (
        course.code_cells(edition(notebook)) for edition in (editions.student, editions.instructor)
    )
    for cell, stub, solution in zip(course.code_cells(notebook), stubs, solutions, strict=True):
        filled, kept = stub.source, editions.SOLUTION.findall(cell.source)
        for indent, body in kept:
            filled = filled.replace(f"{indent}{editions.BLANK}", body.rstrip("\n"), 1)
        assert filled == solution.source and stub.source.count(editions.BLANK) == len(kept)
        assert bool(kept) == bool(cell.metadata.get("nbgrader", {}).get("solution"))
        assert not any("###" in other.source for other in (stub, solution))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_exercises_are_counted_from_1_and_each_has_a_solution_a_check_and_words_for_teachers(
    script,
):
    notebook = jupytext.read(script)
    cells = notebook.cells
    tasks = [editions.TASK.search(cell.source) for cell in cells]
    numbers = [int(task[1]) for task in tasks if task]
    assert numbers == [*range(1, len(numbers) + 1)]
    assert len(numbers) == sum(cell.source.startswith("### Exercise") for cell in cells)
    grader = [cell.metadata["nbgrader"] for cell in cells if "nbgrader" in cell.metadata]
    assert len(grader) == 2 * len(numbers) == len({about["grade_id"] for about in grader})
    assert all(about["schema_version"] == 3 for about in grader)
    assert sum("instructor" in cell.metadata.get("tags", []) for cell in cells) == len(numbers)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_no_cell_but_its_check_asks_for_an_answer_so_a_blank_breaks_nothing(script):
    cells = course.code_cells(jupytext.read(script))
    used = {}  # {who: names that the cell reads and does not set}
    for cell in cells:
        names = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)]
        own = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        who = cell.metadata.get("nbgrader", {}).get("grade_id")
        used.setdefault(who, set()).update({node.id for node in names} - own)
    for who in filter(None, used):
        assert not [other for other in used if who in used[other] and other != f"{who}-check"]


@pytest.mark.skipif(find_spec("nbgrader") is None, reason="nbgrader is not installed")
@pytest.mark.timeout(600)
def test_nbgrader_hands_out_blanks_and_gives_every_point_to_the_solutions(tmp_path, monkeypatch):
    from nbgrader.api import Gradebook

    # It calls a program that lies beside this Python.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    script = tmp_path / "small.py"
    script.write_text(SMALL)
    editions.write(script, tmp_path)
    folder = tmp_path / "autograder"

    def nbgrader(*arguments):
        environment = os.environ | course.kernel_environment(tmp_path) | {"JUPYTER_NO_CONFIG": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "nbgrader", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr

    nbgrader("generate_assignment", "small")
    release = nbformat.read(folder / "release" / "small" / "small.ipynb", as_version=4)
    assert "NotImplementedError" in release.cells[1].source and "HIDDEN" not in str(release)
    hidden = folder / "source" / "small" / "small.ipynb"
    for name, edition in (("right", hidden), ("blank", folder / "release/small/small.ipynb")):
        place = folder / "submitted" / name / "small"
        place.mkdir(parents=True)
        (place / "small.ipynb").write_bytes(edition.read_bytes())
    nbgrader("autograde", "small")
    with Gradebook(f"sqlite:///{folder / 'gradebook.db'}") as book:
        scores = {
            s.student.id: (s.score, s.max_score) for s in book.assignment_submissions("small")
        }
    assert scores == {"right": (1.0, 1.0), "blank": (0.0, 1.0)}
