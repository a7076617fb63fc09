"""Forward pass of `lite` on CPU: eager torch, channels-last, torch.compile and OpenVINO, side by side in one run.

    python benchmarks/cpu_backends.py --threads 1

Each row is the median of seven rounds after two warm-up rounds; the variants take turns within a round, so that a drift
of the machine's speed meets all of them.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import openvino as ov
import torch

from cellmill.models.loading import load_model

NUM_ROUNDS, NUM_WARM_UPS = 7, 2


def variants(network: torch.nn.Module, images: torch.Tensor, *, threads: int) -> dict[str, Callable[[], object]]:
    """Each way to run the network on `images` (B, 3, H, W) float32."""
    channels_last = images.to(memory_format=torch.channels_last)
    compiled = torch.compile(network)
    graph = ov.convert_model(torch.export.export(network, (images,)))
    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    openvino = ov.Core().compile_model(graph, "CPU", options)
    array = np.ascontiguousarray(images.numpy())
    return {
        "eager": lambda: network(images),
        "eager, channels last": lambda: network(channels_last),
        "torch.compile": lambda: compiled(images),
        "OpenVINO": lambda: openvino([array]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    model = load_model("lite")
    side = model.config.tile_px
    images = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (1, 3, side, side)).astype(np.float32))
    runs = variants(model.build(), images, threads=threads)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for number in range(NUM_WARM_UPS + NUM_ROUNDS):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                if number >= NUM_WARM_UPS:
                    seconds[name].append(time.perf_counter() - started)
    eager = statistics.median(seconds["eager"])
    for name, times in seconds.items():
        middle = statistics.median(times)
        per_mm2 = middle / (side * model.config.target_mpp * 1e-3) ** 2
        print(
            f"{name:22s} {middle * 1e3:7.1f} ms a {side} px tile ({min(times) * 1e3:.1f} to {max(times) * 1e3:.1f}), "
            f"{per_mm2:.2f} s/mm2 of pixels shown, {eager / middle:.2f} x eager"
        )


if __name__ == "__main__":
    main()
