"""tiatoolbox's HoVer-Net post-processing, for `benchmarks.decode_hv`; runs in an environment of its own.

One JSON line in, one out. In: `maps`, an .npz of `np` (H, W, 1) and `hv` (H, W, 2) float32 as the network gives them;
`labels`, where to save the label image (.npy); `whole`, whether to time all of `postproc`, which also lists outlines,
or the decode alone. Out: `seconds`, `cpu_seconds`, `cells`. Reading and saving are not timed.
"""

import importlib.metadata
import json
import os
import sys
import time
from typing import Any

import numpy as np


def answer(network: Any, request: dict[str, str | bool]) -> dict[str, float | str]:
    with np.load(str(request["maps"])) as maps:
        np_map, hv_map = maps["np"], maps["hv"]
    started, started_cpu = time.perf_counter(), time.process_time()
    if request["whole"]:
        labels = network.postproc([np_map, hv_map])[0]["predictions"]
    else:
        labels = network._proc_np_hv(np_map, hv_map)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    np.save(str(request["labels"]), np.asarray(labels))
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "cells": int(labels.max()),
        "version": importlib.metadata.version("tiatoolbox"),
    }


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print, on import too, goes to stderr
    import cv2
    import torch
    from tiatoolbox.models.architecture.hovernet import HoVerNet

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    network = HoVerNet(num_types=None, mode="fast")
    for line in sys.stdin:
        print(json.dumps(answer(network, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
