"""Throughput on one GPU, on a bare machine: needs torch, timm, numpy and numba, and this checkout, not installed.

    python benchmarks/gpu.py                        # student and lite on the first CUDA device
    python benchmarks/gpu.py --device cpu --tiny    # the same code on a CPU, to see that it runs

Prints one JSON with the device's name. For each model: tiles a second and seconds per mm2 of the forward pass alone
(bfloat16, captured graph), with the copies of pixels and maps beside it, and with the decode: on CPU threads from
copied maps, and on the device. Busy share: the forward's own time over the wall time of each of these. Weights are
random, pixels are made in memory and maps to decode are drawn: speed does not depend on what the network has learnt,
but a decode's does depend on how many nuclei there are (`nuclei_per_mm2`).
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# The folders themselves go on the path, never their parent, whose `platform/` is no package but looks like one.
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "schemas")]

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import torch  # noqa: E402

from cellmill.instances.device_decoder import DeviceFlowDecoder  # noqa: E402
from cellmill.instances.flow_decoder import FlowDecoder, FlowDecoderConfig  # noqa: E402
from cellmill.instances.maps import DenseMaps, quantise_flow, quantise_prob  # noqa: E402
from cellmill.instances.targets import masks_to_flows  # noqa: E402
from cellmill.models.backends.torch_cuda import TorchCudaBackend  # noqa: E402
from cellmill.models.config import ModelConfig, builtin_config  # noqa: E402
from cellmill.models.loading import LoadedModel, weights_of  # noqa: E402
from cellmill.models.networks import build_model, count_parameters  # noqa: E402

NUCLEI_PER_PX = 1900 / 2048**2
"""As in the decode's own benchmark."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    batch_size: int
    num_batches: int
    """A stream: what is timed as one."""
    field_tiles: int
    """Side of the window decoded at a time, in tile cores."""
    num_threads: int
    """CPU threads that decode beside the device."""
    num_repeats: int = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--models", nargs="+", choices=("student", "lite"), default=("student", "lite"))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-batches", type=int, default=40)
    parser.add_argument("--field-tiles", type=int, default=4)
    parser.add_argument("--num-threads", type=int, default=max(1, (torch.get_num_threads() or 2) - 2))
    parser.add_argument("--tiny", action="store_true", help="small tiles and few batches: shows that it runs")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device here; --device cpu --tiny runs the same code without one.")
    sizes = Sizes(options.batch_size, options.num_batches, options.field_tiles, options.num_threads)
    if options.tiny:
        sizes = Sizes(batch_size=1, num_batches=2, field_tiles=2, num_threads=1, num_repeats=1)
    report: dict[str, Any] = {"device": device_name(options.device), "machine": platform.processor(), **vars(options)}
    report["torch"] = torch.__version__
    for name in options.models:
        config = builtin_config(name)
        config = replace(config, tile_px=128) if options.tiny else config
        report[name] = measure_model(config, sizes, options.device)
    print(json.dumps(report, indent=1))


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"cpu ({platform.machine()})"


def measure_model(config: ModelConfig, sizes: Sizes, device: str) -> dict[str, Any]:
    backend = TorchCudaBackend(
        random_model(config), batch_size=sizes.batch_size, num_threads=sizes.num_threads, device=device
    )
    batches = random_batches(config, sizes)
    field = Field(config, sizes, device)
    tiles = sizes.batch_size * sizes.num_batches
    mm2 = tiles * (field.stride_px * config.target_mpp * 1e-3) ** 2
    runs: dict[str, Callable[[], None]] = {
        "forward": lambda: forward_alone(backend, sizes.num_batches),
        "with_copies": lambda: drain(backend.run_many(stream(batches, sizes))),
        "with_decode_on_cpu_threads": lambda: with_decode(
            backend.run_many(stream(batches, sizes)), field.decode_on_cpu, field, sizes
        ),
        "with_decode_on_device": lambda: with_decode(
            backend.run_on_device(stream(batches, sizes)), field.decode_on_device, field, sizes
        ),
    }
    seconds = {name: median_seconds(run, device, sizes) for name, run in runs.items()}
    found: dict[str, Any] = {
        "parameters": count_parameters(build_model(config)),
        "tile_px": config.tile_px,
        "mm2_a_run": mm2,
        "nuclei_per_mm2": NUCLEI_PER_PX / (config.target_mpp * 1e-3) ** 2,
    }
    for name, (middle, least, most) in seconds.items():
        found[name] = {
            "tiles_per_s": tiles / middle,
            "s_per_mm2": middle / mm2,
            "s_per_mm2_spread": [least / mm2, most / mm2],
            "device_busy_share": seconds["forward"][0] / middle,
        }
    found["decode_cpu_one_thread_s_per_mm2"] = median_seconds(field.decode_on_cpu, device, sizes)[0] / field.mm2
    found["decode_device_s_per_mm2"] = median_seconds(field.decode_on_device, device, sizes)[0] / field.mm2
    found["cells_equal_on_both"] = field.decoders_agree()
    return found


def random_model(config: ModelConfig) -> LoadedModel:
    torch.manual_seed(0)
    return LoadedModel(config, weights_of(build_model(config)), digest="", card="", source="random weights")


