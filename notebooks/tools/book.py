"""The book: `python notebooks/tools/book.py [--out DIR]`.

A static site from notebooks/book/ and the executed notebooks, with students that draw in the
reader's browser. It asks nothing of a network when it is read. What browsers need of npm is fetched
once, checked, and kept below $CFGDISTILL_CACHE (~/.cache/cfgdistill).
"""

import argparse
import base64
import hashlib
import html
import inspect
import io
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path

import nbformat
from editions import solved
from kit import questions, teaching

import cfgdistill

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "notebooks" / "book"

# name: (version, sha512 of the package as npm gives it, what is taken out of it)
PACKAGES = {
    "onnxruntime-web": (
        "1.30.0",
        "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        [f"dist/{name}" for name in ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs")]
        + ["dist/ort-wasm-simd-threaded.wasm"],
    ),
    "mathjax": (
        "3.2.2",
        "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
        ["es5/tex-svg.js"],
    ),
    "axe-core": (
        "4.14.1",
        "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
        ["axe.min.js"],
    ),
    "reveal.js": (  # for notebooks/tools/slides.py
        "5.2.1",
        "r7//6mIM5p34hFiDMvYfXgyjXqGRta+/psd9YtytsgRlrpRzFv4RbH76TXd2qD+7ZPZEbpBDhdRhJaFgfQ7zNQ==",
        ["dist/reveal.js", "dist/reveal.css", "plugin/notes/notes.js"],
    ),
}

# The students of the live page: title, steps, evaluations of the guided teacher in the figures.
LIVE = {
    "digits": ("Digits", (1, 2, 4, 8), 512),
    "cifar10": ("CIFAR-10", (1, 4), 512),
    "emoji": ("Emoji", (1, 4), 100),
}
PROMPTS = ["red heart", "green apple", "cat face", "strawberry", "castle", "rainbow", "octopus"]


# ---- from npm -------------------------------------------------------------------------------


def registry() -> str:
    """npm's own setting: the environment, then ~/.npmrc, else the public one."""
    rc = Path.home() / ".npmrc"
    said = re.search(r"^registry\s*=\s*(\S+)", rc.read_text() if rc.exists() else "", re.MULTILINE)
    known = os.environ.get("npm_config_registry") or (said and said[1])
    return (known or "https://registry.npmjs.org").rstrip("/")


def fetch(name: str, to: Path) -> list[Path]:
    """The files of a package of `PACKAGES`, in the folder `to`.

    OSError, with one sentence, where it cannot be fetched or is another than the one known.
    """
    version, known, files = PACKAGES[name]
    cache = Path(os.environ.get("CFGDISTILL_CACHE") or "~/.cache/cfgdistill").expanduser()
    kept = cache / "npm" / f"{name}-{version}.tgz"
    if kept.exists():
        package = kept.read_bytes()
    else:
        url = f"{registry()}/{name}/-/{name}-{version}.tgz"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                package = answer.read()
        except OSError as error:
            raise OSError(
                f"{name} {version} could not be had from npm ({error}): connect once, or set "
                "npm_config_registry."
            ) from error
    if base64.b64encode(hashlib.sha512(package).digest()).decode() != known:
        kept.unlink(missing_ok=True)
        raise OSError(f"What came as {name} {version} is not that package: fetch it again.")
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = kept.with_suffix(f".{os.getpid()}.tmp")
        beside.write_bytes(package)
        beside.replace(kept)
    to.mkdir(parents=True, exist_ok=True)
    written = []
    with tarfile.open(fileobj=io.BytesIO(package)) as tar:
        for file in files:
            written.append(to / Path(file).name)
            written[-1].write_bytes(tar.extractfile(f"package/{file}").read())
    return written


# ---- live students --------------------------------------------------------------------------


def live(home: Path) -> None:
    """What the live page needs, in the folder `home`: students, their runtime, scripts."""
    from cfgdistill.export.onnx import export_onnx
    from cfgdistill.teachers.files import load

    fetch("onnxruntime-web", home)
    about = {}
    for name, (title, steps, teacher) in LIVE.items():
        for n in steps:
            student = load(f"{name}/stage-two/steps-{n}", device="cpu")
            export_onnx(student, home / "students" / name / f"steps-{n}")
        text = student.num_classes is None
        about[name] = {
            "title": title,
            "steps": steps,
            "teacher": teacher,
            "w_range": student.w_range,
            "decodes": text,
            **({"prompts": PROMPTS} if text else {"names": student.meaning.names}),
        }
    (home / "students.json").write_text(json.dumps(about), encoding="utf-8")
    for file in BOOK.joinpath("live").iterdir():
        shutil.copy(file, home)


# ---- the pages ------------------------------------------------------------------------------


