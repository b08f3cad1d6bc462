"""The book: built without warnings, read offline, its live students driven as by a reader."""

import functools
import json
import re
import threading
from html import escape
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import book
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import cfgdistill
from cfgdistill.core.samplers import ddim, last
from cfgdistill.teachers.files import load

pytest.importorskip("onnxruntime")
pytest.importorskip("sphinx_book_theme")

PICTURES = Path(__file__).parents[1] / "out" / "book-pictures"  # kept, to be looked at
EMOJI = Path(__file__).parents[1] / "data" / "emoji"
WAIT = 600_000  # milliseconds, which only ends what hangs


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *said):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the book."""
    try:
        return book.build(tmp_path_factory.mktemp("book") / "site").parent
    except OSError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def base(site):
    """Its address, served."""
    handler = functools.partial(Silent, directory=site)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def open_page(base, browser):
    """Opens a page of the site; afterwards nothing was asked of others, and nothing had failed."""
    away, failed, contexts = [], [], []

    def opened(path="live.html", width=1280):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}))
        contexts[-1].set_default_timeout(WAIT)
        page = contexts[-1].new_page()
        page.on("request", lambda asked: away.append(asked.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.on("console", lambda said: said.type == "error" and failed.append(said.text))
        page.goto(f"{base}/{path}")
        return page

    yield opened
    for context in contexts:
        context.close()
    own = (f"{base}/", "data:", f"blob:{base}/")
    assert [url for url in away if not url.startswith(own)] == [] and failed == []


# ---- the pages ----------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page names: its anchors, its links, what it loads, its pictures without alt text."""

    def __init__(self, file):
        super().__init__()
        self.ids, self.links, self.loads, self.silent = set(), set(), set(), []
        self.text = file.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        at = dict(attrs)
        self.ids |= {at[key] for key in ("id", "name") if at.get(key)}
        if tag == "a" and at.get("href"):
            self.links.add(at["href"])
        if tag in ("script", "img", "iframe") and at.get("src"):
            self.loads.add(at["src"])
        if tag == "link" and at.get("rel") in ("stylesheet", "preload", "icon", "shortcut icon"):
            self.loads.add(at["href"])
        if tag == "img" and not at.get("alt"):
            self.silent.append(at.get("src"))


@pytest.fixture(scope="module")
def pages(site):
    return {file.name: Page(file) for file in sorted(site.glob("*.html"))}


def outside(url):
    return re.match(r"[a-z]+:|//", url)


def test_every_link_inside_the_book_leads_somewhere_and_nothing_is_loaded_from_elsewhere(
    site, pages
):
    assert sum(name[:2].isdigit() for name in pages) >= 12
    lost = []
    for name, page in pages.items():
        for url in page.links | page.loads:
            path, anchor = urldefrag(url.split("?")[0])
            if outside(url) or name in ("search.html", "genindex.html"):
                continue
            target = unquote(path) or name
            found = (site / target).exists()
            if not found or anchor and target in pages and unquote(anchor) not in pages[target].ids:
                lost.append((name, url))
        assert [url for url in page.loads if outside(url) and not url.startswith("data:")] == []
        assert page.silent == [], name
    assert lost == []


