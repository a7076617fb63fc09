"""A timm vision transformer whose inner blocks' tokens feed a decoder.

Normalised images (B, 3, H, W) in, one map of tokens (B, D, H / token_px, W / token_px) for each chosen block out.
`cellmill.models.vit_encoders` says which blocks, and how patches meet pixels.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cellmill.models.networks.timm_graphs import create_graph
from cellmill.models.vit_encoders import VitEncoder

__all__ = ["VitTokens", "measure_vit"]


class VitTokens(nn.Module):
    """The transformer; frozen, it is always in evaluation mode and no parameter of it has a gradient."""

    def __init__(self, vit: VitEncoder) -> None:
        super().__init__()
        self.vit = vit
        self.body = _create_vit(vit.timm_name, vit.options)
        self.width = cast(int, self.body.embed_dim)
        depth = len(cast(nn.Sequential, self.body.blocks))
        if vit.blocks[-1] > depth:
            raise ValueError(f"Encoder {vit.timm_name!r} has {depth} blocks, blocks asks for {vit.blocks}.")
        patch = _patch_px(self.body)
        if patch != (vit.patch_px, vit.patch_px):
            raise ValueError(f"Encoder {vit.timm_name!r} has patches of {patch}, patch_px says {vit.patch_px}.")
        self._freeze()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Tokens after each chosen block, (B, D, h, w) each, not normalised; the prefix tokens are left out.

        Raises:
            ValueError: when the sides are no multiples of `token_px`, or the encoder was never given its weights.
        """
        if next(self.parameters()).is_meta and not pixels.is_meta:
            raise ValueError(
                f"Encoder {self.vit.timm_name!r} has no weights: the config names their file by sha256 "
                f"{self.vit.sha256}; LoadedModel.build and encoder_weights.restore_encoder fill it in."
            )
        height, width = pixels.shape[-2:]
        if height % self.vit.token_px or width % self.vit.token_px:
            raise ValueError(f"Sides must be multiples of {self.vit.token_px} px, got {height} x {width}.")
        if self.vit.token_px != self.vit.patch_px:
            # No wider filter for the 8 / 7 of shrinking: it would hardly be wider than bilinear's own.
            size = (self.vit.encoder_px(height), self.vit.encoder_px(width))
            pixels = functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
        indices = [block - 1 for block in self.vit.blocks]
        tokens = self.body.forward_intermediates(  # pyright: ignore[reportCallIssue]
            pixels, indices=indices, intermediates_only=True, stop_early=True, output_fmt="NCHW"
        )
        return tuple(cast(list[Tensor], tokens))

    def settle(self, side_px: int) -> None:
        """Interpolate position embeddings for squares of `side_px`, and take no others from now on.

        Backends need it: they run one tile size, and OpenVINO has no antialiased bicubic filter, which timm would
        put in the graph.
        """
        body = cast(Any, self.body)
        side = self.vit.encoder_px(side_px)
        body.set_input_size(img_size=(side, side))
        # What timm sets up where sizes do not change: patches come flat, and positions are added as they are.
        body.dynamic_img_size, body.patch_embed.flatten = False, True
        self._freeze()

    def train(self, mode: bool = True) -> "VitTokens":
        """Frozen, it stays in evaluation mode."""
        return super().train(mode and not self.vit.frozen)

    def _freeze(self) -> None:
        """No gradients where nothing is learnt: all of it, or what lies behind the last chosen block."""
        if self.vit.frozen:
            self.requires_grad_(False).eval()
            return
        behind = [f"blocks.{number}." for number in range(self.vit.blocks[-1], 10_000)]
        for name, parameter in self.body.named_parameters():
            if name.startswith(("norm.", "fc_norm.", "head.", *behind)):
                parameter.requires_grad_(False)


def measure_vit(timm_name: str, options: tuple[tuple[str, Any], ...]) -> tuple[int, int]:
    """Patch in px and depth of a timm vision transformer, without its weights.

    Raises:
        ValueError: when timm has no such model, or it is no plain vision transformer with square patches.
    """
    with torch.device("meta"):
        body = _create_vit(timm_name, options)
    patch = _patch_px(body)
    if patch[0] != patch[1]:
        raise ValueError(f"Encoder {timm_name!r} has patches of {patch}; only square ones are taken.")
    return patch[0], len(cast(nn.Sequential, body.blocks))


def _patch_px(body: nn.Module) -> tuple[int, int]:
    return cast(tuple[int, int], cast(nn.Module, body.patch_embed).patch_size)


def _create_vit(timm_name: str, options: tuple[tuple[str, Any], ...]) -> nn.Module:
    import timm
    import timm.layers

    if timm.is_model(timm_name) and timm_name not in timm.list_models(module="vision_transformer"):
        raise ValueError(
            f"Encoder {timm_name!r} is no plain vision transformer; teacher and cellvit take those of timm's "
            "vision_transformer module, all of whose blocks have one width and one grid of tokens."
        )
    chosen = dict(options)
    if "mlp_layer" in chosen:
        chosen["mlp_layer"] = getattr(timm.layers, chosen["mlp_layer"])  # one of four names, see `VitEncoder`
    return create_graph(timm_name, num_classes=0, dynamic_img_size=True, **chosen)
