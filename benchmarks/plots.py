"""Draw the figures with matplotlib, which is in the group ``bench``: PNG, which stays small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_COLOURS: Final = 32


def _figure(columns: int, height: float) -> tuple[Any, Sequence[Any]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, columns, figsize=(5.5 * columns, height), squeeze=False, layout="constrained"
    )
    return figure, axes[0]


def _save(figure: Any, file: Path) -> None:
    """As a PNG of few colours, which takes a third of the bytes."""
    from PIL import Image  # matplotlib requires it

    figure.savefig(file, format="png")
    with Image.open(file) as image:
        few = image.convert("RGB").quantize(_COLOURS)
    few.save(file, format="png", optimize=True)


def bars(
    file: Path, panels: Sequence[tuple[str, Mapping[str, float], Mapping[str, str]]], label: str
) -> None:
    """Draw horizontal bars. A panel has a title, values by name, and a text for each value."""
    figure, axes = _figure(len(panels), 1 + 0.32 * max(len(values) for _, values, _ in panels))
    for axis, (title, values, texts) in zip(axes, panels, strict=True):
        drawn = axis.barh(list(values), list(values.values()))
        axis.bar_label(drawn, [texts[name] for name in values], padding=3)
        axis.set(xlabel=label)
        axis.set_title(title, fontsize="medium")
        axis.margins(x=0.15)
        axis.invert_yaxis()
    for axis in axes[1:]:
        axis.set_yticklabels([])
    _save(figure, file)


def curves(
    file: Path, panels: Sequence[tuple[str, str, Mapping[str, Sequence[tuple[float, float]]]]]
) -> None:
    """Draw curves. A panel has a title, a label for its y axis, and points (x, y) by name."""
    figure, axes = _figure(len(panels), 3.6)
    for axis, (title, label, lines) in zip(axes, panels, strict=True):
        for name, points in lines.items():
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set(title=title, xlabel="pending entries", ylabel=label, xscale="log", ylim=(0, None))
        axis.legend()
    _save(figure, file)
