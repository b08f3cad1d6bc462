"""Editions of the notebooks for a class: `python notebooks/tools/editions.py [02 ...] [--out DIR]`.

student     blanks to fill in; the solutions, folded, at the end of their section
instructor  solutions and what is for teachers unfolded, and a table of the exercises on top
autograder  a course for nbgrader: `nbgrader generate_assignment NAME` in its folder goes on

All come from the script, where solutions and hidden tests stand between nbgrader's own marks. A
markdown cell tagged `solution` explains one, and one tagged `instructor` is for teachers.
"""

import argparse
import copy
import re
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
from course import LANGUAGE, ROOT, select
from nbformat import NotebookNode

BLANK = "...  # your answer"
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n(.*?)^ *### END SOLUTION$", re.M | re.S)
HIDDEN = re.compile(r"\n### BEGIN HIDDEN TESTS\n.*?^### END HIDDEN TESTS$", re.M | re.S)
TASK = re.compile(r"^### Exercise (\d+): (.+) \*\((.+), (\d+) minutes?\)\*", re.M)
GRADER = """c = get_config()
c.CourseDirectory.course_id = "cfgdistill"
c.ExecutePreprocessor.timeout = 1200  # seconds for a cell
"""


def blanked(source: str) -> str:
    """Code with a blank in place of every solution, and without hidden tests."""
    return HIDDEN.sub("", SOLUTION.sub(rf"\1{BLANK}", source))


def solved(source: str) -> str:
    """Code with the solutions, without the marks around them, and without hidden tests."""
    return HIDDEN.sub("", SOLUTION.sub(lambda found: found[2].rstrip("\n"), source))


def student(notebook: NotebookNode) -> NotebookNode:
    """What is filled in by the reader; sections end with their solutions."""
    cells, folded, number = [], [], "0"
    for cell in by_section(notebook.cells):
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            cells, folded = cells + folded, []
        if found := TASK.search(cell.source):
            number = found[1]
        if "solution" in _tags(cell):
            folded.append(cell)
        elif "instructor" not in _tags(cell):
            if cell.cell_type == "code" and SOLUTION.search(cell.source):
                code = f"```python\n{solved(cell.source)}\n```"
                fold = f"<details><summary>Solution of exercise {number}</summary>"
                fold = nbformat.v4.new_markdown_cell(f"{fold}\n\n{code}\n\n</details>")
                folded.append(fold)
            cells.append(_code(cell, blanked))
    return _notebook(notebook, cells + folded)


def instructor(notebook: NotebookNode) -> NotebookNode:
    """Everything, unfolded, and how long it takes."""
    cells = [_code(cell, solved) for cell in notebook.cells]
    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("<details>", "<details open>")
    tasks = [found.groups() for cell in cells if (found := TASK.search(cell.source))]
    rows = [f"| {' | '.join(task)} |" for task in tasks]
    total = f"{sum(int(minutes) for *_, minutes in tasks)} minutes of exercises, besides reading:"
    head = [total, "", "| exercise | | kind | minutes |", "| --- | --- | --- | --- |"]
    table = nbformat.v4.new_markdown_cell("\n".join(head + rows))
    return _notebook(notebook, [cells[0], *([table] if tasks else []), *cells[1:]])


def autograder(notebook: NotebookNode) -> NotebookNode:
    """The source of an assignment, with nbgrader's marks and metadata, and no answers in words."""
    cells = [cell for cell in notebook.cells if not {"solution", "instructor"} & _tags(cell)]
    return _notebook(notebook, cells)


EDITIONS = {"student": student, "instructor": instructor, "autograder": autograder}


def _tags(cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def by_section(cells: list) -> Iterator:
    """The same cells, but text that goes on into another section is cut where that begins."""
    for cell in cells:
        parts = re.split(r"^(?=## )", cell.source, flags=re.M)
        if cell.cell_type == "code" or len(parts) == 1:
            yield cell
        else:
            yield from (nbformat.v4.new_markdown_cell(part.rstrip()) for part in parts if part)


def _code(cell, change) -> NotebookNode:
    """A cell in the open, with its code changed, that no grader waits for."""
    cell = copy.deepcopy(cell)
    if cell.cell_type == "code":
        cell.source = change(cell.source)
    for key in ("nbgrader", "jupyter", "cellView"):
        cell.metadata.pop(key, None)
    return cell


def _notebook(like: NotebookNode, cells: list) -> NotebookNode:
    cells = copy.deepcopy(cells)
    for index, cell in enumerate(cells):
        cell.id = f"cell-{index:02d}"
    metadata = {"kernelspec": like.metadata["kernelspec"], "language_info": LANGUAGE}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    nbformat.validate(notebook)
    return notebook


def write(script: Path, out: Path) -> None:
    """All editions of a script, out/EDITION/NAME.ipynb; nbgrader wants a folder for each."""
    notebook = jupytext.read(script)
    for name, edition in EDITIONS.items():
        inside = f"source/{script.stem}" if name == "autograder" else "."
        path = out / name / inside / f"{script.stem}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(edition(notebook), path)
    (out / "autograder" / "nbgrader_config.py").write_text(GRADER)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="such as 02; default: all")
    parser.add_argument("--out", type=Path, default=Path("out/editions"))
    options = parser.parse_args(arguments)
    scripts = select(ROOT / "notebooks", options.names)
    for script in scripts:
        write(script, options.out)
    print(f"{len(scripts)} notebooks, three editions of each: {options.out}")


if __name__ == "__main__":
    main()
