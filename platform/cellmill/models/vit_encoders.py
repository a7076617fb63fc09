"""Vision transformers that feed a decoder: which timm graph, which of its blocks, how its patches meet the pixel grid.

A `VitEncoder` is plain data; `networks.vit_encoder` builds it. `known_encoder` knows the pathology foundation models by
the names of their model cards, `timm_encoder` takes any plain vision transformer that timm has.

Patches and pixels: an encoder with 14 px patches cannot see 256 px. So the network resizes a tile until one token
covers exactly `token_px` px of the model grid, a power of two, and a decoder that doubles its maps log2(token_px) times
ends on the tile's own pixels. At 0.25 um/px `token_px` is 16: a 256 px tile of PanNuke is shrunk to 224 px for patches
of 14, which is what H-optimus-0 was trained on, 16 x 16 tokens at their own position embeddings; nothing is padded or
cut off, and the maps need no resampling. At 0.5 um/px it is 8 (the tile is enlarged by 14 / 8), so that a token covers
the same 4 um. Where a tile has more tokens than the encoder was trained on, timm interpolates position embeddings.

Blocks are counted from 1, as UNETR (Hatamizadeh et al., WACV 2022) counts its z_i, the outputs of block i: the paper
(Shvetsov et al. 2025, section 3) writes Z_i with i in [1, 14, 26, 38] in that notation. HistoPLUS (Adjadj et al. 2025,
Methods) takes every quarter: 3, 6, 9, 12 of a ViT-B. `spaced_blocks` does that for every encoder but H-optimus-0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["KNOWN_ENCODERS", "KnownEncoder", "VitEncoder", "known_encoder", "spaced_blocks", "timm_encoder"]

_Scalar = int | float | bool | str

_OPTIONS = frozenset({
    "img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "qk_norm", "init_values",
    "class_token", "reg_tokens", "no_embed_class", "pre_norm", "mlp_layer", "act_layer",
})  # fmt: skip
"""What a model.json may ask of timm: sizes and layers, nothing that reads a file or the network."""

_MLP_LAYERS = frozenset({"Mlp", "SwiGLUPacked", "SwiGLU", "GluMlp"})


@dataclass(frozen=True)
class VitEncoder:
    """One vision transformer as an encoder of `teacher` or `cellvit`."""

    timm_name: str
    """timm's name of the graph."""
    options: tuple[tuple[str, _Scalar], ...]
    """What differs from timm's defaults, as sorted pairs; layers by name."""
    patch_px: int
    """Side of a patch in the encoder's own pixels."""
    blocks: tuple[int, ...]
    """Blocks whose tokens the decoder takes, counted from 1, rising."""
    token_px: int
    """Side of what a token covers, in px of the model grid; a power of two."""
    frozen: bool = True
    """Whether training leaves the encoder as it is."""
    sha256: str = ""
    """Of the file that holds the encoder's weights; empty where they are in the model's own weights file."""

    def __post_init__(self) -> None:
        _check_options(dict(self.options))
        if not self.blocks or list(self.blocks) != sorted(set(self.blocks)) or self.blocks[0] < 1:
            raise ValueError(f"blocks must rise from 1 on, got {self.blocks}.")
        if self.token_px < 2 or self.token_px & (self.token_px - 1):
            raise ValueError(f"token_px must be a power of two above 1, got {self.token_px}.")
        if self.num_doublings > len(self.blocks):
            raise ValueError(
                f"token_px {self.token_px} takes {self.num_doublings} doublings and as many blocks, got {self.blocks}."
            )
        if self.patch_px < 1:
            raise ValueError(f"patch_px must be positive, got {self.patch_px}.")
        if self.sha256 and not self.frozen:
            raise ValueError("Weights of an encoder that is trained belong in the model's own file, not in another.")

    @property
    def num_doublings(self) -> int:
        """How often a decoder doubles its maps, from tokens to pixels."""
        return self.token_px.bit_length() - 1

    def encoder_px(self, side_px: int) -> int:
        """Side of what the encoder sees of `side_px` px of the model grid."""
        return side_px // self.token_px * self.patch_px

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, read back by `from_json`."""
        return {
            "timm_name": self.timm_name,
            "options": dict(self.options),
            "patch_px": self.patch_px,
            "blocks": list(self.blocks),
            "token_px": self.token_px,
            "frozen": self.frozen,
            "sha256": self.sha256,
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "VitEncoder":
        """Parse what `to_json` wrote.

        Raises:
            ValueError, KeyError, TypeError: when a field is missing or out of range.
        """
        return VitEncoder(
            timm_name=str(document["timm_name"]),
            options=_sorted_options(document["options"]),
            patch_px=int(document["patch_px"]),
            blocks=tuple(int(block) for block in document["blocks"]),
            token_px=int(document["token_px"]),
            frozen=bool(document["frozen"]),
            sha256=str(document["sha256"]),
        )


@dataclass(frozen=True)
class KnownEncoder:
    """A published foundation model: its graph, where its weights are, and the pixels it was trained on."""

    timm_name: str
    options: tuple[tuple[str, _Scalar], ...]
    patch_px: int
    blocks: tuple[int, ...]
    hub: str
    """Its repository on the Hugging Face hub."""
    num_parameters: int
    """Of the graph without a head; tested against what timm builds."""
    pixel_mean_rgb: tuple[float, float, float]
    pixel_std_rgb: tuple[float, float, float]

    def encoder(self, *, token_px: int, frozen: bool = True) -> VitEncoder:
        """It as the encoder of a network."""
        return VitEncoder(self.timm_name, self.options, self.patch_px, self.blocks, token_px, frozen)


def spaced_blocks(depth: int, num_blocks: int = 4) -> tuple[int, ...]:
    """`num_blocks` of `depth` blocks at even distances, counted from 1, the last one included.

    Raises:
        ValueError: when there are fewer blocks than that.
    """
    if depth < num_blocks:
        raise ValueError(f"An encoder of {depth} blocks has no {num_blocks} to take tokens from.")
    return tuple(depth * number // num_blocks for number in range(1, num_blocks + 1))


def known_encoder(name: str) -> KnownEncoder:
    """A foundation model by the name of its model card.

    Raises:
        ValueError: when it is not known here.
    """
    if name not in KNOWN_ENCODERS:
        raise ValueError(f"encoder must be one of {', '.join(KNOWN_ENCODERS)} or a ViT of timm's, got {name!r}.")
    return KNOWN_ENCODERS[name]


def timm_encoder(
    timm_name: str, *, token_px: int, frozen: bool = True, num_blocks: int = 4, **options: _Scalar
) -> VitEncoder:
    """Any plain vision transformer of timm's, with evenly spaced blocks.

    Args:
        timm_name: its name there, as `vit_tiny_patch16_224`.
        token_px: side of what a token covers, in px of the model grid.
        frozen: whether training leaves it as it is.
        num_blocks: how many blocks the decoder takes tokens from.
        options: what differs from timm's defaults, as `depth=4`.

    Raises:
        ValueError: when timm has no such model, or it is no plain vision transformer.
    """
    from cellmill.models.networks.vit_encoder import measure_vit

    _check_options(options)
    chosen = _sorted_options(options)
    patch_px, depth = measure_vit(timm_name, chosen)
    return VitEncoder(timm_name, chosen, patch_px, spaced_blocks(depth, num_blocks), token_px, frozen)


def _check_options(options: Mapping[str, object]) -> None:
    unknown = sorted(options.keys() - _OPTIONS)
    if unknown:
        raise ValueError(f"Encoder options must be of {', '.join(sorted(_OPTIONS))}; got {', '.join(unknown)}.")
    compound = sorted(name for name, value in options.items() if not isinstance(value, int | float | bool | str))
    if compound:
        raise ValueError(f"Encoder options are numbers, flags and names, got others for {', '.join(compound)}.")
    layer = options.get("mlp_layer", "Mlp")
    if layer not in _MLP_LAYERS:
        raise ValueError(f"mlp_layer must be one of {', '.join(sorted(_MLP_LAYERS))}, got {layer!r}.")


def _sorted_options(options: Mapping[str, _Scalar]) -> tuple[tuple[str, _Scalar], ...]:
    return tuple(sorted(options.items()))


_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_BIOPTIMUS = ((180.341865, 147.576895, 179.423265), (54.030165, 58.679835, 45.266835))
"""0.707223, 0.578729, 0.703617 and 0.211883, 0.230117, 0.177517 of 255, from the model cards."""
_SWIGLU: dict[str, _Scalar] = {"act_layer": "silu", "init_values": 1e-5, "mlp_layer": "SwiGLUPacked"}

KNOWN_ENCODERS: dict[str, KnownEncoder] = {
    "H-optimus-0": KnownEncoder(
        timm_name="vit_giant_patch14_reg4_dinov2",
        options=_sorted_options({"img_size": 224, "init_values": 1e-5}),
        patch_px=14,
        blocks=(1, 14, 26, 38),
        hub="bioptimus/H-optimus-0",
        num_parameters=1_134_774_272,
        pixel_mean_rgb=_BIOPTIMUS[0],
        pixel_std_rgb=_BIOPTIMUS[1],
    ),
    "H0-mini": KnownEncoder(
        timm_name="vit_base_patch14_reg4_dinov2",
        options=_sorted_options({**_SWIGLU, "img_size": 224, "mlp_ratio": 5.33334}),
        patch_px=14,
        blocks=spaced_blocks(12),
        hub="bioptimus/H0-mini",
        num_parameters=85_739_520,
        pixel_mean_rgb=_BIOPTIMUS[0],
        pixel_std_rgb=_BIOPTIMUS[1],
    ),
    "UNI": KnownEncoder(
        timm_name="vit_large_patch16_224",
        options=_sorted_options({"init_values": 1e-5}),
        patch_px=16,
        blocks=spaced_blocks(24),
        hub="MahmoodLab/UNI",
        num_parameters=303_350_784,
        pixel_mean_rgb=_IMAGENET[0],
        pixel_std_rgb=_IMAGENET[1],
    ),
    "UNI2-h": KnownEncoder(
        timm_name="vit_giant_patch14_224",
        options=_sorted_options(
            {
                **_SWIGLU,
                "depth": 24,
                "embed_dim": 1536,
                "mlp_ratio": 5.33334,
                "no_embed_class": True,
                "num_heads": 24,
                "reg_tokens": 8,
            }
        ),
        patch_px=14,
        blocks=spaced_blocks(24),
        hub="MahmoodLab/UNI2-h",
        num_parameters=681_394_176,
        pixel_mean_rgb=_IMAGENET[0],
        pixel_std_rgb=_IMAGENET[1],
    ),
    "Virchow2": KnownEncoder(
        timm_name="vit_huge_patch14_224",
        options=_sorted_options({**_SWIGLU, "mlp_ratio": 5.3375, "reg_tokens": 4}),
        patch_px=14,
        blocks=spaced_blocks(32),
        hub="paige-ai/Virchow2",
        num_parameters=631_239_424,
        pixel_mean_rgb=_IMAGENET[0],
        pixel_std_rgb=_IMAGENET[1],
    ),
}
