"""Pictures of the report as HTML: shaded confusion matrices, histograms, strips of crops. No file beside the page."""

import base64
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np
import numpy.typing as npt

from cellmill_training.datasets.store import LabelledDataset
from cellmill_training.relabel.crops import CropConfig, cell_boxes, cell_crops
from cellmill_training.relabel.relabelling import NewLabel

__all__ = ["confusion_table", "histogram", "sample_strip"]

_BINS = 20
_WIDTH, _HEIGHT = 420, 90


def confusion_table(names: Sequence[str], matrix: npt.NDArray[np.number], *, shares: bool) -> str:
    """A confusion matrix (true class, predicted class), each row shaded by its shares."""
    totals = np.maximum(matrix.sum(axis=1, keepdims=True), 1e-12)
    header = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows: list[str] = []
    for name, row, shade in zip(names, matrix.tolist(), (matrix / totals).tolist(), strict=True):
        cells = "".join(_cell(value, share, shares=shares) for value, share in zip(row, shade, strict=True))
        rows.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    return f"<table><tr><th>true \\ found</th>{header}</tr>{''.join(rows)}</table>"


def _cell(value: float, share: float, *, shares: bool) -> str:
    text = f"{value:.3f}" if shares else f"{value:,.0f}"
    color = "#fff" if share > 0.6 else "#222"
    return f'<td style="background:rgba(0,114,178,{share:.3f});color:{color}">{text}</td>'


def histogram(probabilities: Sequence[float], *, low: float) -> str:
    """Bars of probabilities from `low` to 1 as an inline SVG."""
    counts, _ = np.histogram(np.asarray(probabilities), bins=_BINS, range=(low, 1.0))
    tallest, step = max(1, int(counts.max(initial=0))), _WIDTH / _BINS
    bars = "".join(
        f'<rect x="{place * step + 1:.1f}" y="{_HEIGHT * (1 - count / tallest):.1f}" width="{step - 2:.1f}" '
        f'height="{_HEIGHT * count / tallest:.1f}" fill="#0072b2"><title>{count}</title></rect>'
        for place, count in enumerate(counts.tolist())
    )
    axis = (
        f'<text x="0" y="{_HEIGHT + 14}" font-size="11">{low:.2f}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 14}" font-size="11" text-anchor="end">probability 1.00</text>'
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 14}" font-size="11" text-anchor="middle">tallest bar {tallest:,}</text>'
    )
    return f'<svg width="{_WIDTH}" height="{_HEIGHT + 18}" role="img">{bars}{axis}</svg>'


def sample_strip(labels: Sequence[NewLabel], dataset: LabelledDataset, config: CropConfig) -> str:
    """The cells as the classifier saw them, with its probability."""
    shown = "".join(
        f'<figure><img alt="{escape(label.cell_type)}" src="data:image/png;base64,{_png(label, dataset, config)}">'
        f"{label.probability:.3f}</figure>"
        for label in labels
    )
    return f'<div class="strip">{shown}</div>'


def _png(label: NewLabel, dataset: LabelledDataset, config: CropConfig) -> str:
    image = dataset.read(label.image_id)
    box = cell_boxes(image.instances)[[label.instance - 1]]
    crop = cell_crops(image.image, box, mpp=image.mpp, config=config)[0]
    _, png = cv2.imencode(".png", np.ascontiguousarray(crop[..., ::-1]))
    return base64.b64encode(png.tobytes()).decode("ascii")
