"""timm's graphs by name, without weights: the one place where a name from a config reaches timm."""

import difflib
from typing import Any

from torch import nn

__all__ = ["create_graph"]


def create_graph(name: str, **options: Any) -> nn.Module:
    """A timm model with fresh random weights.

    Raises:
        ValueError: when timm has none of that name, or it does not take these options.
    """
    # Slow to import and needed by some networks only.
    import timm

    # Names with a scheme ("hf-hub:", "local-dir:") would fetch or read files; a config is data.
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(
            f"timm {timm.__version__} has no model {name!r}"
            + (f"; near it are {', '.join(near)}." if near else ".")
            + " timm.list_models('*vit*') lists names."
        )
    try:
        return timm.create_model(name, pretrained=False, **options)
    except (TypeError, KeyError, AssertionError, RuntimeError) as error:
        raise ValueError(f"timm cannot build {name!r} with {options}: {error}") from error
