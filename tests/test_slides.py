"""Slides: what of a notebook is shown and what is said, and that it fits, without a network."""

import json
from pathlib import Path

import jupytext
import nbformat
import pytest
import slides

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "out" / "slides-pictures"  # kept, to be looked at
TAGGED = [
    file for file in sorted(ROOT.joinpath("notebooks").glob("*.ipynb")) if slides.tagged(file)
]
SHOW = '[markdown] slideshow={"slide_type": "slide"}'
SMALL = f"""# %% {SHOW}
# # A title
#
# [![badge](a.svg)](b)
#
# **You will** learn.
#
# **You need** time.

# %% {SHOW}
# ### Exercise 1: guess *(predict, 2 minutes)*
#
# What is it?
#
# <details><summary>Hint</summary>
#
# Count.
#
# </details>

# %% {SHOW}
# {"Long prose. " * 30}**Why?** Because.
#
# - One. And more of it.
# - Two.
#
# $$a = b$$
#
# ## Next
#
# Short, see [04](04_stage_two.ipynb).
#
# ## Further questions
#
# 1. What now?

# %%
print("not shown")
"""


def shown(kind="slide"):
    cells = slides.deck(jupytext.reads(SMALL, "py:percent")).cells
    return [c.source for c in cells if c.metadata["slideshow"]["slide_type"] == kind]


def test_a_slide_shows_what_is_seen_at_a_glance_and_the_notes_say_the_rest():
    title, task, text, section = shown()
    assert title == "# A title\n\n**You will** learn."
    assert task == "### Exercise 1: guess *(predict, 2 minutes)*\n\nWhat is it?"
    assert text == "**Why?**\n\n- One.\n- Two.\n\n$$a = b$$"
    assert section.startswith("## Next\n\nShort, see [04](https://")
    notes = shown("notes")
    assert "Count." in notes[1] and "Long prose." in notes[2] and "badge" not in notes[0]
    assert not any("What now?" in each or "not shown" in each for each in notes)


def test_a_picture_comes_with_its_alt_text_and_long_code_is_left_out():
    cell = nbformat.v4.new_code_cell("# NBVAL_CHECK_OUTPUT\nx = 1\nprint(x)")
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="<1>\n")]
    short = slides._code(cell)
    assert short.source == "x = 1\nprint(x)"
    assert short.outputs[0].data["text/html"] == "<pre>&lt;1&gt;\n</pre>"
    cell.source = "x = 1\n" * 13
    assert slides._code(cell).source == ""
    alt = {"image/png": {"alt": 'a "b"'}}
    cell.outputs += [nbformat.v4.new_output("display_data", {"image/png": "aa\n"}, metadata=alt)]
    (picture,) = slides._code(cell).outputs
    assert 'base64,aa" alt="a &quot;b&quot;"' in picture.data["text/html"]


def test_a_notebook_without_slides_is_told_in_a_sentence(tmp_path):
    with pytest.raises(SystemExit, match="^02_guided_teacher: no cell is tagged for a slide"):
        slides.main(["02", "--out", str(tmp_path)])


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    out = tmp_path_factory.mktemp("slides")
    try:
        return slides.build(TAGGED, out)
    except OSError as error:  # reveal.js has to be fetched once
        pytest.skip(str(error))


INSIDE = """() => {
    const frame = document.querySelector(".slides").getBoundingClientRect(), out = [];
    for (const part of Reveal.getCurrentSlide().querySelectorAll(":not(aside, aside *)")) {
        const box = part.getBoundingClientRect();
        const below = box.bottom > frame.bottom + 1.5, beside = box.right > frame.right + 1.5;
        if (below || beside) out.push(part.tagName);
        if (part.scrollWidth > part.clientWidth + 1 && part.tagName === "PRE") out.push("text");
    }
    return out;
}"""


def test_every_slide_fits_its_screen_and_asks_nothing_of_a_network(pages, browser):
    PICTURES.mkdir(parents=True, exist_ok=True)
    away, wrong = [], []
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.on("request", lambda asked: away.append(asked.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
    for file in pages:
        page.goto(file.as_uri())
        page.wait_for_function("window.Reveal?.isReady()")
        total = page.evaluate("Reveal.getTotalSlides()")
        assert total >= 8
        for k in range(total):
            page.evaluate(
                "k => { const { h, v } = Reveal.getIndices(Reveal.getSlides()[k]);"
                "Reveal.slide(h, v, 99); }",
                k,
            )
            wrong += [(file.stem, k + 1, part) for part in page.evaluate(INSIDE)]
            page.screenshot(path=PICTURES / f"{file.stem}-{k + 1:02d}.png")
        silent = page.evaluate("document.querySelectorAll('img:not([alt])').length")
        wrong += [(file.stem, "no alt text")] * silent
    page.close()
    assert wrong == [], json.dumps(wrong, indent=1)
    assert [url[:90] for url in away if not url.startswith(("file:", "data:"))] == []
