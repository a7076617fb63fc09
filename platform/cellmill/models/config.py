"""What a model is, as one frozen record that is written as JSON beside its weights.

A `ModelConfig` fixes the network's graph (architecture, encoder, widths), what its channels mean (the ontology), the
pixels it expects (`target_mpp`, mean and deviation of 0..255 RGB) and how it is tiled. Two models with equal config and
equal weights give equal cells.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, cast, get_args

from cellmill.instances.mask_limits import MaskLimits
from cellmill.models.vit_encoders import KNOWN_ENCODERS, VitEncoder, known_encoder
from cellmill_schemas.ontology import Ontology, get_ontology

__all__ = ["FLOW_CHANNELS", "Architecture", "DecoderKind", "ModelConfig", "builtin_config", "with_encoder"]

FLOW_CHANNELS = 2
"""Output channels before the class logits: unit flows, dy then dx."""

Architecture = Literal["student", "lite", "teacher", "cellvit", "resnet50_unet"]
DecoderKind = Literal["flows", "hv"]
Normalisation = tuple[float, float, float]

_TOKEN_UM = 4.0
"""What a token of `teacher` and `cellvit` covers: 16 px of PanNuke's 0.25 um/px."""
_TILE_MULTIPLES_PX: dict[Architecture, int] = {"lite": 32, "student": 64, "resnet50_unet": 32}
"""`student`'s attention works on pairs of pixels at stride 32."""


@dataclass(frozen=True)
class ModelConfig:
    """The graph, the meaning of its channels and the pixels of one network."""

    name: str
    """What people call it; part of the model card, not of the graph."""
    architecture: Architecture
    """`student`: U-Net over a timm encoder. `lite`: plain residual convolutions, for two CPU cores. `teacher`: UNETR
    over a frozen vision transformer. `cellvit`: CellViT's three branches over one. `resnet50_unet`: the baseline."""
    encoder: str
    """timm's name of the encoder, a foundation model's (`vit_encoders`), or `plain` for the encoder of `lite`."""
    encoder_channels: tuple[int, ...]
    """Width at each scale from stride 2 on; empty for a timm encoder, which brings its own."""
    encoder_blocks: tuple[int, ...]
    """Residual blocks at each scale; empty for a timm encoder."""
    decoder_channels: tuple[int, ...]
    """Decoder width at each scale, finest first; one fewer than the encoder has scales for `lite`, one for each
    doubling from tokens to pixels over a vision transformer."""
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
    vit: VitEncoder | None = None
    """The vision transformer of `teacher` and `cellvit`; None for the others."""
    mask_limits: MaskLimits = field(default_factory=MaskLimits)
    """What the flows decoder takes for a cell."""

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
        if (self.vit is not None) != (self.architecture in ("teacher", "cellvit")):
            raise ValueError(f"teacher and cellvit, and only they, have a vit; got {self.vit} for {self.architecture}.")
        if self.vit is not None and len(self.decoder_channels) != self.vit.num_doublings:
            raise ValueError(
                f"A token of {self.vit.token_px} px takes {self.vit.num_doublings} doublings and as many "
                f"decoder_channels, got {self.decoder_channels}."
            )
        if self.tile_px <= 2 * self.margin_px or self.tile_px % self.multiple_px:
            raise ValueError(
                f"tile_px must be a multiple of {self.multiple_px} above 2 * margin_px, got tile_px={self.tile_px}, "
                f"margin_px={self.margin_px}."
            )

    @property
    def decoder(self) -> DecoderKind:
        """Which decoder turns the network's maps into instances."""
        return "hv" if self.architecture == "cellvit" else "flows"

    @property
    def channels(self) -> dict[str, slice]:
        """What the output's channels are, in order.

        Flows: `flow` (dy, dx) and `type` (logits of background and classes). Hv: `nucleus` (logits of background and
        nucleus), `hv` (horizontal, vertical; -1 to 1 across a nucleus) and `type`, whose background is learnt but
        not read.
        """
        widths = {"flow": FLOW_CHANNELS} if self.decoder == "flows" else {"nucleus": 2, "hv": 2}
        parts: dict[str, slice] = {}
        start = 0
        for name, width in {**widths, "type": 1 + len(self.ontology)}.items():
            parts[name] = slice(start, start + width)
            start += width
        return parts

    @property
    def num_outputs(self) -> int:
        """Channels of the network's output."""
        return self.channels["type"].stop

    @property
    def multiple_px(self) -> int:
        """Sides of images are multiples of this."""
        return self.vit.token_px if self.vit is not None else _TILE_MULTIPLES_PX[self.architecture]

    def to_json(self) -> dict[str, Any]:
        """The config as plain JSON types, read back by `ModelConfig.from_json`."""
        document: dict[str, Any] = {
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
        # Left out where there is none: digests of models without one stay what they were.
        if self.vit is not None:
            document["vit"] = self.vit.to_json()
        if self.mask_limits != MaskLimits():
            document["mask_limits"] = asdict(self.mask_limits)
        return document

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
                vit=VitEncoder.from_json(document["vit"]) if "vit" in document else None,
                mask_limits=MaskLimits.from_json(document["mask_limits"])
                if "mask_limits" in document
                else MaskLimits(),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"A model config lacks or misuses a field: {error!r}.") from error


