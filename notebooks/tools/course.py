"""The notebooks as a command: `python notebooks/tools/course.py VERB`.

build  script -> executed .ipynb beside it        run   execute scripts with papermill
check  is every .ipynb what its script says?      demo  run the pixel track, print its table
                                                  demo-latent  the same for text-to-image

The script is the source, always. Nothing here compares file times, as `jupytext --sync` does.
"""

import argparse
import ast
import copy
import difflib
import hashlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat

ROOT = Path(__file__).resolve().parents[2]
CHECKED = "# NBVAL_CHECK_OUTPUT"
YES_NO = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
# What a kernel says about itself, less its version: that would change with every reader.
LANGUAGE = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}


# ---- scripts --------------------------------------------------------------------------------


def select(folder: Path, names: list[str]) -> list[Path]:
    """The scripts of a folder in order; names may be shortened ("02"), no names mean all."""
    scripts = {path.stem: path for path in sorted(folder.glob("*.py"))}
    if not scripts:
        raise SystemExit(f"There are no notebook scripts in {folder}.")
    chosen = set(scripts)
    if names:
        chosen = {full for name in names for full in scripts if full.startswith(Path(name).stem)}
        for name in names:
            if not any(full.startswith(Path(name).stem) for full in scripts):
                raise SystemExit(_no_such("notebook", name, scripts))
    return [scripts[name] for name in sorted(chosen)]


def _no_such(kind: str, name: str, names) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f": did you mean {' or '.join(near)}?" if near else "."
    return f"There is no {kind} {name!r}{hint} The {kind}s are {', '.join(sorted(names))}."


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters_of(notebook) -> set[str]:
    """The names that the cell tagged `parameters` assigns."""
    names = set()
    for cell in code_cells(notebook):
        if "parameters" in cell.metadata.get("tags", []):
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.Assign):
                    names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def source_hash(cell) -> str:
    return hashlib.sha256(cell.source.encode()).hexdigest()


def default_of(notebook, name: str):
    """What the cell tagged `parameters` assigns to a name, after the imports that it needs."""
    cells = code_cells(notebook)
    own = next(cell for cell in cells if "parameters" in cell.metadata.get("tags", []))
    used = {node.id for node in ast.walk(ast.parse(own.source)) if isinstance(node, ast.Name)}
    known: dict = {}
    for cell in cells[: cells.index(own)]:
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                node.names = [n for n in node.names if (n.asname or n.name.split(".")[0]) in used]
                if node.names:
                    exec(ast.unparse(node), known)
    exec(own.source, known)
    return known[name]


def as_chosen(name: str, text: str, default):
    """The text of `-p name=text` as a value of the default's type."""
    try:
        if isinstance(default, bool):
            return YES_NO[text.lower()]
        return type(default)(text)
    except (KeyError, ValueError):
        kind = {bool: "true or false", int: "a whole number"}.get(type(default), "a number")
        raise SystemExit(f"The parameter {name!r} is {kind}, not {text!r}.") from None


# ---- execution ------------------------------------------------------------------------------


