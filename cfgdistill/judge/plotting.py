"""Figures: one style, colours that colour-blind readers can tell apart, and alt text for all."""

from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from cfgdistill.data.base import whole_levels
from cfgdistill.training.checkpoints import write_bytes

# Okabe & Ito's palette, in an order that also differs in lightness.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=COLORS),
    "figure.constrained_layout.use": True,
}


def figure(rows: int = 1, columns: int = 1, *, width: float = 7.0, height: float = 3.5, **more):
    """plt.subplots in the project's style: figure, axes. Sizes in inches."""
    with plt.rc_context(STYLE):
        return plt.subplots(rows, columns, figsize=(width, height), **more)


def show(fig: Figure, alt: str, path: str | Path | None = None) -> None:
    """Display a figure as a png with alt text for those who cannot see it; also save it to path."""
    from IPython.display import display

    if not alt.strip():
        raise ValueError("A figure needs alt text: one or two sentences that say what it shows.")
    if path is not None:
        kind = Path(path).suffix[1:] or "png"
        with plt.rc_context(STYLE):
            _write(
                Path(path),
                lambda file: fig.savefig(file, format=kind, metadata={"Description": alt}),
            )
    plt.close(fig)  # otherwise the notebook's backend shows it a second time, without alt text
    display(fig, metadata={"image/png": {"alt": alt}})


def png(fig: Figure) -> bytes:
    """A figure as a notebook displays it; closed, or the notebook would do so once more."""
    file = BytesIO()
    fig.savefig(file, format="png", bbox_inches="tight")
    plt.close(fig)
    return file.getvalue()


def mosaic(x: Tensor, columns: int) -> Tensor:
    """Images [n, c, h, w] in [-1, 1] as one picture [H, W, c] in [0, 1], row by row, on white."""
    n, c, h, w = x.shape
    rows = -(-n // columns)
    picture = x.new_ones(c, rows * (h + 1) - 1, columns * (w + 1) - 1)
    for i, image in enumerate(x):
        top, left = i // columns * (h + 1), i % columns * (w + 1)
        picture[:, top : top + h, left : left + w] = (image.clamp(-1, 1) + 1) / 2
    return picture.permute(1, 2, 0).cpu()


def draw_images(axis, x: Tensor, columns: int, title: str = "") -> None:
    """Draw a mosaic of images [n, c, h, w] in [-1, 1] on an axis."""
    picture = mosaic(x, columns).numpy()
    grey = picture.shape[-1] == 1
    axis.imshow(picture[..., 0] if grey else picture, cmap="gray" if grey else None, vmin=0, vmax=1)
    axis.set_axis_off()
    axis.set_title(title, fontsize=9, loc="left")


def save_images(x: Tensor, columns: int, path: str | Path) -> None:
    """Write a mosaic of images [n, c, h, w] in [-1, 1] as png, each pixel four times as large."""
    picture = whole_levels(2 * mosaic(x, columns) - 1)
    picture = picture.repeat_interleave(4, 0).repeat_interleave(4, 1)
    if picture.shape[-1] == 1:
        picture = picture.expand(*picture.shape[:2], 3)
    _write(Path(path), lambda file: plt.imsave(file, picture.numpy(), format="png"))


def _write(path: Path, draw: Callable[[BytesIO], object]) -> None:
    """A picture, replaced as a whole or not at all."""
    picture = BytesIO()
    draw(picture)
    write_bytes(path, picture.getvalue())


def sample_grid(
    pictures: dict[str, dict[str, Tensor]], columns: int, *, width: float = 3.0
) -> Figure:
    """{column title: {row title: images}} as one figure: rows are models, columns are w.

    Each cell holds `columns` images a line, on `width` inches.
    """
    titles = list(next(iter(pictures.values())))
    sample = next(iter(next(iter(pictures.values())).values()))
    lines = -(-len(sample) // columns)
    fig, axes = figure(
        len(titles),
        len(pictures),
        width=width * len(pictures) + 1,
        height=(width / columns * lines + 0.28) * len(titles),
        squeeze=False,
    )
    for k, (head, column) in enumerate(pictures.items()):
        for i, title in enumerate(titles):
            draw_images(axes[i][k], column[title], columns, f"{title}   {head}".strip())
    return fig


def image_rows(lines: dict[str, Tensor], columns: int = 10) -> Figure:
    """{title: images}, one below the other; ten images a line are 90 pixels wide, or more."""
    return sample_grid({"": lines}, columns, width=9.6)


def image_panels(panels: dict[str, Tensor], columns: int = 1, *, width: float = 1.9) -> Figure:
    """{title: images}, side by side."""
    return sample_grid({title: {"": x} for title, x in panels.items()}, columns, width=width)


def log_y(axis) -> None:
    """A logarithmic y axis with plain numbers on it."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def curves(
    panels: dict[str, dict[str, dict]], x: str, *, columns: int | None = None, log: bool = False
) -> Figure:
    """{title: {label: {x: y}}}: a panel for each title, `columns` in a row, and a line per label.

    y is a number, or a list of them: their mean, with a bar as long as their standard deviation,
    both ways. log: x doubles from mark to mark.
    """
    columns = columns or len(panels)
    rows = -(-len(panels) // columns)
    width = max(4.6, 3.2 * columns)
    fig, axes = figure(rows, columns, width=width, height=2.9 * rows, squeeze=False)
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=True):
        for (label, line), color, marker in zip(lines.items(), COLORS, "os^DvP*", strict=False):
            places = sorted(line)
            values = [y if isinstance(y, list) else [y] for y in map(line.get, places)]
            spread = [stdev(several) if len(several) > 1 else 0 for several in values]
            look = dict(label=label, color=color, marker=marker, markersize=5)
            axis.errorbar(places, [mean(several) for several in values], spread, **look)
        axis.set(xlabel=x, title=title)
        if log:
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
    if len(lines) > 1:
        axes[0][0].legend(frameon=False, fontsize=8)
    return fig


MODELS = {"teacher": "guided teacher", "stage_one": "stage one", "student": "students"}


def quality_against_nfe(
    rows: Sequence[dict], values: Sequence[str] = ("frechet_distance",)
) -> Figure:
    """Rows of a results table: panels for each value and w, a line per model and sampler."""
    weights = sorted({row["w"] for row in rows})
    panels: dict[str, dict] = {}
    for value, w in product(values, weights):
        lines = panels[f"{value.replace('_', ' ').capitalize()}, w = {w:g}"] = {}
        for row in (row for row in rows if row["w"] == w):
            label = MODELS.get(row["model"], row["model"])
            label += "" if row["sampler"] == "ddim" else f", {row['sampler']}"
            lines.setdefault(label, {}).setdefault(row["nfe"], []).append(row[value])
    fig = curves(panels, "network evaluations (NFE)", columns=len(weights), log=True)
    for axis in fig.axes:
        if "distance" in axis.get_title():
            log_y(axis)
    return fig


def asked_against_delivered(given: dict[str, dict[float, float]]) -> Figure:
    """{model: {w asked for: w delivered}}: a line per model, and the diagonal."""
    fig, axis = figure(width=4.6, height=3.6)
    most = max(w for line in given.values() for w in line)
    axis.plot([0, most], [0, most], color="0.6", linestyle=":", label="what was asked for")
    for (label, line), color, marker in zip(given.items(), COLORS, "osd^vP*", strict=False):
        axis.plot(*zip(*sorted(line.items()), strict=True), marker=marker, color=color, label=label)
    axis.set(xlabel="w asked for", ylabel="w delivered")
    axis.legend(frameon=False)
    return fig
