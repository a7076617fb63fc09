"""Cell classifiers: a timm encoder with dropout before its last layer, saved as JSON and safetensors.

Maps float32 crops (B, 3, S, S) of raw 0..255 RGB to logits (B, classes). Shvetsov et al. 2025, section 2: ResNet50 with
one dropout layer of p = 0.5. The paper does not say what its weights start from; here they start from ImageNet's (from
timm's hub or a local file), or at random where that is asked for.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cellmill_training.relabel.crops import CropConfig
from cellmill_training.relabel.small_encoders import SMALL_ENCODERS

__all__ = [
    "IMAGENET",
    "RANDOM",
    "CellClassifier",
    "ClassifierConfig",
    "LoadedClassifier",
    "initial_encoder",
    "load_classifier",
    "predict",
    "save_classifier",
]

CONFIG_FILE = "classifier.json"
WEIGHTS_FILE = "weights.safetensors"
IMAGENET, RANDOM = "imagenet", "random"

_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, in grey levels
_BATCH = 256


@dataclass(frozen=True)
class ClassifierConfig:
    """What a classifier is and what it looks at."""

    class_names: tuple[str, ...]
    """In the order of its outputs."""
    encoder: str = "resnet50"
    """Name of a timm model, or of one of `SMALL_ENCODERS`."""
    dropout: float = 0.5
    """Before the last layer."""
    crop: CropConfig = field(default_factory=CropConfig)
    """How cells are cut out."""
    trained_on: tuple[tuple[str, str], ...] = ()
    """Name and digest of each data set it learned from."""

    def __post_init__(self) -> None:
        if len(self.class_names) < 2 or len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"A classifier needs two different classes or more, got {self.class_names}.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}.")

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "ClassifierConfig":
        """Parse what `asdict` and JSON make of a config."""
        return ClassifierConfig(
            class_names=tuple(document["class_names"]),
            encoder=str(document["encoder"]),
            dropout=float(document["dropout"]),
            crop=CropConfig(**document["crop"]),
            trained_on=tuple((str(name), str(digest)) for name, digest in document["trained_on"]),
        )


class CellClassifier(nn.Module):
    """Normalisation, encoder, dropout, linear layer."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.num_classes = len(config.class_names)
        self.encoder = _encoder(config.encoder, num_classes=len(config.class_names), dropout=config.dropout)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, crops: Tensor) -> Tensor:
        """Logits (B, classes) of crops (B, 3, S, S), 0..255."""
        return cast(Tensor, self.encoder((crops - self.mean) / self.std))


def _require_known(name: str) -> None:
    import timm

    if name not in SMALL_ENCODERS and not timm.is_model(name):
        near = ", ".join(timm.list_models(f"{name[:6]}*")[:5]) or "see timm.list_models()"
        raise ValueError(f"timm has no model called {name!r}; near it are: {near}.")


def _encoder(name: str, *, num_classes: int, dropout: float, pretrained: bool = False) -> nn.Module:
    import timm

    _require_known(name)
    if name in SMALL_ENCODERS:
        return SMALL_ENCODERS[name](num_classes, dropout)
    return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, drop_rate=dropout)


def initial_encoder(config: ClassifierConfig, weights: str) -> dict[str, Tensor]:
    """Weights of the encoder to start from; without those of the last layer unless they are random.

    Args:
        config: of the classifier.
        weights: `imagenet` for timm's pretrained weights, `random`, or a safetensors or torch file of the encoder's
            weights (of any number of classes); never a pickle of code.

    Raises:
        ValueError: when there are no such weights, saying what to give instead.
    """
    if weights == RANDOM:
        return {}
    if weights == IMAGENET:
        return _without_head(_from_hub(config), config)
    path = Path(weights)
    if not path.is_file():
        raise ValueError(
            f"--weights must be {IMAGENET!r}, {RANDOM!r} or a file of weights of {config.encoder}, got {weights!r}, "
            "which is no file."
        )
    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged, or a pickle of more than tensors, which is not read
        raise ValueError(
            f"{path} cannot be read as weights ({type(error).__name__}): give safetensors, or a torch state dict of "
            "tensors alone."
        ) from error
    return _without_head(cast(dict[str, Tensor], state), config)


