"""Flows decode against Cellpose's, on the same maps: time on one thread, and agreement cell by cell."""

from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from cellpose import dynamics

from benchmarks.harness import Row, compare, timed
from cellmill.instances.flow_decoder import FlowDecoder, FlowDecoderConfig
from cellmill.instances.maps import FLOW_SCALE, PROB_SCALE, DenseMaps
from cellmill.instances.mask_limits import MaskLimits
from cellmill.instances.testing import MapNoise, crowded_nuclei, draw_maps
from cellmill.metrics.matching import match_instances

SIDE_PX, NUM_NUCLEI, NUM_CLASSES, MPP = 2048, 1900, 7, 0.5
CELLPOSE = {"niter": 200, "flow_threshold": 0.4, "min_size": 15}
"""min_size in pixels; `min_area_um2` below is the same."""


def measure() -> list[Row]:
    torch.set_num_threads(1)
    nuclei = crowded_nuclei(SIDE_PX, SIDE_PX, num_nuclei=NUM_NUCLEI, seed=1)
    maps = draw_maps(nuclei, num_classes=NUM_CLASSES, seed=2, noise=MapNoise())
    decoder = FlowDecoder(
        FlowDecoderConfig(
            mpp=MPP,
            limits=MaskLimits(flow_error_max=CELLPOSE["flow_threshold"]),
            min_area_um2=CELLPOSE["min_size"] * MPP**2,
        )
    )
    ours, theirs, ratio = compare(
        lambda: timed(partial(decoder.decode, maps)), lambda: timed(partial(cellpose_masks, maps))
    )
    framed = agreement(decoder.decode(_framed(maps)).labels, cellpose_masks(_framed(maps)))
    alone = agreement(decoder.decode(maps).labels, cellpose_masks(maps))
    return [
        Row(
            name="flows decode",
            rival="cellpose.dynamics.compute_masks(niter=200, flow_threshold=0.4, min_size=15), one thread",
            ours=ours,
            theirs=theirs,
            unit="s",
            ratio=ratio,
            aim="theirs / ours >= 15; >= 99.9 % of cells matched at IoU 0.95",
            met=ratio.median >= 15 and framed >= 0.999,
            details={
                "matched at IoU 0.95, field inside a frame three times as large": framed,
                "matched at IoU 0.95, field alone": alone,
                "cells": float(len(decoder.decode(maps))),
            },
        )
    ]


def cellpose_masks(maps: DenseMaps) -> npt.NDArray[np.int32]:
    """Cellpose's masks of the same maps, in its own units: flows 5 times unit length, logits of the foreground."""
    flow = maps.flow.astype(np.float32) * (5.0 / FLOW_SCALE)  # (2, H, W)
    foreground = np.clip(1 - maps.prob[0].astype(np.float32) / PROB_SCALE, 1e-3, 1 - 1e-3)  # (H, W)
    logits = np.log(foreground / (1 - foreground))
    found = dynamics.compute_masks(flow, logits, cellprob_threshold=0.0, device=torch.device("cpu"), **CELLPOSE)
    return np.asarray(found[0] if isinstance(found, tuple) else found).astype(np.int32)


def agreement(ours: npt.NDArray[np.int32], theirs: npt.NDArray[np.int32]) -> float:
    """Share of Cellpose's cells that have one of ours at IoU 0.95 or more."""
    match = match_instances(theirs, ours, min_iou=0.95)
    return len(match.reference) / max(1, len(np.unique(theirs)) - 1)


def _framed(maps: DenseMaps) -> DenseMaps:
    """The field in the middle of background three times as wide: Cellpose samples flows off centre towards the rim."""
    side = [(0, 0), (SIDE_PX, SIDE_PX), (SIDE_PX, SIDE_PX)]
    prob = np.pad(maps.prob, side)
    prob[0] = PROB_SCALE
    prob[:, SIDE_PX:-SIDE_PX, SIDE_PX:-SIDE_PX] = maps.prob
    return DenseMaps(flow=np.pad(maps.flow, side), prob=prob, origin_px=(0, 0))
