"""Figures with controls: a picture where nobody can move them, both where somebody can."""

import base64

import ipykernel
import ipywidgets
import pytest

from cfgdistill.course import widgets
from cfgdistill.course.widgets import WIDGET, explore
from cfgdistill.judge.plotting import figure

CONTROLS = {
    "t": (0.5, 0.0, 1.0, 0.1),
    "n": (3, 1, 9, 1),
    "digit": ["three", "four"],
    "swap": False,
    "name": "red",
}
START = {"t": 0.5, "n": 3, "digit": "three", "swap": False, "name": "red"}


@pytest.fixture
def drawn():
    return []


@pytest.fixture
def draw(drawn):
    def draw(**values):
        drawn.append(values)
        return figure(width=1.0, height=1.0)[0]

    return draw


@pytest.fixture
def shown(monkeypatch):
    """What is displayed: (data, metadata) of every call."""
    outputs = []
    monkeypatch.setattr(
        "IPython.display.display",
        lambda data, raw=False, metadata=None: outputs.append((data, metadata)),
    )
    return outputs


def test_in_ci_the_figure_stands_still_and_has_its_alt_text(draw, drawn, shown, monkeypatch):
    monkeypatch.setenv("CI", "1")
    monkeypatch.setitem(widgets.sys.modules, "ipykernel", ipykernel)
    explore(draw, "A figure.", **CONTROLS)
    assert drawn == [START]
    ((_, metadata),) = shown
    assert metadata == {"image/png": {"alt": "A figure."}}


def test_without_ipywidgets_the_figure_stands_still_and_says_what_would_move_it(
    draw, shown, monkeypatch, capsys
):
    monkeypatch.setenv("CI", "0")
    monkeypatch.setitem(widgets.sys.modules, "ipykernel", ipykernel)
    monkeypatch.setitem(widgets.sys.modules, "ipywidgets", None)  # as if it were not installed
    explore(draw, "A figure.", **CONTROLS)
    assert "pip install ipywidgets" in capsys.readouterr().out
    ((_, metadata),) = shown
    assert metadata == {"image/png": {"alt": "A figure."}}


def test_a_live_notebook_gets_controls_that_draw_and_a_picture_for_readers_without(
    draw, drawn, shown, monkeypatch
):
    monkeypatch.setenv("CI", "0")
    monkeypatch.setitem(widgets.sys.modules, "ipykernel", ipykernel)  # as inside a kernel
    boxes = []
    make = ipywidgets.VBox
    monkeypatch.setattr(ipywidgets, "VBox", lambda parts: boxes.append(make(parts)) or boxes[-1])
    explore(draw, "A figure.", **CONTROLS)
    (box,) = boxes
    data, metadata = shown[-1]
    assert data[WIDGET]["model_id"] == box.model_id
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert metadata == {"image/png": {"alt": "A figure."}} and drawn == [START]
    slider, whole, choice, tick, line, _ = box.children
    assert [type(each) for each in box.children[:5]] == [
        ipywidgets.FloatSlider,
        ipywidgets.IntSlider,
        ipywidgets.Dropdown,
        ipywidgets.Checkbox,
        ipywidgets.Text,
    ]
    slider.value, whole.value, choice.value, tick.value, line.value = 0.7, 4, "four", True, "blue"
    assert len(drawn) == 6
    assert drawn[-1] == {"t": 0.7, "n": 4, "digit": "four", "swap": True, "name": "blue"}
    said = "The same figure with t 0.7, n 4, digit four, swap True, name blue."
    assert shown[-1][0]["text/html"].endswith(f'" alt="{said}">')
    assert not slider.continuous_update and not line.continuous_update
