"""Models on disk: a folder with `model.json` and `weights.safetensors`, no pickle ever read.

`load_model` takes such a folder, the name of a packaged model (`lite`) or an MLflow URI (`models:/name/3`,
`models:/name@alias`). The digest is taken over config and weights, so equal digests mean equal predictions on one
backend; a cell set records it. A folder is all that is needed, but for a frozen foundation model: its weights lie in a
file of their own, which the config names by hash (`encoder_weights`).
"""

import hashlib
import json
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy.typing as npt
from safetensors.numpy import load as load_arrays

from cellmill.models.config import ModelConfig
from cellmill.models.encoder_weights import EncoderWeightsError, encoder_source, find_encoder_file, restore_encoder
from cellmill.models.registry import RegistryError, find_version, is_registry_uri, version_folder

if TYPE_CHECKING:
    # A worker whose network needs no torch is up seconds sooner and half a gigabyte smaller without it.
    from torch import Tensor, nn

    from cellmill.models.networks import CellNetwork

__all__ = [
    "ConvertedGraph",
    "LoadedModel",
    "ModelNotFoundError",
    "load_model",
    "model_folder",
    "packaged_models",
    "save_model",
    "weights_of",
]

CONFIG_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
_PACKAGED = Path(__file__).parent / "packaged"
_ENCODER = "encoder."
"""What the names of an encoder's tensors begin with."""


class ModelNotFoundError(ValueError):
    """No model answers to the given name, folder or URI, or what is there is not a model."""


@dataclass(frozen=True)
class ConvertedGraph:
    """A network in OpenVINO's form, for one shape of batch, as bytes that travel to workers."""

    tile_px: int
    batch_size: int
    topology: bytes
    """The XML of the graph."""
    weights: bytes
    """The tensors it refers to."""


@dataclass(frozen=True)
class LoadedModel:
    """A model's config, weights and digest, not yet built."""

    config: ModelConfig
    weights: Mapping[str, npt.NDArray[Any]]
    """By the names of the network's parameters and buffers; without an encoder that the config names by hash."""
    digest: str
    """sha256 over the canonical config and the weights file."""
    card: str
    """The model card's text; empty where the folder has none."""
    source: str
    """Where it was loaded from: a folder, a packaged name, or `models:/<name>/<version>`."""
    converted: ConvertedGraph | None = None
    """What `inference.prepared` made of it, once for all workers."""
    encoders: str = ""
    """Folder or file of an encoder's weights; empty for the hub."""

    def state_dict(self) -> "dict[str, Tensor]":
        """The weights as torch takes them."""
        import torch

        return {name: torch.from_numpy(value.copy()) for name, value in self.weights.items()}

    def build(self) -> "CellNetwork":
        """The network with its weights, in evaluation mode.

        Raises:
            EncoderWeightsError: when the encoder's own file is not here, or is another.
        """
        from cellmill.models.networks import build_model

        network = build_model(self.config)
        found = network.load_state_dict(self.state_dict(), strict=False)
        absent = [
            name for name in found.missing_keys if not (_names_encoder(self.config) and name.startswith(_ENCODER))
        ]
        assert not absent and not found.unexpected_keys, "load_model checks this"
        if _names_encoder(self.config):
            restore_encoder(network, source=self.encoders or None)
        return network.eval()


def weights_of(network: "nn.Module") -> dict[str, npt.NDArray[Any]]:
    """A network's weights as `LoadedModel` holds them."""
    return {name: value.detach().cpu().numpy() for name, value in network.state_dict().items()}


def packaged_models() -> tuple[str, ...]:
    """Names of the models that ship inside the package."""
    return tuple(sorted(path.parent.name for path in _PACKAGED.glob(f"*/{CONFIG_FILE}")))


def load_model(spec: str | Path, *, encoders: str | Path | None = None) -> LoadedModel:
    """Read a model.

    Args:
        spec: a folder, a packaged name, or an MLflow `models:/` URI.
        encoders: folder or file of the weights of a frozen foundation model; CELLMILL_ENCODERS unless given.

    Raises:
        ModelNotFoundError: when there is no such model, or its files are broken or do not fit each other, or the
            weights of its encoder cannot be had.
    """
    with model_folder(spec) as (folder, source):
        return _read_folder(folder, source=source, encoders=encoders)


