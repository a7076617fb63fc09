"""Checkpoints of a fit that keeps its best epoch: a state is a dataclass, and its fields are all that a resume needs.

In: a state of networks, optimisers, tensors and plain values. Out: a file with each field under its name; networks and
optimisers are there as their state dicts.
"""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["copied_weights", "load_state", "save_state"]

_STATEFUL = (nn.Module, torch.optim.Optimizer)


def save_state(state: "DataclassInstance", path: Path) -> None:
    """Write a checkpoint whole or not at all."""
    values: dict[str, Any] = {field.name: getattr(state, field.name) for field in fields(state)}
    partial = path.with_suffix(".partial")
    torch.save(
        {name: value.state_dict() if isinstance(value, _STATEFUL) else value for name, value in values.items()}, partial
    )
    partial.replace(path)


def load_state(state: "DataclassInstance", path: Path) -> None:
    """Continue from a checkpoint that `save_state` wrote; only tensors and plain values are read."""
    document = cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True))
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, _STATEFUL):
            value.load_state_dict(document[field.name])
        else:
            setattr(state, field.name, document[field.name])


def copied_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights as they are now, untouched by later steps."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
