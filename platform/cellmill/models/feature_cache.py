"""Tokens of a frozen encoder, computed once for each image and kept on disk.

A frozen encoder gives the same tokens for the same pixels in every epoch, and with a foundation model they are nearly
all of a step's cost. Files are safetensors in float16, a folder for each encoder, named by what they depend on: the
encoder with its weights, and the pixels. So a cache can be shared by runs and workers, and never has to be emptied to
be right; the number of bytes of an image is num_blocks x D x tokens x 2 (3.1 MB for 256 px and H-optimus-0 at 16 px a
token).
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as save_arrays
from torch import Tensor

from cellmill.models.config import ModelConfig
from cellmill.models.networks import TokenNetwork

__all__ = ["FeatureCache", "encoder_digest"]

_LARGEST = 65504.0  # float16's


class FeatureCache:
    """Tokens of one frozen encoder, by image."""

    def __init__(self, folder: Path, network: TokenNetwork) -> None:
        """Make ready.

        Args:
            folder: where files go; made when it is not there.
            network: whose encoder is meant.

        Raises:
            ValueError: when the encoder is trained, and so gives other tokens tomorrow.
        """
        if not network.encoder.vit.frozen:
            raise ValueError("Tokens of an encoder that is trained change with every step; only a frozen one's keep.")
        self._network = network
        self._folder = folder / encoder_digest(network)[:32]
        self._folder.mkdir(parents=True, exist_ok=True)
        self.num_computed = 0
        """Images whose tokens were computed by this cache, not found."""

    def features(self, images: npt.NDArray[np.uint8]) -> tuple[Tensor, ...]:
        """Tokens of images (B, H, W, 3) uint8 as `TokenNetwork.decode` takes them, on the network's device.

        What is not there yet is computed in one batch and kept. All are float16, found or computed alike.
        """
        paths = [self._path(image) for image in images]
        found = [_read(path) for path in paths]
        missing = [number for number, tokens in enumerate(found) if tokens is None]
        for number, tokens in zip(missing, self._compute(images[missing]) if missing else [], strict=True):
            _write(paths[number], tokens)
            found[number] = tokens
        self.num_computed += len(missing)
        blocks = zip(*(tokens for tokens in found if tokens is not None), strict=True)
        device = self._network.pixel_mean.device
        return tuple(torch.from_numpy(np.stack(block)).to(device) for block in blocks)

    def _compute(self, images: npt.NDArray[np.uint8]) -> list[list[npt.NDArray[np.float16]]]:
        batch = torch.from_numpy(images).permute(0, 3, 1, 2).to(self._network.pixel_mean.device, torch.float32)
        with torch.inference_mode():
            blocks = [_halved(block) for block in self._network.features(batch)]  # (B, D, h, w) each
        return [[block[number] for block in blocks] for number in range(len(images))]

    def _path(self, image: npt.NDArray[np.uint8]) -> Path:
        shape = ",".join(map(str, image.shape)).encode()
        digest = hashlib.sha256(shape + b"\0" + np.ascontiguousarray(image).tobytes()).hexdigest()
        return self._folder / digest[:2] / f"{digest}.safetensors"


def encoder_digest(network: TokenNetwork) -> str:
    """Changes with all that decides an image's tokens: graph, blocks, scale, normalisation and weights."""
    config = network.config
    document = _encoder_document(config)
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    if config.vit is not None and config.vit.sha256:
        return digest.hexdigest()  # names the weights' file
    for name, value in sorted(network.encoder.state_dict().items()):
        digest.update(name.encode() + b"\0" + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _encoder_document(config: ModelConfig) -> dict[str, object]:
    assert config.vit is not None, "a token network has one"
    return {"vit": config.vit.to_json(), "mean": config.pixel_mean_rgb, "std": config.pixel_std_rgb}


def _halved(block: Tensor) -> npt.NDArray[np.float16]:
    return block.float().clamp(-_LARGEST, _LARGEST).to(torch.float16).cpu().numpy()


def _read(path: Path) -> list[npt.NDArray[np.float16]] | None:
    """None where there is no file, or a broken one, which is then written anew."""
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError):
        return None
    return [arrays[f"{number:02d}"] for number in range(len(arrays))]


def _write(path: Path, tokens: Sequence[npt.NDArray[np.float16]]) -> None:
    """Whole or not at all; workers that write the same image write the same bytes."""
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(save_arrays({f"{number:02d}": np.ascontiguousarray(t) for number, t in enumerate(tokens)}))
    partial.replace(path)
