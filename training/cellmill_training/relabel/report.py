"""The report of a cross-relabelling: one HTML page that needs nothing else, and its figures as JSON.

Consumes a `RelabelResult` and the refined data set's images; writes `report.html` and `report.json`. The tables have
the form of Shvetsov et al. 2025: accuracies as table 1, counts as table S4.
"""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from cellmill_schemas.ontology import Ontology
from cellmill_training.relabel.cells import label_counts
from cellmill_training.relabel.report_pictures import confusion_table, histogram, sample_strip
from cellmill_training.relabel.run import Learned, RelabelResult
from cellmill_training.relabel.scores import Accuracies, Estimate

__all__ = ["counts_table", "figures", "report_html", "write_report"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1000px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 0.6em 0 } th, td { padding: 0.25em 0.7em; text-align: right }
th { font-weight: 600; border-bottom: 1px solid #999 } td:first-child, th:first-child { text-align: left }
.strip { display: flex; flex-wrap: wrap; gap: 6px } figure { margin: 0; font-size: 12px; text-align: center }
figure img { display: block; width: 64px; height: 64px } h3 { margin-bottom: 0.2em } .note { color: #555 }
"""

_CAUTION = """The accuracies are those of each classifier on test cells of its own data set. On the data set that it
relabels there is no truth to measure against; another scanner, stain or organ can only lower them. A class that the
classifier does not know (plasma cells and eosinophils among PanNuke's inflammatory cells) is given one of those it
does. Outlines and certain labels are the sources'."""

_INTERVALS = """In brackets: 95 % bootstrap intervals (1,000 replicates), first with cells drawn, as if they were
independent, as the paper does; then with groups (patients, slides or images, as imported) drawn, which is what another
choice of patients would change. Natural: test cells as they are. Balanced: the mean of the classes' accuracies."""


def write_report(result: RelabelResult, ontology: Ontology, out: Path) -> Path:
    """Write `report.html` and `report.json` into `out`, each whole or not at all; returns the page's path."""
    page = out / "report.html"
    for path, text in (
        (out / "report.json", json.dumps(figures(result, ontology), indent=1) + "\n"),
        (page, report_html(result, ontology)),
    ):
        partial = path.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    return page


def figures(result: RelabelResult, ontology: Ontology) -> dict[str, Any]:
    """All figures as plain values."""
    return {
        "refined": {"name": result.refined.name, "digest": result.refined.digest, "images": len(result.refined)},
        "refinements": [str(refinement) for refinement in result.refinements],
        "classifiers": [_learned_figures(one) for one in result.learned],
        "counts": counts_table(result, ontology),
        "new_labels": _new_counts(result),
    }


def _learned_figures(one: Learned) -> dict[str, Any]:
    return {
        "name": one.classifier.name,
        "digest": one.classifier.digest,
        "fine": one.fine,
        "classes": list(one.index.class_names),
        "cells": one.index.counts(),
        "cells_by_split": {split: one.index.counts(rows) for split, rows in one.rows.items()},
        "test": _accuracy_figures(one.test),
        "area_and_stain_alone": _accuracy_figures(one.plain),
        "history": [dict(entry) for entry in one.history],
    }


def _accuracy_figures(found: Accuracies) -> dict[str, Any]:
    def plain(estimate: Estimate) -> dict[str, Any]:
        by_group = list(estimate.by_group) if estimate.by_group else None
        return {"value": estimate.value, "by_cell": list(estimate.by_cell), "by_group": by_group}

    return {
        "natural": plain(found.natural),
        "balanced": plain(found.balanced),
        "by_class": {name: plain(one) for name, one in zip(found.class_names, found.by_class, strict=True)},
        "confusion": found.confusion.tolist(),
        "groups": found.num_groups,
    }


def counts_table(result: RelabelResult, ontology: Ontology) -> dict[str, dict[str, int]]:
    """Cells by label and data set, the refined one last: table S4. An open label reads `a or b`."""
    columns = {**result.before, result.refined.name: label_counts(result.refined, ontology)}
    labels = {types for counts in columns.values() for types in counts}
    ordered = sorted(labels, key=lambda types: (len(types) != 1, [ontology.index(name) for name in types]))
    return {
        " or ".join(types) or "unknown": {name: counts.get(types, 0) for name, counts in columns.items()}
        for types in ordered
    }


def _new_counts(result: RelabelResult) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for label in result.new_labels:
        row = found.setdefault(label.classifier, {})
        name = label.cell_type if label.settled else "left open"
        row[name] = row.get(name, 0) + 1
    return found


def report_html(result: RelabelResult, ontology: Ontology) -> str:
    """The page."""
    refined = result.refined
    parts = [
        f"<h1>Cross-relabelling: {escape(refined.name)}</h1>",
        f"<p>{len(refined)} images, digest {escape(refined.digest[:16])}. "
        f"{escape('; '.join(str(refinement) for refinement in result.refinements))}.</p>",
        f'<p class="note">{_CAUTION}</p>',
        "<h2>Accuracy on test cells</h2>",
        f'<p class="note">{_INTERVALS}</p>',
        _accuracy_table(result.learned),
        *(_classifier_section(one) for one in result.learned),
        "<h2>Cells before and after</h2>",
        _counts_html(result, ontology),
        "<h2>New labels</h2>",
        *(_new_section(one, result) for one in result.learned),
    ]
    head = f'<meta charset="utf-8"><title>Cross-relabelling: {escape(refined.name)}</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _accuracy_table(learned: Sequence[Learned]) -> str:
    header = "".join(f"<th>{escape(one.fine)} classifier</th>" for one in learned)
    rows = [
        ("Average, natural", [_estimate(one.test.natural) for one in learned]),
        ("Average, balanced", [_estimate(one.test.balanced) for one in learned]),
    ]
    for name in dict.fromkeys(name for one in learned for name in one.index.class_names):
        cells = [dict(zip(one.test.class_names, one.test.by_class, strict=True)).get(name) for one in learned]
        rows.append((name.capitalize(), [_estimate(cell) if cell else "-" for cell in cells]))
    rows.append(("Area and stain alone, natural", [_estimate(one.plain.natural) for one in learned]))
    rows.append(("Area and stain alone, balanced", [_estimate(one.plain.balanced) for one in learned]))
    body = "".join(f"<tr><td>{escape(name)}</td>{''.join(f'<td>{c}</td>' for c in cells)}</tr>" for name, cells in rows)
    return f"<table><tr><th>Accuracy</th>{header}</tr>{body}</table>"


def _estimate(found: Estimate) -> str:
    low, high = found.by_cell
    by_group = f"{found.by_group[0]:.3f}-{found.by_group[1]:.3f}" if found.by_group else "one group only"
    return f"{found.value:.3f} ({low:.3f}-{high:.3f}; {by_group})"


def _classifier_section(one: Learned) -> str:
    cells = ", ".join(
        f"{split} {' + '.join(f'{count} {name}' for name, count in one.index.counts(rows).items())}"
        for split, rows in one.rows.items()
    )
    names = one.test.class_names
    return (
        f"<h3>{escape(one.classifier.name)}</h3>"
        f"<p>Cells: {escape(cells)}; the test cells are of {one.test.num_groups} groups. {len(one.history)} epochs.</p>"
        '<div style="display:flex;gap:3em">'
        f"<div>Natural (cells){confusion_table(names, one.test.confusion, shares=False)}</div>"
        f"<div>Balanced (shares){confusion_table(names, one.test.balanced_confusion, shares=True)}</div>"
        "</div>"
    )


def _counts_html(result: RelabelResult, ontology: Ontology) -> str:
    table = counts_table(result, ontology)
    used = {
        (one.fine, name): count for one in result.learned for name, count in one.index.counts(_all_rows(one)).items()
    }
    columns = [*result.before, result.refined.name]
    header = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr><td>{escape(label.capitalize())}</td>"
        + "".join(f"<td>{_count(counts[name], used.get((name, label)))}</td>" for name in columns)
        + "</tr>"
        for label, counts in table.items()
    )
    note = "In brackets: cells a classifier was trained, validated and tested on."
    return f'<p class="note">{note}</p><table><tr><th>Cell type</th>{header}</tr>{body}</table>'


def _all_rows(one: Learned) -> Any:
    import numpy as np

    return np.concatenate(list(one.rows.values()))


def _count(count: int, used: int | None) -> str:
    return "-" if not count else f"{count:,}" + (f" ({used:,})" if used else "")


def _new_section(one: Learned, result: RelabelResult) -> str:
    own = [label for label in result.new_labels if label.classifier == one.classifier.name]
    parts = [f"<h3>{escape(one.classifier.name)}: {len(own)} cells</h3>"]
    for name in one.index.class_names:
        labels = sorted((x for x in own if x.cell_type == name), key=lambda x: (-x.probability, x.image_id, x.instance))
        parts.append(f"<h4>{escape(name)}: {len(labels)}</h4>")
        parts.append(histogram([label.probability for label in labels], low=1.0 / len(one.index.class_names)))
        if labels:
            crop = one.classifier.config.crop
            parts.append(f"<p>Most sure</p>{sample_strip(labels[:8], result.refined, crop)}")
            parts.append(f"<p>Least sure</p>{sample_strip(labels[-8:], result.refined, crop)}")
    return "".join(parts)
