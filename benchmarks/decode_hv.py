"""hv decode against tiatoolbox's HoVer-Net post-processing, on the same maps: time on one thread, and agreement.

Two rows, because `HoVerNet.postproc` does two things: it decodes (`_proc_np_hv`), and it lists each cell's box,
centroid and contour, with a pass over the whole image for each cell. The first row is decode against decode; the second
is all of `postproc` against decode and `measure_cells`, which gives that and the rest of a cell's row.
"""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Rival, Row, compare, timed
from cellmill.grid import SlideGrid
from cellmill.instances.hv_decoder import HvDecoder, HvDecoderConfig
from cellmill.instances.maps import HV_SCALE, PROB_SCALE, HvMaps
from cellmill.instances.measure import SlideKey, measure_cells
from cellmill.instances.testing import MapNoise, crowded_nuclei, draw_hv_maps
from cellmill.metrics.matching import match_instances
from cellmill_schemas.ontology import get_ontology

SIDE_PX, NUM_NUCLEI, MPP = 2048, 1900, 0.5
ONTOLOGY = get_ontology("pannuke5")
PYTHON = Path(__file__).resolve().parents[1] / ".bench" / "tiatoolbox" / "bin" / "python"
SCRIPT = Path(__file__).resolve().parent / "rivals" / "tiatoolbox_hv.py"


def measure() -> list[Row]:
    labels = crowded_nuclei(SIDE_PX, SIDE_PX, num_nuclei=NUM_NUCLEI, seed=1)
    maps = draw_hv_maps(labels, num_classes=len(ONTOLOGY), seed=2, noise=MapNoise())
    # no bounds on area: tiatoolbox has none
    decoder = HvDecoder(HvDecoderConfig(mpp=MPP, min_area_um2=MPP**2, max_area_um2=1e6))
    with tempfile.TemporaryDirectory() as folder, Rival(PYTHON, SCRIPT) as rival:
        handed_over, answered = Path(folder) / "maps.npz", Path(folder) / "labels.npy"
        _hand_over(maps, handed_over)

        def theirs(*, whole: bool) -> float:
            return rival.ask(maps=str(handed_over), labels=str(answered), whole=whole)["seconds"]

        decode = compare(lambda: timed(partial(decoder.decode, maps)), partial(theirs, whole=False))
        everything = compare(lambda: timed(partial(decode_and_measure, decoder, maps)), partial(theirs, whole=True))
        rival_labels = np.load(answered)
    ours = decoder.decode(maps)
    matched = {iou: agreement(ours.labels, rival_labels, min_iou=iou) for iou in (0.9, 0.5)}
    return [
        Row(
            name="hv decode",
            rival="tiatoolbox 2.1.3 HoVerNet._proc_np_hv, one thread",
            ours=decode[0],
            theirs=decode[1],
            unit="s",
            ratio=decode[2],
            aim="theirs / ours >= 10; >= 98 % of cells matched at IoU 0.9",
            met=decode[2].median >= 10 and matched[0.9] >= 0.98,
            details={
                "matched at IoU 0.9": matched[0.9],
                "matched at IoU 0.5": matched[0.5],
                "of tiatoolbox's, true nuclei at IoU 0.9": agreement(labels, rival_labels, min_iou=0.9),
                "of ours, true nuclei at IoU 0.9": agreement(labels, ours.labels, min_iou=0.9),
                "cells": float(len(ours)),
                "tiatoolbox's cells": float(rival_labels.max()),
                "flagged as cut": float(ours.exceeds_reach.sum()),
            },
        ),
        Row(
            name="hv decode and measures",
            rival="tiatoolbox 2.1.3 HoVerNet.postproc, one thread",
            ours=everything[0],
            theirs=everything[1],
            unit="s",
            ratio=everything[2],
            aim="theirs / ours >= 10",
            met=everything[2].median >= 10,
        ),
    ]


def decode_and_measure(decoder: HvDecoder, maps: HvMaps) -> None:
    """From maps to rows of the cell table."""
    measure_cells(
        decoder.decode(maps),
        maps,
        np.full((SIDE_PX, SIDE_PX, 3), 200, np.uint8),
        core=maps.box,
        grid=SlideGrid(SIDE_PX, SIDE_PX, 2.0, 2.0, MPP),
        ontology=ONTOLOGY,
        slide=SlideKey("benchmark", 1),
    )


def agreement(ours: npt.NDArray[np.int32], theirs: npt.NDArray[np.int32], *, min_iou: float) -> float:
    """Share of the rival's cells that have one of ours above this IoU."""
    found = match_instances(theirs, ours, min_iou=min_iou)
    return len(found.iou) / max(1, len(found.iou) + len(found.unmatched_reference))


def _hand_over(maps: HvMaps, path: Path) -> None:
    """Maps as HoVer-Net gives them: probability of a nucleus (H, W, 1), distances (H, W, 2)."""
    foreground = 1 - maps.prob[0].astype(np.float32) / PROB_SCALE
    np.savez(path, np=foreground[..., None], hv=np.moveaxis(maps.hv.astype(np.float32) / HV_SCALE, 0, -1))
