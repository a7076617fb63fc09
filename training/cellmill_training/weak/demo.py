"""The weak-label chain where the truth is known: synthetic tissue, a weak source that errs as real ones do.

    python -m cellmill_training.weak.demo --out demo/weak

Writes a data set of weak labels (`weak_source`: small, pale and crowded nuclei are missed or miscalled) and one with
the true labels of other slides in the expert's place, runs `train-weak-chain` on them, and prints its tables. Three of
the tissue's seven types stand for the paper's classes: lymphocytes, spindle cells in muscle's place, and neoplastic
cells as the others.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cellmill.arguments import parse_dataclass
from cellmill_schemas.ontology import OntologyMapping, get_ontology
from cellmill_training.datasets.labelled_image import CellLabel, LabelledImage, LabelOrigin, densely_numbered
from cellmill_training.datasets.mapping import mapped
from cellmill_training.datasets.readers.synthetic import render_images
from cellmill_training.datasets.splitting import Split, split_by_group
from cellmill_training.datasets.store import open_dataset, write_dataset
from cellmill_training.weak.job import WeakChainSettings, run_weak_chain
from cellmill_training.weak.report import chain_tables
from cellmill_training.weak.weak_source import WeakSource, weakly_labelled

__all__ = ["THREE_TYPES", "DemoSettings", "main", "true_images", "write_demo_data"]

_FIRST_SEED = 610_000
_LABORATORY = 600_000
"""One stain and scanner for all slides, as the paper's are of one hospital."""
_EXPERT_FRACTIONS = (0.5, 0.0, 0.5)

THREE_TYPES = OntologyMapping(
    get_ontology("refined7"),
    get_ontology("ikem3"),
    (
        ("neoplastic", ("other",)),
        ("lymphocyte", ("immune",)),
        ("connective", ("muscle",)),
        ("dead", ()),
        ("epithelial", ()),
        ("macrophage", ()),
        ("neutrophil", ()),
    ),
)
"""One type of synthetic tissue for each of the paper's classes, spindle cells in muscle's place; the rest stay open."""


@dataclass(frozen=True)
class DemoSettings:
    """Settings of the demonstration.

    Args:
        out: folder for data sets, networks and tables.
        num_weak: slides with weak labels alone, an image of 256 px at 0.5 um/px each.
        num_expert: slides with an expert's labels too; half of them are tested on.
        error_rate: how many nuclei the weak source misses or miscalls.
        seed: of slides, weak labels, splits and weights.
        num_workers: Ray Train workers; 0 trains in this process.
        cpus_per_worker: CPU cores to train on.
    """

    out: str = "demo/weak"
    num_weak: int = 60
    num_expert: int = 20
    error_rate: float = 0.25
    seed: int = 0
    num_workers: int = 1
    cpus_per_worker: int = 2


def true_images(seeds: Sequence[int], *, side_px: int = 256) -> Iterator[LabelledImage]:
    """Images whose labels are the truth in three types, by `truth` as annotator; other nuclei are unknown pixels."""
    origin = LabelOrigin("annotator", "truth")
    for image in render_images(seeds, side_px=side_px, laboratory=_LABORATORY):
        three = mapped(image, THREE_TYPES)
        typed = np.array([False, *(bool(label.cell_types) for label in three.labels)])
        instances, numbers = densely_numbered(np.where(typed[three.instances], three.instances, 0))
        yield replace(
            three,
            instances=instances,
            labels=tuple(CellLabel(three.labels[number - 1].cell_types, origin) for number in numbers),
            unknown=~typed[three.instances] & (three.instances > 0),
        )


def write_demo_data(settings: DemoSettings) -> tuple[Path, Path]:
    """Folders of the weak and the expert data set, made once."""
    out, ontology = Path(settings.out), get_ontology("ikem3")
    weak_folder, expert_folder = out / "weak", out / "expert"
    first = _FIRST_SEED + 1000 * settings.seed
    expert_seeds = range(first, first + settings.num_expert)
    weak_seeds = range(expert_seeds.stop, expert_seeds.stop + settings.num_weak)
    if not any((expert_folder / "index").glob("*")):
        write_dataset(
            expert_folder,
            true_images(expert_seeds),
            ontology=ontology,
            splits=split_by_group(map(_name, expert_seeds), fractions=_EXPERT_FRACTIONS, seed=settings.seed),
        )
    if not any((weak_folder / "index").glob("*")):
        source = WeakSource(error_rate=settings.error_rate, seed=settings.seed)
        splits = split_by_group(map(_name, weak_seeds), fractions=(0.7, 0.15, 0.15), seed=settings.seed)
        tests: dict[str, Split] = dict.fromkeys(map(_name, expert_seeds), "test")

        def images() -> Iterator[LabelledImage]:
            for image in open_dataset(expert_folder).images():
                yield weakly_labelled(image, source)
            for image in true_images(weak_seeds):
                yield weakly_labelled(image, source)

        write_dataset(weak_folder, images(), ontology=ontology, splits={**splits, **tests})
    return weak_folder, expert_folder


def _name(seed: int) -> str:
    return f"synthetic-{seed}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; returns 0."""
    settings = parse_dataclass(
        DemoSettings,
        prog="cellmill_training.weak.demo",
        description="Run the weak-label chain on synthetic tissue and measure it against the truth.",
        arguments=arguments,
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    weak, expert = write_demo_data(settings)
    result = run_weak_chain(
        WeakChainSettings(
            weak=str(weak),
            expert=str(expert),
            out=str(Path(settings.out) / "chain"),
            recipe="weak-chain-demo",
            seed=settings.seed,
            num_workers=settings.num_workers,
            cpus_per_worker=settings.cpus_per_worker,
        )
    )
    sys.stdout.write(chain_tables(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
