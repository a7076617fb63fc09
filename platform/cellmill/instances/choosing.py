"""The decoder of a network's family, with its usual settings at a scale; and where it works."""

from typing import Any, Literal

import numpy as np

from cellmill.instances.decoder import Decoder, Instances
from cellmill.instances.flow_decoder import FlowDecoder, FlowDecoderConfig
from cellmill.instances.hv_decoder import HvDecoder, HvDecoderConfig
from cellmill.instances.maps import ClassMaps, ClassSums
from cellmill.instances.mask_limits import MaskLimits

__all__ = ["decode_where_made", "make_decoder"]

_FINE_MPP = 0.35
"""Below, HoVer-Net's settings for 0.25 um/px; from there on CellViT's for 0.5."""


def make_decoder(family: Literal["flows", "hv"], *, mpp: float, limits: MaskLimits) -> FlowDecoder | HvDecoder:
    """Decodes maps of `family` at `mpp` um per px; `limits` are those of flows."""
    if family == "flows":
        return FlowDecoder(FlowDecoderConfig(mpp=mpp, limits=limits))
    if mpp < _FINE_MPP:
        return HvDecoder(HvDecoderConfig(mpp=mpp))
    return HvDecoder(HvDecoderConfig(mpp=mpp, sobel_px=11, min_marker_px=3))


def decode_where_made(
    decoder: Decoder[Any], vectors: Any, prob: Any, *, origin_px: tuple[int, int]
) -> tuple[Instances, ClassMaps | ClassSums]:
    """The cells of a window, and what measuring them takes of its maps; the same cells wherever the maps lie.

    Args:
        decoder: of the maps' family.
        vectors: (2, H, W) int16, an array, or a tensor on the device that made it (flows only).
        prob: (C + 1, H, W) uint8, likewise.
        origin_px: absolute (x, y) of the window's first pixel.
    """
    if isinstance(prob, np.ndarray):
        maps = decoder.maps(vectors, prob, origin_px)
        return decoder.decode(maps), maps
    # Only here: maps on the host are decoded without torch.
    from cellmill.instances.device_decoder import DeviceFlowDecoder

    assert isinstance(decoder, FlowDecoder), "maps of other families are fetched to the host"
    return DeviceFlowDecoder(decoder.config).decode_and_sum(vectors, prob, origin_px=origin_px)
