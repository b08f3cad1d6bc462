"""Figures with controls in a real JupyterLab and a real browser, moved with the keyboard."""

import ast
import base64
import io
import os
import socket
import subprocess
import symtable
import sys
import time
import urllib.request
from pathlib import Path

import course
import jupytext
import nbformat
import pytest
from PIL import Image

pytest.importorskip("jupyterlab")

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "out" / "widget-pictures"  # kept, to be looked at
MARK = "widgets.explore("
SCRIPTS = [
    script
    for script in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.py"))
    if MARK in script.read_text(encoding="utf-8")
]
WAIT = 300_000  # milliseconds, which only ends what hangs
TOKEN = "of-the-tests"

# Its figure is of one colour, from which the value of every control can be read.
TINY = """
from cfgdistill.course import widgets
from cfgdistill.judge import plotting


def draw(red, green, blue):
    fig, axis = plotting.figure(width=1, height=1)
    axis.set_axis_off()
    fig.set_facecolor((red / 10, float(green), len(blue) / 10))
    return fig


widgets.explore(draw, "A coloured square.", red=(2, 0, 10, 1), green=False, blue="four")
"""


# ---- which cells a figure with controls needs ---------------------------------------------------


def names(statement: ast.stmt) -> tuple[set[str], set[str]]:
    """The names of the module that a statement reads, also in functions, and that it assigns."""
    read, assigned = set(), set()
    tables = [symtable.symtable(ast.unparse(statement), "cell", "exec")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        top = table.get_type() == "module"
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (top or symbol.is_global()):
                read.add(symbol.get_name())
            if top and (symbol.is_assigned() or symbol.is_imported()):
                assigned.add(symbol.get_name())
    if isinstance(statement, ast.For | ast.With):
        read -= assigned  # its own
    if isinstance(statement, ast.AugAssign):
        read |= assigned
    return read, assigned


def needed(sources: list[str]) -> list[str]:
    """Those of the cells that the last one cannot do without, and that one."""
    wanted, kept = set(), []
    for source in reversed(sources):
        statements = [names(statement) for statement in ast.parse(source).body]
        if kept and not any(assigned & wanted for _, assigned in statements):
            continue
        kept.insert(0, source)
        for read, assigned in reversed(statements):
            wanted = wanted - assigned | read
    return kept


def test_the_cells_that_are_needed_are_those_that_assign_what_is_read():
    function = "def f(c=c):\n    b = 4\n    return [a + b for d in c]"
    cells = ["a = 1", "b = a", "a = 2", "c, d = 3, 4", "d = 5", "a += 1", function, "f()"]
    assert needed(cells) == ["a = 2", "c, d = 3, 4", "a += 1", function, "f()"]


def cells(script: Path) -> tuple[list[str], list[str]]:
    """The code cells up to the figure with controls, and those after it."""
    sources = [cell.source for cell in course.code_cells(jupytext.read(script))]
    (place,) = (k for k, source in enumerate(sources) if MARK in source)
    return sources[: place + 1], sources[place + 1 :]


def functions(sources: list[str]) -> dict[str, set[str]]:
    """The functions of some cells: the names of the module that each reads when it is called."""
    found = {}
    for statement in ast.parse("\n".join(sources)).body:
        if isinstance(statement, ast.FunctionDef):  # defaults are read once, when it is defined
            statement.args.defaults, statement.decorator_list = [], []
            found[statement.name] = names(statement)[0]
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_no_later_cell_changes_what_a_figure_draws(script):
    before, after = cells(script)
    calls = functions(before)
    used = set().union(*functions(before[-1:]).values())
    while further := set().union(*(calls.get(name, set()) for name in used)) - used:
        used |= further
    for source in after:
        for statement in ast.parse(source).body:
            assert used & names(statement)[1] == set()


# ---- JupyterLab ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The folder of a JupyterLab that nobody else knows, and its address."""
    home = tmp_path_factory.mktemp("lab")
    folder = home / "notebooks"
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= course.kernel_environment(home) | {"OMP_NUM_THREADS": "1", "HOME": str(home)}
    own |= {"CFGDISTILL_PROFILE": "smoke", "CFGDISTILL_OUT": str(home / "out")}
    own |= {"CFGDISTILL_RETRAIN": ""}  # models of the package
    asked = home / "CONFIG/lab/user-settings/@jupyterlab/apputils-extension"
    asked.mkdir(parents=True)  # or a question about news lies over the page
    (asked / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    options = {
        "ServerApp.root_dir": folder,
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.open_browser": False,
        "ServerApp.allow_root": True,
        "IdentityProvider.token": TOKEN,
        "LabApp.expose_app_in_browser": True,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.extension_manager": "readonly",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    address = f"http://127.0.0.1:{port}"
    with open(home / "said", "w") as said:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *arguments],
            stdout=said,
            stderr=said,
            cwd=home,
            env=os.environ | own,
        )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/api/status?token={TOKEN}", timeout=10).close()
                break
            except OSError:
                assert server.poll() is None, (home / "said").read_text()
                time.sleep(0.2)
        yield folder, address
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture
def run(lab, browser):
    """run(name, cells): opens them as a notebook and runs them all; the page, with the controls."""
    folder, address = lab
    contexts = []

    def run(name: str, cells: list[str]):
        alive = "import os\n\nos.environ['CI'] = ''"  # or no figure would have controls
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in (alive, *cells)],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        )
        nbformat.write(notebook, folder / f"{name}.ipynb")
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 1000}))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT)
        page.goto(f"{address}/doc/tree/{name}.ipynb?reset&token={TOKEN}")
        page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady")
        page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_selector(".jupyter-widgets img, [data-mime-type$='error']")
        assert page.locator("[data-mime-type$='error']").all_inner_texts() == []
        return page

    yield run
    for context in contexts:
        for page in context.pages:
            page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        context.close()


