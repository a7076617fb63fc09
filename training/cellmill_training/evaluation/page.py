"""An evaluation as one HTML file that needs nothing else: what was measured, tables with intervals, pictures.

Consumes what `evaluation.json` holds, and pictures; every text from outside is escaped.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["write_page"]

_STYLE = """body{font:15px/1.45 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.6rem 0 1.4rem;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .6rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}td small{color:#777}img{max-width:100%;display:block}
figure{margin:1rem 0}.scroll{overflow-x:auto}"""

_OVERALL = {
    "pq": "PQ",
    "dq": "DQ (F1 of detection)",
    "sq": "SQ",
    "precision": "precision",
    "recall": "recall",
    "dq_assigned": "DQ, by assignment",
    "pq_assigned": "PQ, by assignment",
    "aji": "AJI",
    "aji_plus": "AJI+",
    "r2": "R2 of all cells",
    "type_accuracy": "types right, of found cells",
    "type_kappa": "kappa of types",
    "type_ece": "ECE of types",
}
_TYPES = {
    "pq": "PQ",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "f1_weighted": "F1, HoVer-Net's weights",
    "f1_assigned": "F1, by assignment",
    "r2": "R2",
}


def write_page(document: Mapping[str, Any], pictures: Mapping[str, npt.NDArray[np.uint8]]) -> str:
    """The page of an evaluation.

    Args:
        document: what `evaluation.json` holds.
        pictures: (H, W, 3) RGB by name.
    """
    model, data = document["model"], document["dataset"]
    title = f"{model['name']} on {data['name']}, {data['split']}"
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{escape(title)}</h1>",
        "<p>Research software, never for diagnosis. Figures in brackets are 95 % intervals of "
        f"{document['settings']['replicates']} bootstrap replicates over {document['settings']['resample']}; what each "
        "figure is, and how cells of several possible types and regions left open count, is told in docs/evaluation.md."
        "</p>",
        _facts(document),
    ]
    for source, readings in document["sets"].items():
        for reading, figures in readings.items():
            parts.append(_section(source, reading, figures))
    if pictures:
        parts.append(
            "<h2>Pictures</h2><p>Outlines in the colours of types; white where the reference leaves it open.</p>"
        )
        parts.append(_legend(model))
    parts += [_picture(name, image) for name, image in pictures.items()]
    return "\n".join(parts)


def _facts(document: Mapping[str, Any]) -> str:
    model, data = document["model"], document["dataset"]
    rows = {
        "model": f"{model['name']} ({model['source']}), digest {model['digest'][:16]}",
        "classes": f"{model['ontology']}: {', '.join(model['classes'])}",
        "data set": f"{data['name']}, split {data['split']}, {data['num_images']} images, digest {data['digest'][:16]}",
        "labels of": ", ".join(data["origins"]) or "any origin",
        "mapping": data["mapping"] or "none; the data set has the model's classes",
        "code": f"cellmill {document['cellmill_version']} {document['git_revision']}",
    }
    lines = [
        f"<tr><td>{escape(name)}</td><td style='text-align:left'>{escape(text)}</td></tr>"
        for name, text in rows.items()
    ]
    return f"<table>{''.join(lines)}</table>"


def _section(source: str, reading: str, figures: Mapping[str, Any]) -> str:
    heading = source if reading == "strict" else f"{source}, what lies in open regions left out"
    counts = (
        f"{figures['num_images']} images, {figures['num_reference']} cells in the reference, "
        f"{figures['num_predicted']} predicted, {figures['num_matched']} matched at IoU above 0.5."
    )
    parts = [f"<h2>{escape(heading)}</h2><p>{counts}</p>", _overall_table(figures)]
    if any(one["num_reference"] for one in figures["types"].values()):
        parts += [_types_table(figures), _confusion_table(figures), _reliability_table(figures)]
    return "\n".join(parts)


def _overall_table(figures: Mapping[str, Any]) -> str:
    rows = [
        [label, _figure(figures["pooled"][key]), _figure(figures["per_image"].get(key))]
        for key, label in _OVERALL.items()
    ]
    return _table(["figure", "pooled", "mean over images"], rows)


def _types_table(figures: Mapping[str, Any]) -> str:
    rows = [
        [escape(name), str(one["num_reference"]), str(one["num_predicted"]), *(_figure(one[key]) for key in _TYPES)]
        for name, one in figures["types"].items()
        if one["num_reference"]
    ]
    means = figures["means_over_types"]
    rows.append(["mean over these", "", "", *(_figure(means[key]) for key in _TYPES)])
    return "<h3>Types</h3>" + _table(["type", "reference", "predicted", *_TYPES.values()], rows)


def _confusion_table(figures: Mapping[str, Any]) -> str:
    table = figures["confusion"]
    rows = [
        [escape(name), *(str(count) for count in row)]
        for name, row in zip(table["rows"], table["counts"], strict=True)
        if any(row)
    ]
    return "<h3>Reference (rows) against prediction</h3>" + _table(["", *map(escape, table["columns"])], rows)


def _reliability_table(figures: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{one['from']:.2f} to {one['to']:.2f}",
            str(one["num_cells"]),
            f"{one['confidence']:.3f}",
            f"{one['accuracy']:.3f}",
        ]
        for one in figures["reliability"]
        if one["num_cells"]
    ]
    heading = "<h3>Reliability: of cells found, whose type the reference knows</h3>"
    return heading + _table(["confidence", "cells", "mean confidence", "share right"], rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{text}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{text}</td>" for text in row) + "</tr>" for row in rows)
    return f"<div class=scroll><table><tr>{head}</tr>{body}</table></div>"


def _figure(figure: Mapping[str, float | None] | None) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    if figure["low"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} <small>({figure['low']:.3f} to {figure['high']:.3f})</small>"


def _legend(model: Mapping[str, Any]) -> str:
    swatches = [
        f"<span style='color:rgb({red},{green},{blue})'>&#9632;</span> {escape(name)}"
        for name, (red, green, blue) in zip(model["classes"], model["colors_rgb"], strict=True)
    ]
    return f"<p>{' &nbsp; '.join(swatches)}</p>"


def _picture(name: str, image: npt.NDArray[np.uint8]) -> str:
    encoded = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    data = base64.b64encode(encoded.tobytes()).decode("ascii")
    return f"<figure><figcaption>{escape(name)}</figcaption><img alt='' src='data:image/jpeg;base64,{data}'></figure>"
