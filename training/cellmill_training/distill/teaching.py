"""What the teacher says of a batch: computed on the very pixels the student sees, and kept where crops come again.

A teacher that sees the student's own crop, its turn, its stain and its blur, teaches better than one asked once about
the whole image (Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022).
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as save_arrays
from torch import Tensor
from torch.nn import functional

from cellmill.models.loading import LoadedModel
from cellmill_training.mixture import Batch

__all__ = ["Teacher", "taught"]


class Teacher:
    """A trained network of the flows family, asked about crops."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        student_mpp: float,
        device: torch.device | None = None,
        cache_folder: Path | None = None,
    ) -> None:
        """Build the network.

        Args:
            model: of the flows family.
            student_mpp: um/px of the crops it will be shown.
            device: where it runs.
            cache_folder: where its outputs are kept, in float16, under its digest; None for nowhere.
        """
        self.device = device or torch.device("cpu")
        self.config = model.config
        self._network = model.build().to(self.device).requires_grad_(False)
        self._zoom = student_mpp / model.config.target_mpp
        self._folder = cache_folder / f"{model.digest[:32]}-{student_mpp:g}" if cache_folder else None
        self.num_computed = 0
        """Crops it was run on, not read."""

    def says(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """Outputs float32 (B, 3 + C, S, S) on crops (B, S, S, 3) at the student's scale.

        Raises:
            ValueError: when the crops' side does not suit the teacher.
        """
        found = [self._read(image) for image in images]
        missing = [number for number, output in enumerate(found) if output is None]
        if missing:
            for number, output in zip(missing, self._compute(images[missing]), strict=True):
                found[number] = output
                self._write(images[number], output)
            self.num_computed += len(missing)
        kept = [output for output in found if output is not None]
        return torch.from_numpy(np.stack(kept).astype(np.float32)).to(self.device)

    def _compute(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
        pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float()
        side = pixels.shape[-1]
        shown = round(side * self._zoom)
        if shown % self.config.multiple_px:
            raise ValueError(
                f"The teacher sees crops of {side} px as {shown} px at its {self.config.target_mpp} um/px, and takes "
                f"multiples of {self.config.multiple_px} px: choose another crop_px."
            )
        on_cuda = self.device.type == "cuda"
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=on_cuda):
            if shown != side:
                pixels = functional.interpolate(pixels, size=(shown, shown), mode="bilinear", antialias=True)
            outputs = self._network(pixels).float()
            if shown != side:  # directions and logits do not depend on the scale
                outputs = functional.interpolate(outputs, size=(side, side), mode="bilinear", antialias=True)
        return outputs.cpu().numpy().astype(np.float16)

    def _path(self, image: npt.NDArray[np.uint8]) -> Path | None:
        if self._folder is None:
            return None
        digest = hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
        return self._folder / digest[:2] / f"{digest}.safetensors"

    def _read(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16] | None:
        path = self._path(image)
        try:
            return load_file(path)["outputs"] if path else None
        except (OSError, SafetensorError):  # not there, or cut off: computed anew
            return None

    def _write(self, image: npt.NDArray[np.uint8], output: npt.NDArray[np.float16]) -> None:
        path = self._path(image)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_bytes(save_arrays({"outputs": np.ascontiguousarray(output)}))
        partial.replace(path)


def taught(batches: Iterator[Batch], teacher: Teacher) -> Iterator[Batch]:
    """The same batches with what the teacher says of them."""
    for batch in batches:
        yield replace(batch, targets=batch.targets.taught(teacher.says(batch.images.numpy())))