def _from_hub(config: ClassifierConfig) -> dict[str, Tensor]:
    _require_known(config.encoder)
    if config.encoder in SMALL_ENCODERS:
        raise ValueError(f"{config.encoder} has no pretrained weights: give --weights {RANDOM}, or a file of its own.")
    try:
        network = _encoder(config.encoder, num_classes=len(config.class_names), dropout=0.0, pretrained=True)
    except Exception as error:  # whatever the hub's client raises: offline, gated, no such weights
        raise ValueError(
            f"The pretrained weights of {config.encoder} could not be fetched from the hub ({type(error).__name__}). "
            "Give a local file (--weights FILE, safetensors or a torch state dict, fetched where there is a network), "
            f"or train from random weights (--weights {RANDOM}), which needs more data."
        ) from error
    return network.state_dict()


def _without_head(state: dict[str, Tensor], config: ClassifierConfig) -> dict[str, Tensor]:
    """What fits the encoder; a file that is of another network is refused."""
    own = _encoder(config.encoder, num_classes=len(config.class_names), dropout=0.0)
    head = tuple(f"{name}." for name in _head_names(own))
    wanted = {name: value for name, value in own.state_dict().items() if not name.startswith(head)}
    unfit = [name for name, value in wanted.items() if name not in state or state[name].shape != value.shape]
    if unfit:
        raise ValueError(
            f"The weights are not of {config.encoder}: {len(unfit)} of its {len(wanted)} tensors are missing or of "
            f"another shape, the first is {unfit[0]!r}. Name the encoder they belong to."
        )
    return {name: state[name] for name in wanted}


def _head_names(network: nn.Module) -> tuple[str, ...]:
    named = cast(dict[str, Any], getattr(network, "default_cfg", {})).get("classifier", "fc")
    return tuple(named) if isinstance(named, (list, tuple)) else (str(named),)


@dataclass(frozen=True)
class LoadedClassifier:
    """A trained classifier."""

    config: ClassifierConfig
    network: CellClassifier
    digest: str
    """sha256 over config and weights."""

    @property
    def name(self) -> str:
        """What a relabelled cell names as its origin: encoder, classes, and the digest's first 12 digits."""
        return f"{self.config.encoder}[{','.join(self.config.class_names)}]@{self.digest[:12]}"


def save_classifier(config: ClassifierConfig, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write `classifier.json` and `weights.safetensors`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{WEIGHTS_FILE}.partial"
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, partial)
    partial.replace(folder / WEIGHTS_FILE)
    partial = folder / f"{CONFIG_FILE}.partial"
    partial.write_text(json.dumps(asdict(config), indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / CONFIG_FILE)


def load_classifier(folder: Path) -> LoadedClassifier:
    """Read what `save_classifier` wrote.

    Raises:
        ValueError: when the folder holds no classifier or its weights do not fit, naming the folder.
    """
    try:
        text = (folder / CONFIG_FILE).read_bytes()
        content = (folder / WEIGHTS_FILE).read_bytes()
        config = ClassifierConfig.from_json(json.loads(text))
        network = CellClassifier(config)
        network.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{folder} holds no usable cell classifier ({CONFIG_FILE} and {WEIGHTS_FILE}): {error}"
        ) from error
    return LoadedClassifier(config, network.eval(), hashlib.sha256(text + content).hexdigest())


def predict(
    network: CellClassifier, crops: npt.NDArray[np.uint8], *, device: torch.device | None = None
) -> npt.NDArray[np.float32]:
    """Class probabilities (n, classes) of crops (n, S, S, 3)."""
    on = device or torch.device("cpu")
    network.eval().to(on)
    parts: list[npt.NDArray[np.float32]] = []
    with torch.inference_mode():
        for start in range(0, len(crops), _BATCH):
            # Copied: torch takes no array that is mapped into memory for reading.
            batch = torch.from_numpy(np.array(crops[start : start + _BATCH])).to(on)
            logits = network(batch.permute(0, 3, 1, 2).float())
            parts.append(torch.softmax(logits.float(), dim=1).cpu().numpy())
    return np.concatenate([np.zeros((0, network.num_classes), np.float32), *parts])
