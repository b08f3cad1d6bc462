"""Sphinx's settings of the book; notebooks/tools/book.py prepares its sources and calls it."""

import re

project = "cfgdistill"
author = "the cfgdistill authors"
copyright = f"{author}, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinxcontrib.bibtex"]
html_theme = "sphinx_book_theme"
html_favicon = "_static/icon.svg"
html_title = "Distillation of guided diffusion models"
html_static_path = ["_static"]
html_extra_path = ["_extra"]
html_css_files = ["book.css"]
html_copy_source = False
html_context = {"default_mode": "auto"}  # light or dark, as the reader has it
html_theme_options = {
    "repository_url": "https://github.com/cfgdistill/cfgdistill",
    "use_repository_button": True,
    "use_download_button": False,
    "home_page_in_toc": True,
    "show_toc_level": 2,
}
nb_execution_mode = "off"  # the committed outputs are shown
nb_code_prompt_show, nb_code_prompt_hide = "A solution", "Hide the solution"
nb_ipywidgets_js = {}
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]
bibtex_bibfiles = ["papers.bib"]
bibtex_default_style = "alpha"
mathjax_path = "tex-svg.js"  # lies beside, so that formulas need no network
add_module_names = False  # all come from cfgdistill itself
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say the shapes


def as_rst(app, what, name, obj, options, lines: list[str]) -> None:
    """Our docstrings are plain text with `code`: tables of arguments stay as they are written."""
    paragraphs = "\n".join(lines).split("\n\n")
    lines[:] = "\n\n".join(map(paragraph, paragraphs)).split("\n")


def paragraph(text: str) -> str:
    if re.search(r"^\s|^\w[\w, ]*:? {2,}\S", text, re.MULTILINE):  # a table, or an example
        return ".. code-block:: text\n\n" + re.sub(r"^", "    ", text, flags=re.MULTILINE)
    parts = re.split(r"(`[^`]+`)", text)
    for i, part in enumerate(parts):
        parts[i] = f"`{part}`" if i % 2 else re.sub(r"([*_|\\])", r"\\\1", part)
    return "".join(parts)


def setup(app) -> None:
    app.connect("autodoc-process-docstring", as_rst)