@contextmanager
def model_folder(spec: str | Path) -> Generator[tuple[Path, str]]:
    """The folder of a model's files while the block runs, and what names it: of an alias, the version it means now.

    Raises:
        ModelNotFoundError: when there is no such folder, packaged model or registered version.
    """
    text = str(spec)
    if is_registry_uri(text):
        with ExitStack() as stack:
            try:
                version = find_version(text)
                folder = stack.enter_context(version_folder(version))
            except RegistryError as error:
                raise ModelNotFoundError(f"No model can be had from MLflow. {error}") from error
            yield folder, version.uri
        return
    folder = _PACKAGED / text if text in packaged_models() else Path(text)
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"--model takes a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, a packaged model "
            f"({', '.join(packaged_models()) or 'none here'}) or a models:/ URI; {text!r} is none of these."
        )
    yield folder, text


def save_model(config: ModelConfig, state_dict: "Mapping[str, Tensor]", folder: Path, *, card: str = "") -> None:
    """Write a model folder that `load_model` reads; each file appears whole or not at all.

    An encoder whose file the config names by hash is left out.
    """
    from safetensors.torch import save as save_tensors

    folder.mkdir(parents=True, exist_ok=True)
    kept = [name for name in state_dict if not (_names_encoder(config) and name.startswith(_ENCODER))]
    tensors = {name: state_dict[name].detach().cpu().contiguous() for name in kept}
    _put(folder / WEIGHTS_FILE, save_tensors(tensors))
    _put(folder / CONFIG_FILE, (json.dumps(config.to_json(), indent=2) + "\n").encode())
    if card:
        _put(folder / "MODEL_CARD.md", card.encode())


def _names_encoder(config: ModelConfig) -> bool:
    """Whether the encoder's weights are in a file of their own."""
    return config.vit is not None and bool(config.vit.sha256)


def _put(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


def _read_folder(folder: Path, *, source: str, encoders: str | Path | None) -> LoadedModel:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ModelNotFoundError(f"Model {source!r}: {folder} has no {name}. Only safetensors weights are read.")
    try:
        config = ModelConfig.from_json(cast(dict[str, Any], json.loads((folder / CONFIG_FILE).read_bytes())))
        content = (folder / WEIGHTS_FILE).read_bytes()
        weights = load_arrays(content)
    except Exception as error:
        raise ModelNotFoundError(f"Model {source!r} in {folder} cannot be read: {error}") from error
    if folder.parent != _PACKAGED:  # those are tested to fit, and the check needs torch
        _require_fit(config, weights, source=source)
    if _names_encoder(config):
        _require_encoder(config, source=source, encoders=encoders)
    digest = hashlib.sha256(config.canonical_bytes() + b"\0" + hashlib.sha256(content).digest()).hexdigest()
    card = folder / "MODEL_CARD.md"
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    # Settled here, so that workers look where the driver looked.
    return LoadedModel(config, weights, digest, text, source, encoders=encoder_source(encoders))


def _require_encoder(config: ModelConfig, *, source: str, encoders: str | Path | None) -> None:
    """Said before a run starts, not by its first worker."""
    try:
        find_encoder_file(config, source=encoders)
    except EncoderWeightsError as error:
        raise ModelNotFoundError(f"Model {source!r}: {error}") from error


def _require_fit(config: ModelConfig, weights: Mapping[str, npt.NDArray[Any]], *, source: str) -> None:
    import torch

    from cellmill.models.networks import build_model

    try:
        with torch.device("meta"):
            state = build_model(config).state_dict()
    except ValueError as error:
        raise ModelNotFoundError(f"Model {source!r}: {error}") from error
    separate = _names_encoder(config)
    wanted = {name: tuple(state[name].shape) for name in state if not (separate and name.startswith(_ENCODER))}
    got = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = sorted(name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name))
    if wrong:
        first, ontology = wrong[0], config.ontology
        hint = f"Are {CONFIG_FILE} and {WEIGHTS_FILE} of one model?"
        if all("head" in name for name in wrong):
            hint = f"Were they trained for an ontology other than {ontology.name!r} with its {len(ontology)} classes?"
        raise ModelNotFoundError(
            f"Model {source!r}: the weights do not fit the config in {len(wrong)} tensors; the first is {first!r}, "
            f"wanted {wanted.get(first)}, got {got.get(first)}. {hint}"
        )