def figure(page) -> tuple[str, str]:
    """The figure that is seen below the controls, as a URL, and what it says to the blind."""
    image = page.locator(".jupyter-widgets img")
    return image.get_attribute("src"), image.get_attribute("alt")


CHANGED = """src => {
    const shown = document.querySelector(".jupyter-widgets img");
    return shown && shown.src !== src || document.querySelector("[data-mime-type$='error']");
}"""


def another(page, before: tuple[str, str]) -> tuple[str, str]:
    """Waits until the figure is another one."""
    page.wait_for_function(CHANGED, arg=before[0])
    assert page.locator("[data-mime-type$='error']").all_inner_texts() == []
    return figure(page)


def colour(seen: tuple[str, str]) -> tuple[int, ...]:
    """The red, green and blue of the tiny notebook's figure, as its controls count."""
    png = base64.b64decode(seen[0].removeprefix("data:image/png;base64,"))
    red, green, blue = Image.open(io.BytesIO(png)).convert("RGB").getpixel((5, 5))
    return round(red / 25.5), round(green / 255), round(blue / 25.5)


def keep(page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png")


def test_slider_box_and_line_are_moved_by_keys_and_the_figure_follows(run):
    page = run("tiny", [TINY])
    seen = figure(page)
    assert colour(seen) == (2, 0, 4) and seen[1] == "A coloured square."
    page.get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    seen = another(page, seen)
    assert colour(seen) == (3, 0, 4)
    assert seen[1] == "The same figure with red 3, green False, blue four."
    page.keyboard.press("ArrowLeft")
    seen = another(page, seen)
    assert colour(seen) == (2, 0, 4) and seen[1] == "A coloured square."
    page.keyboard.press("Tab")  # to the field of the slider's number, and on to the box
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    seen = another(page, seen)
    assert colour(seen) == (2, 1, 4)
    page.keyboard.press("Tab")
    page.keyboard.type("fifteen")  # what was there is selected
    page.keyboard.press("Tab")
    seen = another(page, seen)
    assert colour(seen) == (2, 1, 7)
    assert seen[1] == "The same figure with red 2, green True, blue fifteen."
    keep(page, "tiny")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_figure_of_a_notebook_moves_in_a_browser(script, run):
    page = run(script.stem, needed(cells(script)[0]))
    seen = figure(page)
    slider, number = page.get_by_role("slider").first, page.locator(".widget-readout").first
    least, was = slider.get_attribute("aria-valuemin"), number.inner_text()
    slider.focus()
    page.keyboard.press("ArrowRight" if float(was) <= float(least) else "ArrowLeft")
    moved = another(page, seen)
    assert number.inner_text() != was
    assert moved[1].startswith("The same figure with ") and moved[1] != seen[1]
    page.locator(".jupyter-widgets img").scroll_into_view_if_needed()
    keep(page, script.stem)
