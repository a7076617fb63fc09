"""The decoder of a network's family, with its usual settings at a scale."""

from typing import Literal

from cellmill.instances.flow_decoder import FlowDecoder, FlowDecoderConfig
from cellmill.instances.hv_decoder import HvDecoder, HvDecoderConfig

__all__ = ["make_decoder"]

_FINE_MPP = 0.35
"""Below, HoVer-Net's settings for 0.25 um/px; from there on CellViT's for 0.5."""


def make_decoder(family: Literal["flows", "hv"], *, mpp: float) -> FlowDecoder | HvDecoder:
    """Decodes maps of `family` at `mpp` um per px."""
    if family == "flows":
        return FlowDecoder(FlowDecoderConfig(mpp=mpp))
    if mpp < _FINE_MPP:
        return HvDecoder(HvDecoderConfig(mpp=mpp))
    return HvDecoder(HvDecoderConfig(mpp=mpp, sobel_px=11, min_marker_px=3))
