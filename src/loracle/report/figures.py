"""The figures of a report: PNG bytes, the same for the same records, for light and for dark, or why there is none."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loracle.report import figures_classes as classes
from loracle.report import figures_parts as parts
from loracle.report import figures_quality as quality
from loracle.report import figures_similarity as likeness
from loracle.report import figures_tradeoff as tradeoff
from loracle.report import sensitivity
from loracle.report.canvas import DARK, DPI, LIGHT, WIDTH, Draw, NoData, Theme, styled
from loracle.report.columns import Table
from loracle.report.evidence import StudyData
from loracle.verdict.entries import Entry


@dataclass(frozen=True)
class Figure:
    """A figure for light and dark, or the reason why there is none."""

    file: str
    title: str
    alt: str
    caption: str
    light: bytes | None = None
    dark: bytes | None = None
    reason: str = ""


FIGURES: tuple[tuple[str, str, str, Draw], ...] = (
    (
        "rank_threshold_plot.png",
        "What quantization costs, by rank",
        quality.DEGRADATION_CAPTION,
        quality.draw_degradation,
    ),
    ("metric_by_rank.png", "Task metric by rank", quality.METRIC_CAPTION, quality.draw_metric),
    ("confusion_matrix.png", "What is taken for what", classes.CONFUSION_CAPTION, classes.draw_confusion),
    ("loss_curves.png", "Loss while training", quality.CURVES_CAPTION, quality.draw_curves),
    ("layer_sensitivity_heatmap.png", "Sensitivity by layer and kind", sensitivity.CAPTION, sensitivity.draw),
    ("weight_similarity_matrix.png", "Likeness by cell and layer", likeness.MATRIX_CAPTION, likeness.draw_matrix),
    ("weight_similarity_by_layer.png", "Likeness by layer", likeness.PROFILE_CAPTION, likeness.draw_profile),
    ("quality_against_memory.png", "Quality against memory", tradeoff.CAPTION, tradeoff.draw),
    ("memory_comparison.png", "Memory by component", parts.MEMORY_CAPTION, parts.draw_memory),
)


def all_figures(data: StudyData, entries: Sequence[Entry], tables: Mapping[str, Table]) -> list[Figure]:
    """Every figure of the report in its order; one that cannot be drawn says why."""
    return [_render(*figure, data, entries, tables) for figure in FIGURES]


def _render(file: str, title: str, caption: str, draw: Draw, data: StudyData, entries: Any, tables: Any) -> Figure:
    try:
        (alt, light), (_, dark) = (_png(draw, data, entries, tables, theme) for theme in (LIGHT, DARK))
    except NoData as error:
        return Figure(file, title, "", caption, reason=str(error))
    return Figure(file, title, alt, caption, light, dark)


def _png(draw: Draw, data: StudyData, entries: Any, tables: Any, theme: Theme) -> tuple[str, bytes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    with styled(theme):
        figure = Canvas(figsize=(WIDTH, 3.5), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        alt = draw(figure, data, entries, tables, theme)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return alt, buffer.getvalue()