def kernel_environment(folder: Path) -> dict[str, str]:
    """The variable under which the kernel `python3` is this interpreter, and keeps quiet.

    A kernel of the same name in the user's home, or start-up files of IPython there, would
    otherwise come first. What is set for the kernel alone leaves papermill's own bar alone.
    """
    from ipykernel.kernelspec import get_kernel_dict

    spec = folder / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True, exist_ok=True)
    kernel = get_kernel_dict()
    kernel["argv"][0] = sys.executable  # it may only say "python"
    # A kernel that is told to stop complains about its closed sockets, with a traceback.
    kernel["argv"].append("--log-level=50")
    kernel["env"] = {
        "CI": "1",  # no progress bars of training among the outputs
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "IPYTHONDIR": str(folder / "ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",  # it misses torchvision, which nothing here needs
    }
    spec.write_text(json.dumps(kernel))
    before = os.environ.get("JUPYTER_PATH")
    return {"JUPYTER_PATH": f"{folder}{os.pathsep}{before}" if before else str(folder)}


def execute(notebook, title: str, *, cwd: Path, parameters=None, output: Path | None = None):
    """The executed notebook. A failing cell ends the program with the cell and its error."""
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook

    from cfgdistill.training.environment import flag

    # A kernel that is torn down after a failing cell may leave a callback on a closed socket, and
    # tornado would log a traceback of it over the one sentence that matters.
    logging.getLogger("tornado.general").disabled = True
    quiet = flag("CI")
    if not quiet:
        print(f"{title} ...", flush=True)
    started = time.monotonic()
    # papermill takes { } in a path for the name of a parameter.
    target = None if output is None else str(output).replace("{", "{{").replace("}", "}}")
    try:
        done = execute_notebook(
            copy.deepcopy(notebook),
            target,
            parameters,
            kernel_name="python3",
            language="python",
            progress_bar=sys.stderr.isatty() and not quiet,
            cwd=cwd,
            coalesce_streams=True,
        )
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        cell = "\n".join("    " + line for line in error.source.splitlines())
        raise SystemExit(
            f"{title} failed in this cell:\n\n{cell}\n\n{error.ename}: {error.evalue}"
        ) from None
    except DeadKernelError:
        raise SystemExit(f"{title} failed: its kernel was killed. Is memory short?") from None
    print(f"{title}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    return done


def build(script: Path, out: Path) -> None:
    """Execute a script and write the .ipynb beside it, as a whole or not at all.

    Only outputs are taken from the execution: everything else is the script's, so that the same
    script gives the same file. The kernel works beside `out` and calls it by its last name, so
    that no path of this machine is printed.
    """
    notebook = jupytext.read(script)
    os.environ["CFGDISTILL_OUT"] = out.name
    executed = execute(notebook, script.stem, cwd=out.parent)
    for index, (cell, done) in enumerate(zip(notebook.cells, executed.cells, strict=True)):
        cell.id = f"cell-{index:02d}"
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
        cell.metadata["source_sha256"] = source_hash(cell)
    notebook.metadata.pop("jupytext", None)
    notebook.metadata["language_info"] = LANGUAGE
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    replace(script.with_suffix(".ipynb"), notebook)


def replace(built: Path, notebook) -> None:
    """Write a notebook, as a whole or not at all; what somebody wrote into the old one is kept."""
    temporary = built.with_suffix(".ipynb.tmp")
    nbformat.write(notebook, temporary)
    if built.exists() and somebodys_work(built, notebook):
        kept = free_name(built)
        os.replace(built, kept)
        print(f"{built.name} had cells that are not the script's: they are kept in {kept}.")
    os.replace(temporary, built)


def somebodys_work(built: Path, new) -> bool:
    """Whether a notebook has cells that neither the new one has nor a build has left there."""
    try:
        cells = nbformat.read(built, as_version=4).cells
    except Exception:  # it cannot be read, for whatever reason, and is all the more precious
        return True
    ours = {cell.source for cell in new.cells}
    return any(
        cell.source.strip() and cell.source not in ours and not _as_built(cell) for cell in cells
    )


def _as_built(cell) -> bool:
    if "source_sha256" in cell.metadata:
        return cell.metadata["source_sha256"] == source_hash(cell)
    # Earlier builds kept no hash of text.
    return cell.cell_type == "markdown" and cell.get("id", "").startswith("cell-")


def free_name(built: Path) -> Path:
    """NAME.yours.ipynb, or with a number where that is taken."""
    numbers = ("", *(f"-{number}" for number in range(2, 1000)))
    names = (built.with_suffix(f".yours{number}.ipynb") for number in numbers)
    return next(name for name in names if not name.exists())


def run(scripts: list[Path], out: Path, standard: dict, chosen: dict[str, str]) -> None:
    """Execute scripts one after another; `standard` parameters go where they are declared."""
    notebooks = {script.stem: jupytext.read(script) for script in scripts}
    for name, notebook in notebooks.items():  # all of them, before anything runs
        declared = parameters_of(notebook)
        for key in ("profile", *chosen):
            if key not in declared:
                raise SystemExit(f"{name}: {_no_such('parameter', key, declared)}")
    values = {
        name: {k: as_chosen(k, v, default_of(notebook, k)) for k, v in chosen.items()}
        for name, notebook in notebooks.items()
    }
    (out / "notebooks").mkdir(parents=True, exist_ok=True)
    for index, (name, notebook) in enumerate(notebooks.items(), 1):
        declared = parameters_of(notebook)
        execute(
            notebook,
            f"[{index}/{len(notebooks)}] {name}",
            cwd=out,
            parameters={k: v for k, v in standard.items() if k in declared} | values[name],
            output=out / "notebooks" / f"{name}.ipynb",
        )


# ---- the pairing check ----------------------------------------------------------------------


def problems(folder: Path) -> Iterator[str]:
    """One line for each way in which a pair is not what it should be."""
    scripts = {path.stem: path for path in folder.glob("*.py")}
    built = {path.stem: path for path in folder.glob("*.ipynb") if ".yours" not in path.stem}
    for name in sorted(scripts | built):
        if name not in built:
            yield f"{name}: has no .ipynb beside it; run `make notebooks NAMES={name}`."
        elif name not in scripts:
            yield f"{name}: has no script beside it; delete the .ipynb or write the script."
        else:
            try:
                pair = jupytext.read(scripts[name]), nbformat.read(built[name], as_version=4)
                nbformat.validate(pair[1])
            except (ValueError, SyntaxError, nbformat.ValidationError) as error:
                yield f"{name}: cannot be read ({str(error).splitlines()[0]})."
            else:
                yield from (f"{name}: {problem}" for problem in _problems_of(*pair))


def _problems_of(script, built) -> Iterator[str]:
    if script.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "its script has no kernelspec header with the name python3."
    if "profile" not in parameters_of(script):
        yield "has no cell tagged `parameters` that assigns `profile`."
    if "widgets" in built.metadata:
        yield "has metadata.widgets, which breaks GitHub's viewer; build it again."
    mine, theirs = (
        [(cell.cell_type, cell.source, _own_metadata(cell)) for cell in notebook.cells]
        for notebook in (script, built)
    )
    for index in range(max(len(mine), len(theirs))):
        if mine[index : index + 1] != theirs[index : index + 1]:
            yield f"differs from its script, first in cell {index}; build it again."
            break
    compared = 0
    for number, cell in enumerate(code_cells(built), 1):
        where = f"code cell {number} ({cell.source.strip().splitlines()[0][:60]!r})"
        if cell.execution_count != number:
            yield f"{where} was not executed in order."
        if cell.metadata.get("source_sha256") != source_hash(cell):
            yield f"{where} has stale outputs: its text was edited after they were made."
        compared += cell.source.startswith(CHECKED) and len(cell.outputs) > 0
        yield from (f"{where} {problem}" for output in cell.outputs for problem in _bad(output))
    if compared < 2:
        yield f"has {compared} cells with outputs that {CHECKED} compares; at least 2 are needed."


def _own_metadata(cell) -> dict:
    return {key: value for key, value in cell.metadata.items() if key != "source_sha256"}


def _bad(output) -> Iterator[str]:
    data = output.get("data", {})
    if output.output_type == "error":
        yield "ended with an error."
    if "image/png" in data and not output.metadata.get("image/png", {}).get("alt", "").strip():
        yield "shows a picture without alt text; use plotting.show(fig, alt=...)."
    if any("widget" in kind for kind in data):
        yield "has a widget among its outputs, which is empty without a kernel."
    text = output.get("text", "") + data.get("text/plain", "")
    for path in (ROOT, Path.home(), Path(tempfile.gettempdir())):
        if f"{path}{os.sep}" in text:
            yield f"prints a path of this machine (below {path})."
            break


# ---- the demo -------------------------------------------------------------------------------


VALUES = {  # what the table shows of a row, where the row has it
    "frechet_distance": ".2f",
    "class_accuracy": ".1%",
    "retrieval_score": ".1%",
    "distance_to_teacher": ".3f",
    "delivered_w": ".2f",
}


def results_table(results: dict) -> str:
    """results.json as text: a row per model and steps, a column per w."""
    from cfgdistill.judge.metrics import table

    meta, rows = results["meta"], results["rows"]
    values = {key: form for key, form in VALUES.items() if key in rows[0]}
    floor = f", real against real {meta['real_floor']:.2f}" if meta.get("real_floor") else ""
    about = [
        f"{meta['dataset']} at {meta['profile']}, seed {meta['seed']}, commit {meta['git_commit']}",
        f"Frechet distance to {meta['reference']}, on {meta['feature_net']}, "
        f"{meta['n_samples']} samples each{floor}",
        "NFE: network evaluations per image; the guided teacher needs two per step",
    ]
    return "\n".join([*about, "", table(rows, values)])


NO_SCRIPTS = """{%- extends 'index.html.j2' -%}
{% block html_head_js %}{% endblock %}{% block html_head_js_mathjax %}{% endblock %}"""
# What a demo leaves beside its notebooks.
PIXEL_FILES = {
    "samples.png": "the teacher and the students at w = 3, from the same noise",
    "quality_vs_nfe.png": "quality against network evaluations",
}
LATENT_FILES = {
    "prompts.png": "the teacher and the students, from the same noise and prompts",
    "editing.png": "image to image, inpainting and style transfer in 3 to 8 evaluations",
    "students/": "the students, as folders that stock diffusers loads",
}


def mathml(exporter) -> None:
    """Formulas become MathML, which browsers draw without a script or a network."""
    from latex2mathml.converter import convert
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    def drawn(formula: str, display: str) -> str:
        for norm in (r"\lVert", r"\rVert"):  # it does not know these
            formula = formula.replace(norm, "‖")
        formula = formula.replace(r"\operatorname", r"\mathrm")
        return convert(formula, display=display)

    class Renderer(IPythonRenderer):
        def inline_math(self, body: str) -> str:
            return drawn(body, "inline")

        def block_math(self, body: str) -> str:
            return drawn(body, "block")

    exporter.register_filter(
        "markdown2html", lambda text: MarkdownWithMath(renderer=Renderer(escape=False)).render(text)
    )


def page(notebook, title: str) -> str:
    """An executed notebook as HTML that needs no network: formulas as MathML, and no scripts."""
    from nbconvert import HTMLExporter

    # The default template `lab` drops the alt text of figures.
    exporter = HTMLExporter(template_name="classic", raw_template=NO_SCRIPTS)
    mathml(exporter)
    return exporter.from_notebook_node(notebook, {"metadata": {"name": title}})[0]


def demo(scripts: list[Path], out: Path, standard: dict, files: dict[str, str]) -> None:
    """Run a track of notebooks, convert it to HTML, and print the table of its results.json."""
    started = time.monotonic()
    if any(out.glob(f"*-{standard['profile']}/**/card.json")):
        print(f"Trained models found in {out} are loaded; delete the folder to train again.")
    run(scripts, out, standard, {})
    (out / "html").mkdir(exist_ok=True)
    for script in scripts:
        notebook = nbformat.read(out / "notebooks" / f"{script.stem}.ipynb", as_version=4)
        html = out / "html" / f"{script.stem}.html"
        html.write_text(page(notebook, script.stem), encoding="utf-8")
    try:
        results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    except OSError:
        raise SystemExit(f"The notebooks left no results.json in {out}.") from None
    print(f"\n{results_table(results)}\n\nWhere to look in {out}:")
    files = files | {
        "results.json": "the numbers above",
        f"html/{scripts[-1].stem}.html": "the last notebook, as a page; the others beside it",
        "notebooks/": "the executed notebooks",
    }
    for name, what in files.items():
        print(f"  {name:<28}{what}" + ("" if (out / name).exists() else "  (missing)"))
    print(f"{(time.monotonic() - started) / 60:.1f} minutes in all.")


# ---- the command line -----------------------------------------------------------------------


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not name=value")
    return name, value


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks", metavar="FOLDER")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("check", help="compare every .ipynb with its script")
    for verb, profile, out, text in (
        ("build", "laptop", "out", "execute scripts and write the .ipynb beside them"),
        ("run", "smoke", "out/run", "execute scripts with papermill"),
        ("demo", "laptop", "out/demo", "run the pixel track and print its table"),
        ("demo-latent", "laptop", "out/demo-latent", "the same for text-to-image"),
    ):
        command = verbs.add_parser(verb, help=text)
        if not verb.startswith("demo"):
            command.add_argument("names", nargs="*", help="such as 02; default: all")
        # A notebook that is built finds out by itself: see cfgdistill.course.walk.
        command.add_argument("--dataset", default="" if verb == "build" else "digits")
        command.add_argument("--profile", default=profile)
        command.add_argument("--out", type=Path, default=Path(out))
        if verb != "build":
            command.add_argument("--seed", type=int, default=0)
        if verb == "run":
            command.add_argument("-p", type=_assignment, action="append", default=[], dest="chosen")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.verb == "check":
        found = list(problems(options.notebooks))
        print("\n".join(found) or "Every notebook is what its script says.")
        raise SystemExit(1 if found else 0)
    from cfgdistill import get_recipe

    try:
        get_recipe(options.dataset or "digits", options.profile)  # a typo shall not cost a minute
    except ValueError as error:
        raise SystemExit(str(error)) from None
    for name in ("CFGDISTILL_DATA", "CFGDISTILL_CAPTIONS", "CFGDISTILL_BASE"):
        folder = Path(os.environ.get(name) or " ").expanduser()
        if folder.is_dir():  # a kernel works in a folder of its own
            os.environ[name] = str(folder.resolve())
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(kernel_environment(Path(folder)))
        if options.verb == "build":
            os.environ.pop("CFGDISTILL_DATASET", None)
            if options.dataset:
                os.environ["CFGDISTILL_DATASET"] = options.dataset
            os.environ["CFGDISTILL_PROFILE"] = options.profile
            for script in select(options.notebooks, options.names):
                build(script, out)
            return
        standard = {key: getattr(options, key) for key in ("dataset", "profile", "seed")}
        standard["out"] = str(out)
        if options.verb == "run":
            scripts = select(options.notebooks, options.names)
            run(scripts, out, standard, dict(options.chosen))
        else:
            first, last, files = {
                "demo": ("00", "04", PIXEL_FILES),
                "demo-latent": ("08", "10", LATENT_FILES),
            }[options.verb]
            scripts = select(options.notebooks, [])
            track = [path for path in scripts if first <= path.stem[:2] <= last]
            demo(track, out, standard | {"retrain": True}, files)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("Stopped. The same command goes on where it was.", file=sys.stderr)
        raise SystemExit(130) from None
