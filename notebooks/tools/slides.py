"""Slides of the notebooks: `python notebooks/tools/slides.py [00 ...] [--out DIR]`.

Cells whose metadata have a `slideshow.slide_type`, as JupyterLab writes it, become slides of
reveal.js, which lies beside them: they open without a network. What a cell says at length goes into
the speaker's notes (key S); headings, questions, formulas, lists, tables and pictures are shown.
"""

import argparse
import copy
import html
import re
import sys
from pathlib import Path

import nbformat
from book import REPOSITORY, fetch
from course import CHECKED, ROOT, mathml, select
from nbformat import NotebookNode

LONGEST = 12  # lines of code that a slide shows
SHORT = 220  # letters of a paragraph that it shows whole
SENTENCE = re.compile(r"(?:(?<=[.!?])|(?<=[.!?]\*\*)|(?<=[.!?]\)))\s+(?=[A-Z*$(])")
AFTERWARDS = re.compile(r"## (Further questions|Questions|What to try next)")
STYLE = """
.reveal { font: 27px/1.35 "DejaVu Sans", Helvetica, Arial, sans-serif; color: #222; }
.reveal .slides { text-align: left; }
.reveal h1 { font-size: 1.7em; } .reveal h2 { font-size: 1.35em; } .reveal h3 { font-size: 1.15em; }
.reveal h1, .reveal h2, .reveal h3 { line-height: 1.2; margin: 0 0 0.6em; color: #1a4f8b; }
.reveal p, .reveal ul, .reveal ol { margin: 0 0 0.55em; }
.reveal ul, .reveal ol { padding-left: 1.3em; }
.reveal li { margin-bottom: 0.3em; }
.reveal table { font-size: 0.8em; border-collapse: collapse; }
.reveal td, .reveal th { padding: 0.25em 0.7em; border-bottom: 1px solid #ccc; text-align: left; }
.reveal pre { font: 0.72em/1.35 "DejaVu Sans Mono", Menlo, Consolas, monospace; margin: 0 0 0.7em; white-space: pre-wrap; }
.reveal pre.code { background: #f3f3f3; padding: 0.6em 0.9em; }
.reveal code { font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: 0.92em; }
.reveal pre code { font-size: 1em; }
.reveal .slides section section { height: 720px; padding: 0; }
.reveal .slides section.present section.present { display: flex !important; flex-flow: column; }
.reveal .fragment:has(img) { flex: 1 1 0; min-height: 0; display: flex; flex-flow: column; }
.reveal img { flex: 1 1 0; min-height: 0; margin: 0 auto 0.4em; max-width: 100%; }
.reveal img { object-fit: contain; }
.reveal math { font-size: 1.1em; }
.reveal a { color: #1a4f8b; }
.reveal a.anchor-link { display: none; }
.reveal .slides .fragment { transition: none; }
.reveal .controls { font-size: 7px; }
"""
# nbconvert's own slides, but for their head, which asks a network for scripts, and their cells.
TEMPLATE = """{%- extends 'index.html.j2' -%}
{% block header %}<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<title>{{ resources.metadata.name }}</title>
<link rel="stylesheet" href="reveal.js/reveal.css"><link rel="stylesheet" href="slides.css">
</head>{% endblock %}
{% block body_header %}<body><main class="reveal"><div class="slides">{% endblock %}
{% block body_footer %}</div></main></body>{% endblock %}
{% block markdowncell %}{{ cell.source | markdown2html }}{% endblock %}
{% block codecell %}
{%- if cell.source %}<pre class="code"><code>{{ cell.source | escape_html }}</code></pre>{% endif -%}
{%- for output in cell.outputs %}{{ output.data['text/html'] }}{% endfor -%}
{% endblock %}
{% block footer_js %}<script src="reveal.js/reveal.js"></script>
<script src="reveal.js/notes.js"></script>
<script>Reveal.initialize({
  width: 1280, height: 720, margin: 0.05, center: false, hash: true, slideNumber: "c/t",
  transition: "none", plugins: [RevealNotes],
});</script>{% endblock %}
"""


def deck(notebook: NotebookNode) -> NotebookNode:
    """The notebook's tagged cells, as they are shown and said."""
    cells = []
    for cell in notebook.cells:
        kind = cell.metadata.get("slideshow", {}).get("slide_type")
        if kind is None:
            continue
        if cell.cell_type == "code":
            cells.append(_typed(_code(cell), kind))
            continue
        first, *sections = re.split(r"^(?=## )", cell.source, flags=re.M)
        # What ends a section belongs to the slide before, and the next section begins another.
        for part, type_ in ((first, kind), *((section, "slide") for section in sections)):
            if part.strip() and not AFTERWARDS.match(part):
                cells += _text(part, type_)
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