def random_batches(config: ModelConfig, sizes: Sizes) -> list[npt.NDArray[np.uint8]]:
    random, shape = np.random.default_rng(0), (sizes.batch_size, config.tile_px, config.tile_px, 3)
    return [random.integers(0, 256, shape, np.uint8) for _ in range(3)]


def stream(batches: list[npt.NDArray[np.uint8]], sizes: Sizes) -> Iterator[npt.NDArray[np.uint8]]:
    """`num_batches` batches, those at hand by turns."""
    return (batches[number % len(batches)] for number in range(sizes.num_batches))


def forward_alone(backend: TorchCudaBackend, num_batches: int) -> None:
    """The network over and over on pixels that are on the device already."""
    for number in range(num_batches):
        backend.compute_again(number)


def drain(maps: Iterator[Any]) -> None:
    for _ in maps:
        pass


class Field:
    """Drawn maps of a window of some tile cores, to be decoded in place of what random weights give."""

    def __init__(self, config: ModelConfig, sizes: Sizes, device: str) -> None:
        self.stride_px = config.tile_px - 2 * config.margin_px
        self.num_tiles = sizes.field_tiles**2
        side = sizes.field_tiles * self.stride_px
        self.maps = draw_maps(side, num_classes=config.num_outputs - 3)
        self.mm2 = (side * config.target_mpp * 1e-3) ** 2
        self.flow = torch.from_numpy(self.maps.flow).to(device)
        self.prob = torch.from_numpy(self.maps.prob).to(device)
        settings = FlowDecoderConfig(mpp=config.target_mpp)
        self._cpu, self._device = FlowDecoder(settings), DeviceFlowDecoder(settings)

    def decode_on_cpu(self) -> None:
        self._cpu.decode(self.maps)

    def decode_on_device(self) -> None:
        """As a run does it: in a stream of this thread's own, with the classes of each cell summed."""
        self._device.decode_and_sum(self.flow, self.prob, origin_px=(0, 0))

    def decoders_agree(self) -> bool:
        ours, classes = self._device.decode_and_sum(self.flow, self.prob, origin_px=(0, 0))
        theirs = self._cpu.decode(self.maps)
        labels = theirs.labels.reshape(-1)
        sums = [np.bincount(labels, weights=prob.reshape(-1))[1:] for prob in self.maps.prob]  # exact: below 2^53
        return bool(
            np.array_equal(ours.labels, theirs.labels)
            and np.array_equal(ours.anchors_px, theirs.anchors_px)
            and np.array_equal(classes.sums, np.stack(sums, axis=1))
        )


def draw_maps(side: int, *, num_classes: int) -> DenseMaps:
    """Noisy maps of round nuclei, as dense as in the decode's own benchmark.

    Drawn here because the package's own drawing needs more than this script may.
    """
    random = np.random.default_rng(1)
    labels = np.zeros((side, side), np.int32)
    for label in range(1, max(4, int(side * side * NUCLEI_PER_PX)) + 1):
        radius = random.uniform(7.5, 13.0)
        y, x = random.uniform(0, side, 2)
        y0, x0 = max(0, int(y - radius)), max(0, int(x - radius))
        patch = labels[y0 : int(y + radius) + 2, x0 : int(x + radius) + 2]
        rows, columns = np.ogrid[: patch.shape[0], : patch.shape[1]]
        inside = (rows + y0 - y) ** 2 + (columns + x0 - x) ** 2 < radius**2
        patch[inside & (patch == 0)] = label
    flow = masks_to_flows(labels) + smooth_noise(random, (2, side, side), 0.15)
    foreground = 1 / (1 + np.exp(-(np.where(labels > 0, 3.0, -3.0) + smooth_noise(random, (1, side, side), 1.0)[0])))
    prob = np.zeros((num_classes + 1, side, side), np.float32)
    prob[0] = 1 - foreground
    for number in range(num_classes):
        prob[number + 1] = np.where(labels % num_classes == number, foreground, 0)
    return DenseMaps(flow=quantise_flow(flow), prob=quantise_prob(prob), origin_px=(0, 0))


def smooth_noise(random: np.random.Generator, shape: tuple[int, int, int], deviation: float) -> npt.NDArray[np.float32]:
    """Noise (N, H, W) that hangs together over about 3 px."""
    noise = torch.from_numpy(random.normal(size=shape).astype(np.float32))
    smooth = torch.nn.functional.avg_pool2d(noise, 3, 1, 1) * 3  # of nine values: deviation 1 again
    return (smooth.numpy() * deviation).astype(np.float32)


def with_decode(predicted: Iterator[Any], decode: Callable[[], None], field: Field, sizes: Sizes) -> None:
    """Run the network to its end; for each field's worth of tiles that it has done, a thread decodes one field."""
    with ThreadPoolExecutor(sizes.num_threads) as pool:
        waiting = due = 0
        decodes: list[Any] = []
        for maps in predicted:
            waiting += len(maps.vectors)
            while waiting - due >= field.num_tiles:
                due += field.num_tiles
                decodes.append(pool.submit(decode))
        for decoded in decodes:
            decoded.result()


def median_seconds(run: Callable[[], None], device: str, sizes: Sizes) -> tuple[float, float, float]:
    """Median, least and most seconds of `run`, after one to warm up."""
    times: list[float] = []
    for _ in range(1 + sizes.num_repeats):
        started = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:]), min(times[1:]), max(times[1:])


if __name__ == "__main__":
    main()