def sources(source: Path) -> None:
    """The folder that Sphinx reads: notebooks/book/, and what is made from the rest."""
    shutil.copytree(BOOK, source)
    extra = source / "_extra"
    shutil.copytree(ROOT / "data" / "figures", source / "figures")
    papers = cited(source / "papers.bib")
    names = []
    for file in sorted(ROOT.joinpath("notebooks").glob("*.ipynb")):
        if re.match(r"\d\d_\w+$", file.stem):
            names.append(file.stem)
            notebook = nbformat.read(file, 4)
            chapter(notebook, file.stem, extra / "outputs", dict(papers))
            nbformat.write(notebook, source / file.name)
    pages = [*ROOT.joinpath("notebooks").glob("*.md"), ROOT / "data" / "NOTES.md"]
    for page in pages:
        text = links(page.read_text(encoding="utf-8"))
        (source / page.name.lower()).write_text(text, encoding="utf-8")
    names += [page.stem for page in pages[:-1]]
    index = source / "index.md"
    toc = index.read_text(encoding="utf-8").replace("NOTEBOOKS", "\n".join(names))
    index.write_text(toc, encoding="utf-8")
    for page, filled in ((source / "teaching.md", teaching), (source / "questions.md", questions)):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    (source / "api.rst").write_text(api(), encoding="utf-8")
    fetch("mathjax", source / "_static")
    live(extra / "live")


def chapter(notebook, name: str, outputs: Path, papers: dict[str, str]) -> None:
    """A notebook as it is shown: figures with their alt texts, links, papers, solutions folded."""
    outputs.mkdir(parents=True, exist_ok=True)
    notebook.cells = [cell for cell in notebook.cells if "instructor" not in tags(cell)]
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            text = links(BADGE.sub("", cell.source))
            for url in [url for url in papers if f"]({url})" in text]:  # at its first mention
                text = text.replace(f"]({url})", f"]({url}) {{cite}}`{papers.pop(url)}`", 1)
            if "solution" in tags(cell):
                text = f"<details><summary>Solution</summary>\n\n{text}\n\n</details>"
            cell.source = text
        else:
            if "### BEGIN SOLUTION" in cell.source:
                cell.metadata["tags"] = [*tags(cell), "hide-input"]
            cell.source = solved(cell.source)
        for k, output in enumerate(cell.get("outputs", [])):
            if "image/png" in output.get("data", {}):  # myst-nb would leave out its alt text
                file = outputs / f"{name}-{i}-{k}.png"
                file.write_bytes(base64.b64decode(output.data["image/png"]))
                alt = html.escape(output.metadata["image/png"]["alt"])
                shown = f'<img src="outputs/{file.name}" alt="{alt}" loading="lazy" />'
                output.data = nbformat.from_dict({"text/html": shown})


BADGE = re.compile(r"^\[!\[[^\]]*\]\([^)]*\)\]\([^)]*\)\s*", re.MULTILINE)


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def links(text: str) -> str:
    """Links to what is no page of the book, as links to the repository."""
    for begins, there in (
        ("../notebooks/", ""),
        ("../", f"{REPOSITORY}/"),
        ("pretrained/", f"{REPOSITORY}/data/pretrained/"),
    ):
        text = text.replace(f"]({begins}", f"]({there}")
    return text


REPOSITORY = "https://github.com/cfgdistill/cfgdistill/blob/main"


def cited(bibliography: Path) -> dict[str, str]:
    """{address: key} of the papers."""
    text = bibliography.read_text(encoding="utf-8")
    found = re.findall(r"@\w+\{(\w+), eprint = \{([\d.]+)\}", text)
    return {f"https://arxiv.org/abs/{number}": key for key, number in found}


def api() -> str:
    """The public face, by rooms; what a name is from its docstring."""
    lines = ["API", "===", "", "Everything is imported from ``cfgdistill`` itself.", ""]
    for home in sorted({home.split(".")[0] for home in cfgdistill.HOMES}, key=ROOMS.index):
        lines += [home, "-" * len(home), ""]
        # Single names first, then modules with many.
        for module, names in sorted(cfgdistill.HOMES.items(), key=lambda home: "." not in home[0]):
            if module.split(".")[0] == home:
                lines += [line for name in names for line in _directive(module, name)]
    return "\n".join(lines)


ROOMS = ["core", "training", "data", "teachers", "judge", "export", "course"]


def _directive(module: str, name: str) -> list[str]:
    thing, full = getattr(cfgdistill, name), f"cfgdistill.{module}.{name}"
    if inspect.ismodule(thing):
        known = ", ".join(cfgdistill.HOMES[f"{module}.{name}"])  # which have their own place
        return [f".. automodule:: {full}", "   :members:", f"   :exclude-members: {known}", ""]
    if inspect.isclass(thing):
        return [f".. autoclass:: {full}", "   :members:", "   :exclude-members: forward", ""]
    return [f".. autofunction:: {full}" if callable(thing) else f".. autodata:: {full}", ""]


def build(out: Path) -> Path:
    """The book in the folder `out`, which is made anew; its first page. Warnings are errors."""
    from sphinx.cmd.build import build_main

    with tempfile.TemporaryDirectory() as own:
        source, made = Path(own, "source"), Path(own, "site")
        sources(source)
        given = ["--quiet", "--fail-on-warning", "--keep-going", "--builder", "html"]
        if build_main([*given, str(source), str(made)]) != 0:
            raise SystemExit("The book was not built: see the warnings above.")
        shutil.rmtree(made / ".doctrees", ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, out)
    return out / "index.html"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "book")
    given = parser.parse_args(arguments)
    try:
        print(build(given.out))
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
