"""Figures with controls: where nobody can move them, the figure alone."""

import sys
from base64 import b64encode
from collections.abc import Callable
from html import escape
from importlib.util import find_spec

from cfgdistill.judge.plotting import Figure, png, show
from cfgdistill.training.environment import flag

WIDGET = "application/vnd.jupyter.widget-view+json"


def explore(draw: Callable[..., Figure], alt: str, **controls) -> None:
    """Display a figure with a control for every argument of `draw`.

    draw(**values) gives the figure; alt says what it shows at the start. A control is
    (start, least, most, step) for a slider, of whole numbers where all four are; a list for a
    choice, its first element at the start; True or False for a box to tick; a text for a line
    to type in. A slider draws when it is let go, a line of text when it is left: a drawing may
    take a second. All can be reached and moved with the keyboard.

    Outside of a live notebook, under CI=1, and without ipywidgets, the figure stands still. The
    output always holds its png, too, for readers that know no widgets. What is used of ipywidgets
    is the same in 7.7 and 8.
    """
    start = {name: _start(control) for name, control in controls.items()}
    first = draw(**start)
    live = "ipykernel" in sys.modules and not flag("CI")
    if live and find_spec("ipywidgets") is None:
        live = False
        print("This figure has controls: `pip install ipywidgets` and a new kernel show them.")
    if not live:
        show(first, alt)
        return
    import ipywidgets
    from IPython.display import display

    made = {name: _widget(ipywidgets, name, control) for name, control in controls.items()}
    still = _base64(first)

    def redraw(**values) -> None:
        image, said = still, alt
        if values != start:
            now = (f"{name.replace('_', ' ')} {_plain(each)}" for name, each in values.items())
            image, said = _base64(draw(**values)), f"The same figure with {', '.join(now)}."
        # As HTML: JupyterLab gives a png no alt text.
        html = f'<img src="data:image/png;base64,{image}" alt="{escape(said)}">'
        display({"text/html": html, "text/plain": said}, raw=True)

    picture = ipywidgets.interactive_output(redraw, made)
    box = ipywidgets.VBox([*made.values(), picture])
    view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    data = {WIDGET: view, "text/plain": alt, "image/png": still}
    display(data, raw=True, metadata={"image/png": {"alt": alt}})


def _base64(fig: Figure) -> str:
    return b64encode(png(fig)).decode()


def _plain(value) -> str:
    """A value as its slider shows it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _start(control):
    return control[0] if isinstance(control, tuple | list) else control


def _widget(ipywidgets, name: str, control):
    look = {
        "description": name.replace("_", " "),
        "style": {"description_width": "7em"},
        "layout": {"width": "26em"},
    }
    if isinstance(control, bool):
        return ipywidgets.Checkbox(value=control, **look)
    if isinstance(control, str):
        return ipywidgets.Text(value=control, continuous_update=False, **look)
    if isinstance(control, list):
        return ipywidgets.Dropdown(options=control, value=control[0], **look)
    value, least, most, step = control
    whole = all(isinstance(each, int) for each in control)
    slider = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
    return slider(value, min=least, max=most, step=step, continuous_update=False, **look)
