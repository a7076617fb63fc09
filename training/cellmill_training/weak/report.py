"""What a chain found, as the paper's tables 2 to 6: Markdown to read, JSON to compute with, figures for MLflow."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cellmill_training.weak.chain import ChainResult, ClassifierScores
from cellmill_training.weak.scoring import Scores

__all__ = ["chain_figures", "chain_tables", "write_report"]


def write_report(result: ChainResult, out: Path) -> tuple[Path, Path]:
    """Write `report.md` and `report.json`, each whole or not at all."""
    document = asdict(result)
    for row, source in zip(document["tuning"], result.tuning, strict=True):
        row["classifier"] = source.classifier.relative_to(out).as_posix()
    contents = {"report.md": chain_tables(result), "report.json": json.dumps(document, indent=1) + "\n"}
    for name, text in contents.items():
        partial = out / f"{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(out / name)
    return out / "report.md", out / "report.json"


def chain_figures(result: ChainResult) -> dict[str, float]:
    """Every figure by a name with slashes."""
    figures: dict[str, float] = {}

    def collect(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                collect(f"{prefix}/{name}", inner)
        elif isinstance(value, (int, float)):
            figures[prefix] = float(value)

    for part in ("segmenters", "weak_labels", "teacher", "student"):
        collect(part, asdict(result)[part])
    for row in result.tuning:
        collect(f"tuning/{row.count}/before", asdict(row.before))
        collect(f"tuning/{row.count}/after", asdict(row.after))
    return figures


def chain_tables(result: ChainResult) -> str:
    """The tables as Markdown; figures in percent, as the paper has them."""
    parts = [
        "# Weak-label chain\n",
        "## Segmenters on the test split (table 2)\n",
        "| network | accuracy | precision | recall | Dice |",
        "|---|---|---|---|---|",
        *(
            f"| {name}{' (taken)' if name == result.segmenter else ''} | {_percent(s.accuracy)} | "
            f"{_percent(s.precision)} | {_percent(s.recall)} | {_percent(s.dice)} |"
            for name, s in result.segmenters.items()
        ),
        "\n## Weak labels against the expert (table 3)\n",
        *_weak_labels(result.weak_labels),
        "\n## Teacher and student (tables 4 and 5)\n",
        "Test split: against the weak labels. Expert: slides that taught nothing.\n",
        "| network | test F1 | test accuracy | expert F1 | expert accuracy | expert nuclei |",
        "|---|---|---|---|---|---|",
        _classifier("teacher", result.teacher),
        _classifier("student", result.student),
        "\n## Fine-tuning on expert labels (table 6)\n",
        *_tuning(result),
    ]
    return "\n".join(parts) + "\n"


def _weak_labels(scores: Scores | None) -> list[str]:
    if scores is None:
        return ["No image has both weak and expert labels."]
    cells = [_percent(value) for value in (scores.f1, scores.accuracy, scores.precision, scores.recall)]
    return [
        "| F1 | accuracy | precision | recall | nuclei |",
        "|---|---|---|---|---|",
        f"| {' | '.join(cells)} | {scores.num_nuclei:,} |",
    ]


def _classifier(name: str, scores: ClassifierScores) -> str:
    test = f"| {name} | {_percent(scores.test.f1)} | {_percent(scores.test.accuracy)} "
    if scores.expert is None:
        return f"{test}| | | |"
    expert = scores.expert
    return f"{test}| {_percent(expert.f1)} | {_percent(expert.accuracy)} | {expert.num_nuclei:,} |"


def _tuning(result: ChainResult) -> list[str]:
    if not result.tuning:
        return ["No expert labels were given."]
    return [
        "| labels per class | F1 before | F1 after | accuracy before | accuracy after | rate | dropout | tested on |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {row.count} | {_percent(row.before.f1)} | {_percent(row.after.f1)} | {_percent(row.before.accuracy)} | "
            f"{_percent(row.after.accuracy)} | {row.learning_rate:g} | {row.dropout:g} | {row.after.num_nuclei:,} |"
            for row in result.tuning
        ),
    ]


def _percent(value: float) -> str:
    return f"{100.0 * value:.2f}"
