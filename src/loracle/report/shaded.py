"""A matrix in shades with its figures written in it: layers by kinds, cells by layers, labels by labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from loracle.report.canvas import Theme

Values = Sequence[Sequence[float | None]]


def draw_shaded(
    axes: Any,
    values: Values,
    norm: Any,
    colours: Sequence[str],
    theme: Theme,
    *,
    texts: Sequence[Sequence[str]] = (),
    size: float = 7.0,
    aspect: str = "auto",
) -> None:
    """``values`` (None: left blank) by ``norm`` in shades from paper over ``colours``, which must fall monotonically so that
    grey tones say the same; ``texts``, where given, in the cells.
    """
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("shades", [theme.paper, *colours])
    shown = [[math.nan if value is None else value for value in row] for row in values]
    axes.imshow(shown, cmap=shades, norm=norm, aspect=aspect, interpolation="nearest")
    axes.grid(False)
    for i, (row, written) in enumerate(zip(shown, texts, strict=False)):
        for j, (value, text) in enumerate(zip(row, written, strict=True)):
            ground = theme.paper if math.isnan(value) else shades(norm(value))
            if text:
                axes.text(j, i, text, ha="center", va="center", fontsize=size, color=_legible(ground, theme))


def _legible(ground: Any, theme: Theme) -> str:
    """Ink or paper, whichever stands out more (contrast as WCAG 2.2 defines it)."""
    here = _luminance(ground)

    def contrast(colour: str) -> float:
        low, high = sorted((here, _luminance(colour)))
        return (high + 0.05) / (low + 0.05)

    return max((theme.ink, theme.paper), key=contrast)


def _luminance(colour: Any) -> float:
    """Relative luminance of an sRGB colour (WCAG 2.2)."""
    from matplotlib.colors import to_rgb

    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
