"""What a model is, as one frozen record that is written as JSON beside its weights.

A `ModelConfig` fixes the network's graph (architecture, encoder, widths), what its channels mean (the ontology), the
pixels it expects (`target_mpp`, mean and deviation of 0..255 RGB) and how it is tiled. Two models with equal config and
equal weights give equal cells.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from cellmill_schemas.ontology import Ontology, get_ontology

__all__ = ["FLOW_CHANNELS", "Architecture", "ModelConfig", "builtin_config"]

FLOW_CHANNELS = 2
"""Output channels before the class logits: unit flows, dy then dx."""

Architecture = Literal["student", "lite"]
Normalisation = tuple[float, float, float]


@dataclass(frozen=True)
class ModelConfig:
    """The graph, the meaning of its channels and the pixels of one network."""

    name: str
    """What people call it; part of the model card, not of the graph."""
    architecture: Architecture
    """`student`: U-Net over a timm encoder. `lite`: plain residual convolutions, for two CPU cores."""
    encoder: str
    """timm's name of the encoder, or `plain` for the encoder of `lite`."""
    encoder_channels: tuple[int, ...]
    """Width at each scale from stride 2 on; empty for a timm encoder, which brings its own."""
    encoder_blocks: tuple[int, ...]
    """Residual blocks at each scale; empty for a timm encoder."""
    decoder_channels: tuple[int, ...]
    """Decoder width at each scale, finest first; one fewer than the encoder has scales for `lite`."""
    ontology: Ontology
    """Class `i` is logit channel `i + 1`; channel 0 of the logits is background."""
    target_mpp: float = 0.5
    """Micrometres per pixel of the model grid."""
    tile_px: int = 576
    """Side of the square the network sees, in px."""
    margin_px: int = 32
    """What is cut off each side of a tile's prediction, in px."""
    pixel_mean_rgb: Normalisation = (200.0, 160.0, 190.0)
    """Subtracted from 0..255 RGB inside the network."""
    pixel_std_rgb: Normalisation = (45.0, 55.0, 45.0)
    """Divides what is left."""

    def __post_init__(self) -> None:
        if self.architecture not in get_args(Architecture):
            raise ValueError(f"architecture must be one of {get_args(Architecture)}, got {self.architecture!r}.")
        if self.architecture == "lite" and not (
            len(self.encoder_channels) == len(self.encoder_blocks) == len(self.decoder_channels) + 1
        ):
            raise ValueError(
                "A lite network needs encoder_channels and encoder_blocks of one length and decoder_channels one "
                f"shorter, got {self.encoder_channels}, {self.encoder_blocks}, {self.decoder_channels}."
            )
        if not 0.05 <= self.target_mpp <= 20.0:
            raise ValueError(f"target_mpp is um per px and must lie in 0.05..20, got {self.target_mpp}.")
        multiple = 64 if self.architecture == "student" else 32
        if self.tile_px <= 2 * self.margin_px or self.tile_px % multiple:
            raise ValueError(
                f"tile_px must be a multiple of {multiple} above 2 * margin_px, got tile_px={self.tile_px}, "
                f"margin_px={self.margin_px}."
            )

    @property
    def num_outputs(self) -> int:
        """Channels of the network's output: flows, background and classes."""
        return FLOW_CHANNELS + 1 + len(self.ontology)

    def to_json(self) -> dict[str, Any]:
        """The config as plain JSON types, read back by `ModelConfig.from_json`."""
        return {
            "name": self.name,
            "architecture": self.architecture,
            "encoder": self.encoder,
            "encoder_channels": list(self.encoder_channels),
            "encoder_blocks": list(self.encoder_blocks),
            "decoder_channels": list(self.decoder_channels),
            "ontology": self.ontology.to_json(),
            "target_mpp": self.target_mpp,
            "tile_px": self.tile_px,
            "margin_px": self.margin_px,
            "pixel_mean_rgb": list(self.pixel_mean_rgb),
            "pixel_std_rgb": list(self.pixel_std_rgb),
        }

    def canonical_bytes(self) -> bytes:
        """The bytes a model digest is taken over: sorted keys, no spaces."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":")).encode()

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "ModelConfig":
        """Parse what `to_json` wrote.

        Raises:
            ValueError: when a field is missing, unknown to the graph or out of range.
        """
        try:
            return ModelConfig(
                name=str(document["name"]),
                architecture=cast(Architecture, document["architecture"]),
                encoder=str(document["encoder"]),
                encoder_channels=tuple(int(width) for width in document["encoder_channels"]),
                encoder_blocks=tuple(int(count) for count in document["encoder_blocks"]),
                decoder_channels=tuple(int(width) for width in document["decoder_channels"]),
                ontology=Ontology.from_json(document["ontology"]),
                target_mpp=float(document["target_mpp"]),
                tile_px=int(document["tile_px"]),
                margin_px=int(document["margin_px"]),
                pixel_mean_rgb=_triple(document["pixel_mean_rgb"]),
                pixel_std_rgb=_triple(document["pixel_std_rgb"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"A model config lacks or misuses a field: {error!r}.") from error


def builtin_config(architecture: Architecture, *, ontology: Ontology | None = None, name: str = "") -> ModelConfig:
    """The config of `student` or `lite` at its usual size, for `refined7` unless another ontology is given."""
    base = _STUDENT if architecture == "student" else _LITE
    return replace(base, name=name or architecture, ontology=ontology or base.ontology)


def _triple(values: Any) -> Normalisation:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


_LITE = ModelConfig(
    name="lite",
    architecture="lite",
    encoder="plain",
    # Dense 3 x 3 convolutions at strides 2 to 16: of four candidates measured on two CPU cores these trained fastest
    # (50 ms for a 256 px step) and ran at 13 ms in OpenVINO; an inverted-residual net ran at 10 ms but trained at 72.
    encoder_channels=(24, 32, 64, 144),
    encoder_blocks=(0, 1, 2, 2),
    decoder_channels=(24, 32, 64),
    ontology=get_ontology("refined7"),
)

_STUDENT = ModelConfig(
    name="student",
    architecture="student",
    encoder="mobilevitv2_150",
    encoder_channels=(),
    encoder_blocks=(),
    decoder_channels=(32, 64, 128, 256, 384),
    ontology=get_ontology("refined7"),
)