def test_figures_keep_their_alt_texts_and_formulas_their_script(site, pages):
    for file in sorted((book.ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        told = [
            output["metadata"]["image/png"]["alt"]
            for cell in cells
            for output in cell.get("outputs", [])
            if "image/png" in output.get("data", {})
        ]
        page = pages[f"{file.stem}.html"]
        assert [alt for alt in told if f'alt="{escape(alt)}"' not in page.text] == []
        assert page.text.count('<img src="outputs/') == len(told), file.stem
        if 'class="math' in page.text:
            assert any(url.startswith("_static/tex-svg.js") for url in page.loads), file.stem


def test_the_reference_has_every_public_name_and_every_paper(pages):
    known = {anchor.removeprefix("module-") for anchor in pages["api.html"].ids}
    for home, names in cfgdistill.HOMES.items():
        for name in names:
            assert f"cfgdistill.{home}.{name}" in known
    papers = book.cited(book.BOOK / "papers.bib")
    for name, page in pages.items():
        if name[:2].isdigit():  # each at its first mention in each notebook
            linked = {url for url in page.links if "arxiv.org/abs" in url}
            assert linked - papers.keys() == set(), f"{name}: write them into papers.bib"
            ours = {url for url in page.links if url.startswith("bibliography.html#")}
            assert len(ours - {"bibliography.html#"}) == len(linked), name


def test_pages_of_the_book_fit_a_telephone_and_a_desk(open_page):
    page = open_page("index.html")
    for name in ("index", "02_guided_teacher", "glossary", "api", "bibliography"):
        page.goto(page.url.rsplit("/", 1)[0] + f"/{name}.html")
        for width in (360, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            keep(page, f"{name}-{width}", full_page=False)
        if name == "glossary":
            page.wait_for_selector("mjx-container svg")  # formulas are drawn, offline


def test_only_the_known_package_is_taken_from_npm(tmp_path, monkeypatch):
    monkeypatch.setenv("CFGDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_registry", tmp_path.as_uri())
    with pytest.raises(OSError, match="axe-core 4.* could not be had from npm .*: connect once"):
        book.fetch("axe-core", tmp_path / "to")
    package = tmp_path / "axe-core" / "-" / f"axe-core-{book.PACKAGES['axe-core'][0]}.tgz"
    package.parent.mkdir(parents=True)
    package.write_bytes(b"something else")
    with pytest.raises(OSError, match="is not that package"):
        book.fetch("axe-core", tmp_path / "to")
    assert not (tmp_path / "cache").exists() and not (tmp_path / "to").exists()


# ---- live students ------------------------------------------------------------------------------


def drawn(page, *what):
    """Waits until that is drawn: data set, steps, w, and the class or the prompt."""
    page.wait_for_function(
        "what => window.liveStudents?.now.drawn?.startsWith(what)", arg=" ".join(what)
    )


def picture(page) -> np.ndarray:
    """What is seen in the student's picture, [H, W, 3] from 0 to 255."""
    shown = page.evaluate("""() => {
        const canvas = document.getElementById("live-picture");
        const [w, h] = [canvas.width, canvas.height];
        return [h, w, Array.from(canvas.getContext("2d").getImageData(0, 0, w, h).data)];
    }""")
    return np.array(shown[2]).reshape(shown[0], shown[1], 4)[..., :3]


def slide(page, name, presses, key="ArrowRight"):
    page.focus(f"#live-{name}")
    for _ in range(presses):
        page.keyboard.press(key)


def choose(page, name):
    page.get_by_role("radio", name=name, exact=True).check(force=True)  # its label is what is seen


def test_moving_a_slider_by_keys_changes_the_picture_and_what_the_page_says(open_page):
    page = open_page()
    drawn(page, "digits 1 1 0")
    before = picture(page)
    assert page.text_content("#live-student-cost").startswith("1 evaluation, ")
    slide(page, "w", 30)
    drawn(page, "digits 1 4 0")
    guided = picture(page)
    assert np.abs(guided - before).mean() > 1
    slide(page, "steps", 2)
    drawn(page, "digits 4 4 0")
    assert np.abs(picture(page) - guided).mean() > 0.1
    assert page.text_content("#live-student-cost").startswith("4 evaluations, ")
    assert page.text_content("#live-teacher-cost").startswith("512 evaluations, about ")
    said = page.get_attribute("#live-picture", "aria-label")
    assert said.startswith("Digits: 0, w = 4, 4 evaluations, ")
    assert page.text_content("#live-status").startswith("Drawn: 0, w = 4, 4 evaluations, ")
    widths = [
        page.locator(f".live-{who}").bounding_box()["width"] for who in ("student", "teacher")
    ]
    assert widths[0] == pytest.approx(widths[1] * 4 / 512, abs=0.5)
    choose(page, "7")
    drawn(page, "digits 4 4 7")


def test_noise_is_drawn_anew_where_the_reader_drags_and_only_there(open_page):
    page = open_page()
    drawn(page, "digits 1 1 0")
    noise = "Array.from(window.liveStudents.now.z)"
    first, seen = np.array(page.evaluate(noise)), page.evaluate("liveStudents.now.picture.x.join()")
    assert abs(first.mean()) < 0.5 and 0.7 < first.std() < 1.3
    box = page.locator("#live-noise").bounding_box()
    cell = box["width"] / 8
    page.mouse.move(box["x"] + 1.5 * cell, box["y"] + 1.5 * cell)
    page.mouse.down()
    page.mouse.move(box["x"] + 1.6 * cell, box["y"] + 1.6 * cell)
    page.mouse.up()
    changed = (np.array(page.evaluate(noise)) != first).reshape(8, 8)
    assert changed[1, 1] and not changed[4:].any() and not changed[:, 4:].any()
    page.wait_for_function("seen => liveStudents.now.picture.x.join() !== seen", arg=seen)
    page.focus("#live-noise")  # the same by keys, in the middle
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    assert (np.array(page.evaluate(noise)) != first).reshape(8, 8)[2, 1]
    page.fill("#live-seed", "5")
    page.keyboard.press("Enter")
    page.fill("#live-seed", "0")
    page.keyboard.press("Enter")
    assert np.array_equal(page.evaluate(noise), first)  # a seed is a field of noise
    page.click("#live-anew")
    assert page.input_value("#live-seed") == "1"
    assert not np.array_equal(page.evaluate(noise), first)


@pytest.mark.parametrize("name, steps", [("cifar10", 1), ("cifar10", 4), ("emoji", 4)])
def test_the_browser_draws_what_pytorch_draws(name, steps, open_page):
    page = open_page()
    drawn(page, "digits")
    model = load(f"{name}/stage-two/steps-{steps}", device="cpu")
    choose(page, {"cifar10": "CIFAR-10", "emoji": "Emoji"}[name])
    if steps == 4:
        slide(page, "steps", 1)
    if name == "emoji":
        given = "Green Apple"
        page.fill("#live-prompt", given)
        drawn(page, f"{name} {steps} 1 0 {given}")
        words = [word.replace("</w>", "") for word in model.meaning.text.tokenizer.tokenize(given)]
        assert page.text_content("#live-pieces") == f"It reads: {' · '.join(words)}"
    else:
        given = "frog"
        choose(page, given)
        drawn(page, f"{name} {steps} 1 6")
    z, x, shape = page.evaluate("""() => {
        const { z, picture } = liveStudents.now;
        return [Array.from(z), Array.from(picture.x), picture.shape];
    }""")
    cond = model.meaning.conditions([given])
    z = torch.tensor(z).reshape(1, *model.shape)
    ours = model.meaning.decode(last(ddim(model, z, steps, cond, 1.0)))
    theirs = torch.tensor(x).reshape(1, *shape).clamp(-1, 1)
    torch.testing.assert_close(theirs, ours, atol=1e-3, rtol=0)
    shown = torch.tensor(picture(page)).permute(2, 0, 1)
    assert (shown - (127.5 * ours[0] + 127.5)).abs().max() < 1
    keep(page, f"live-{name}-{steps}")


def test_the_tokenizer_in_the_page_is_ours_on_every_caption_and_on_odd_text(open_page):
    page = open_page()
    drawn(page, "digits")
    text = load("emoji/stage-two/steps-4", device="cpu").meaning.text
    captions = []
    for file in sorted(EMOJI.glob("*.parquet")):
        table = pq.read_table(file, columns=["text", "also"])
        captions += table["text"].to_pylist() + sum(table["also"].to_pylist(), [])
    odd = ["", "  A  man's\tT-shirt!?", "don't they've", "Ünïcode e\u0301 日本 ßtraße 🎈", "1234"]
    odd += ["<|endoftext|> red <|startoftext|>", "word " * 40, "a\u00a0b\u0085c"]
    captions = sorted({*captions, *odd})
    assert len(captions) > 1000
    found = page.evaluate(
        """async captions => {
            const { said } = await liveStudents.student("emoji", 1);
            return captions.map(clipTokenizer(said.tokenizer));
        }""",
        captions,
    )
    with pytest.warns(UserWarning, match="is cut after"):
        known = text.tokens(captions).tolist()
    assert [c for c, a, b in zip(captions, found, known, strict=True) if a != b] == []


INSIDE = """([name, width]) => {
    const box = document.getElementById(name).getBoundingClientRect();
    return box.left >= 0 && box.right <= width;
}"""


def test_the_page_is_whole_and_accessible_on_a_telephone_and_on_a_desk(open_page, tmp_path):
    page = open_page()
    (axe,) = book.fetch("axe-core", tmp_path)
    page.add_script_tag(path=axe)
    for kind in ("Digits", "Emoji"):
        choose(page, kind)
        drawn(page, kind.lower())
        for width in (360, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            for name in ("w", "steps", "noise", "picture", "anew"):  # the theme slides into place
                page.wait_for_function(INSIDE, arg=[f"live-{name}", width])
            told = page.evaluate("async () => (await axe.run('#live')).violations")
            assert told == [], json.dumps(told, indent=1)[:3000]
            keep(page, f"live-{kind}-{width}")


def keep(page, name, full_page=True):
    """A picture of the page, for people to look at."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png", full_page=full_page)