def builtin_config(
    architecture: Architecture,
    *,
    ontology: Ontology | None = None,
    name: str = "",
    encoder: str | None = None,
    target_mpp: float | None = None,
) -> ModelConfig:
    """The config of an architecture at its usual size.

    Args:
        architecture: which one.
        ontology: its classes; `refined7` unless given.
        name: what people will call it; the architecture's unless given.
        encoder: for `teacher` and `cellvit`, a known foundation model; H-optimus-0 and H0-mini unless given.
        target_mpp: um per px of the model grid; 0.5 unless given. At 0.25, the scale of PanNuke and MoNuSAC and so the
            papers', tiles and tokens of `teacher` and `cellvit` have twice the pixels and cover the same tissue.

    Raises:
        ValueError: when the encoder is unknown, or the architecture takes no other.
    """
    if architecture not in get_args(Architecture):
        raise ValueError(f"architecture must be one of {get_args(Architecture)}, got {architecture!r}.")
    if architecture in _DECODER_CHANNELS:
        chosen = encoder or ("H-optimus-0" if architecture == "teacher" else "H0-mini")
        base = _token_config(architecture, chosen, target_mpp=target_mpp or 0.5)
    elif encoder is not None:
        raise ValueError(f"builtin_config chooses encoders of teacher and cellvit, not of {architecture}: {encoder!r}.")
    else:
        base = replace(_BUILTIN[architecture], target_mpp=target_mpp or _BUILTIN[architecture].target_mpp)
    return replace(base, name=name or architecture, ontology=ontology or base.ontology)


def with_encoder(config: ModelConfig, name: str, vit: VitEncoder) -> ModelConfig:
    """`config`, a teacher's or a cellvit's, over another vision transformer (`vit_encoders.timm_encoder` makes one).

    Pixels are normalised as a known foundation model of that name was trained, otherwise as before.

    Raises:
        ValueError: when the decoder's widths do not fit its tokens.
    """
    known = KNOWN_ENCODERS.get(name)
    mean = known.pixel_mean_rgb if known else config.pixel_mean_rgb
    std = known.pixel_std_rgb if known else config.pixel_std_rgb
    return replace(config, encoder=name, vit=vit, pixel_mean_rgb=mean, pixel_std_rgb=std)


def _triple(values: Any) -> Normalisation:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _token_config(architecture: Architecture, encoder: str, *, target_mpp: float) -> ModelConfig:
    """A `teacher` or `cellvit` whose tokens cover about `_TOKEN_UM`."""
    token_px = 1 << max(1, round(math.log2(_TOKEN_UM / target_mpp)))
    known, widths = known_encoder(encoder), _DECODER_CHANNELS[architecture]
    vit = known.encoder(token_px=token_px, frozen=architecture == "teacher")
    if vit.num_doublings > len(widths):
        raise ValueError(f"target_mpp must be at least 0.2 for {architecture}, got {target_mpp}.")
    return ModelConfig(
        name=architecture,
        architecture=architecture,
        encoder=encoder,
        encoder_channels=(),
        encoder_blocks=(),
        decoder_channels=widths[: vit.num_doublings],
        ontology=get_ontology("refined7"),
        target_mpp=target_mpp,
        tile_px=32 * token_px,
        margin_px=4 * token_px,
        pixel_mean_rgb=known.pixel_mean_rgb,
        pixel_std_rgb=known.pixel_std_rgb,
        vit=vit,
    )


_DECODER_CHANNELS: dict[Architecture, tuple[int, ...]] = {
    "teacher": (64, 128, 256, 512),
    "cellvit": (64, 128, 256, 512),
}
"""Widths at 1, 2, 4 and 8 px: for `cellvit` CellViT's, for `teacher` those that come near the paper's total."""

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

_RESNET50_UNET = ModelConfig(
    name="resnet50_unet",
    architecture="resnet50_unet",
    encoder="resnet50",
    encoder_channels=(),
    encoder_blocks=(),
    decoder_channels=(16, 32, 64, 128, 256),
    ontology=get_ontology("refined7"),
    pixel_mean_rgb=(123.675, 116.28, 103.53),  # ImageNet's, which its first weights know
    pixel_std_rgb=(58.395, 57.12, 57.375),
)

_BUILTIN: dict[Architecture, ModelConfig] = {"lite": _LITE, "student": _STUDENT, "resnet50_unet": _RESNET50_UNET}