def _text(source: str, kind: str) -> list[NotebookNode]:
    """What a slide shows of a text, and the whole of it as notes."""
    source = re.sub(r"\]\((?=\w+\.(ipynb|md)\))", f"]({REPOSITORY}/notebooks/", source)
    task = source.startswith("### Exercise")
    told = re.sub(r"^\[!\[.*\n|</?details>|<summary>.*?</summary>", "", source, flags=re.M)
    if task:  # its hints are for the notes
        source = re.sub(r"<details>.*?</details>", "", source, flags=re.S)
    else:
        source = told
    parts = [part.strip() for part in re.split(r"\n\s*\n", source) if part.strip()]
    if parts[0].startswith("# "):  # the title; what the reader needs is said, or known
        parts = parts[: next((i for i, p in enumerate(parts) if p.startswith("**You need")), None)]
    shown = parts if task else [kept for part in parts if (kept := _glance(part))]
    if len(parts) > 1 and all(part.startswith("#") for part in shown):
        shown += SENTENCE.split(" ".join(parts[1].split("\n")))[:1]
    notes = _typed(nbformat.v4.new_markdown_cell(told), "notes")
    text = _typed(nbformat.v4.new_markdown_cell("\n\n".join(shown)), kind)
    return [text, notes] if shown else [notes]


def _glance(part: str) -> str:
    """What is shown of a paragraph: all of a short one, else the sentences with something bold.

    Of an item of a list, its first sentence; formulas, tables and code as they are.
    """
    if re.match(r"#|\$\$|\||```", part):
        return part
    if re.match(r"[-*] |\d+\. ", part):
        items = re.split(r"\n(?=[-*] |\d+\. )", part)
        return "\n".join(SENTENCE.split(" ".join(item.split()))[0] for item in items)
    text = " ".join(part.split())
    if len(text) <= SHORT:
        return text
    return " ".join(sentence for sentence in SENTENCE.split(text) if "**" in sentence)


def _code(cell: NotebookNode) -> NotebookNode:
    """A picture with its alt text; or code, if it is short, and what it prints."""
    cell = copy.deepcopy(cell)
    pictures, printed = [], []
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            alt = html.escape(output.metadata["image/png"]["alt"])
            source = "".join(data["image/png"].split())
            pictures.append(f'<img src="data:image/png;base64,{source}" alt="{alt}">')
        else:
            text = output.get("text") or data.get("text/plain", "")
            printed.append(f"<pre>{html.escape(text)}</pre>")
    lines = cell.source.removeprefix(CHECKED).strip()
    cell.source = "" if pictures or lines.count("\n") >= LONGEST else lines
    cell.outputs = [
        nbformat.v4.new_output("display_data", {"text/html": shown})
        for shown in (pictures or printed)
    ]
    return cell


def _typed(cell: NotebookNode, kind: str) -> NotebookNode:
    cell.metadata = nbformat.from_dict({"slideshow": {"slide_type": kind}})
    return cell


def write(notebook: Path, out: Path) -> Path:
    """The slides of one notebook, out/NAME.html."""
    from nbconvert import SlidesExporter

    exporter = SlidesExporter(raw_template=TEMPLATE)
    mathml(exporter)
    cells = deck(nbformat.read(notebook, as_version=4))
    page = exporter.from_notebook_node(cells, {"metadata": {"name": notebook.stem}})[0]
    file = out / f"{notebook.stem}.html"
    file.write_text(page, encoding="utf-8")
    return file


def build(notebooks: list[Path], out: Path) -> list[Path]:
    """The slides of some notebooks, and what they need, in the folder `out`."""
    fetch("reveal.js", out / "reveal.js")
    (out / "slides.css").write_text(STYLE, encoding="utf-8")
    return [write(notebook, out) for notebook in notebooks]


def tagged(notebook: Path) -> bool:
    cells = nbformat.read(notebook, as_version=4).cells
    return any("slideshow" in cell.metadata for cell in cells)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", help="such as 00; default: all that have slides")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "slides")
    given = parser.parse_args(arguments)
    chosen = [script.with_suffix(".ipynb") for script in select(ROOT / "notebooks", given.names)]
    without = [notebook.stem for notebook in chosen if not tagged(notebook)]
    if given.names and without:
        sys.exit(f"{', '.join(without)}: no cell is tagged for a slide; see slideshow in another.")
    try:
        for page in build([path for path in chosen if path.stem not in without], given.out):
            print(page)
    except OSError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
