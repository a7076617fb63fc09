"""Short names of the arrays that the compiled kernels pass around."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["Codes", "Flags", "Floats", "Labels", "Singles", "Stats"]

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Labels = NDArray[np.int32]
Stats = NDArray[np.int64]
Codes = NDArray[np.uint8]
Flags = NDArray[np.bool_]
