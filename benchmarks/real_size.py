"""Every network at its real size: one training step of 256 px at 0.25 um/px, its seconds and its memory.

    python benchmarks/real_size.py                  # on a CPU core, each case in a process of its own
    python benchmarks/real_size.py --device cuda    # the same on the first CUDA device
    python benchmarks/real_size.py --case teacher --batch-size 32

Weights are constant: neither time nor memory depends on them. A step is forward, a plain loss and backward, float32,
without an optimizer's state. `teacher` computes the frozen encoder without gradients and the decoder with them;
`teacher-cached` the decoder alone, from tokens as the feature cache gives them; `block-group` is what would be trained
if the encoder were not frozen: the 12 blocks between two of its tapped ones have 340 M parameters, of which `GROUP`
are run. Seconds are CPU seconds on a CPU and the wall clock's on a device. Memory is torch's peak on a device, and on a
CPU the process's, less what it took before the network was built.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

# The folders themselves go on the path, never their parent, whose `platform/` is no package but looks like one.
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "schemas")]

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from cellmill.models.config import Architecture, ModelConfig, builtin_config  # noqa: E402
from cellmill.models.networks import CellNetwork, TokenNetwork, build_model, count_parameters  # noqa: E402
from cellmill.models.networks.vit_encoder import VitTokens  # noqa: E402

Network = TypeVar("Network", bound=nn.Module)

SIDE_PX = 256
MPP = 0.25
GROUP = 3
NUM_STEPS = 2
CASES = ("lite", "student", "resnet50_unet", "cellvit", "teacher-cached", "block-group", "teacher")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--num-threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.case is None:
        for case in CASES:
            subprocess.run([sys.executable, __file__, "--case", case, *sys.argv[1:]], check=True)
        return
    torch.set_num_threads(arguments.num_threads)
    print(json.dumps(measure(arguments.case, torch.device(arguments.device), arguments.batch_size)), flush=True)


def measure(case: str, device: torch.device, batch_size: int) -> dict[str, Any]:
    """Parameters, seconds a step (the fastest of some) and peak memory of a case."""
    before = _resident_gib()
    step, parameters, trained = _step(case, device, batch_size)
    # Other programs on the machine count for less in a thread's own seconds than in those of the wall clock.
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds: list[float] = []
    for _ in range(1 if case == "teacher" and device.type == "cpu" else NUM_STEPS):
        started = clock()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(clock() - started)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else _resident_gib() - before
    return {
        "case": case,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "parameters": parameters,
        "trained": trained,
        "seconds_a_step": round(min(seconds), 3),
        "peak_gib": round(peak, 2),
    }


def _step(case: str, device: torch.device, batch_size: int) -> tuple[Callable[[], None], int, int]:
    """One training step, and how many parameters there are and are trained."""
    if case == "block-group":
        return _block_group(device, batch_size)
    architecture: Architecture = "teacher" if case == "teacher-cached" else case  # type: ignore[assignment]
    config = builtin_config(architecture, target_mpp=MPP)
    if case == "teacher-cached":
        return _cached(config, device, batch_size)
    network = _filled(build_on_meta(config), device)
    images = torch.rand(batch_size, 3, SIDE_PX, SIDE_PX, device=device) * 255

    def step() -> None:
        _backward(network, network(images))

    return step, count_parameters(network), count_parameters(network, trained_only=True)


def _cached(config: ModelConfig, device: torch.device, batch_size: int) -> tuple[Callable[[], None], int, int]:
    """The decoder alone: the encoder stays on the meta device."""
    network = build_on_meta(config)
    assert isinstance(network, TokenNetwork) and config.vit is not None
    width, parameters = network.encoder.width, count_parameters(network)
    network.encoder = None  # type: ignore[assignment]
    _filled(network, device)
    tokens = SIDE_PX // config.vit.token_px
    features = [torch.randn(batch_size, width, tokens, tokens, device=device).half() for _ in config.vit.blocks]
    images = torch.rand(batch_size, 3, SIDE_PX, SIDE_PX, device=device)

    def step() -> None:
        _backward(network, network.decode(images, features))

    return step, parameters, count_parameters(network, trained_only=True)


def _block_group(device: torch.device, batch_size: int) -> tuple[Callable[[], None], int, int]:
    """Blocks of H-optimus-0 at their real width, with gradients."""
    config = builtin_config("teacher", target_mpp=MPP)
    assert config.vit is not None
    options = dict(config.vit.options) | {"depth": GROUP}
    vit = replace(
        config.vit, options=tuple(sorted(options.items())), frozen=False, blocks=tuple(range(1, GROUP + 1)), token_px=8
    )
    with torch.device("meta"):
        blocks = VitTokens(vit).body.blocks.train()  # type: ignore[union-attr]
    _filled(blocks, device)  # type: ignore[arg-type]
    tokens = torch.randn(batch_size, 5 + (SIDE_PX // 16) ** 2, 1536, device=device)

    def step() -> None:
        _backward(blocks, blocks(tokens))  # type: ignore[operator]

    return step, count_parameters(blocks), count_parameters(blocks, trained_only=True)  # type: ignore[arg-type]


def build_on_meta(config: ModelConfig) -> CellNetwork:
    """The graph alone: random weights of a foundation model take half a minute to draw."""
    with torch.device("meta"):
        return build_model(config).train()


def _filled(network: Network, device: torch.device) -> Network:
    network.to_empty(device=device)
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data.fill_(0.01 if tensor.is_floating_point() else 0)
    return network


def _backward(network: nn.Module, outputs: Tensor) -> None:
    network.zero_grad(set_to_none=True)
    outputs.square().mean().backward()


def _resident_gib() -> float:
    """Peak so far; a process of its own a case makes it the case's."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
