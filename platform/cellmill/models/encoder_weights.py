"""Where an encoder's own weights come from: a local file, or the hub that timm uses; never a pickle.

A foundation model is gigabytes and often gated, so a model folder of `teacher` holds its decoder and only names the
encoder's file by its sha256. The file is looked for, by the encoder's name, in the folder given, else in that of the
environment variable CELLMILL_ENCODERS, else on the Hugging Face hub and in its local cache:

    $CELLMILL_ENCODERS/H-optimus-0.safetensors        or .bin, .pth, .pt
    $CELLMILL_ENCODERS/H-optimus-0/model.safetensors  or pytorch_model.bin: a copy of the repository

Either may also be the file itself. safetensors are read as they are, torch's files with `weights_only=True`.
"""

import functools
import hashlib
import os
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cellmill.models.config import ModelConfig
from cellmill.models.vit_encoders import KNOWN_ENCODERS

if TYPE_CHECKING:
    # A driver that only looks for the file, and a worker of `lite`, do without torch.
    from torch import Tensor, nn

    from cellmill.models.networks import CellNetwork

__all__ = [
    "ENCODERS_VARIABLE",
    "EncoderWeightsError",
    "encoder_source",
    "find_encoder_file",
    "pretrained",
    "restore_encoder",
    "save_encoder",
]

ENCODERS_VARIABLE = "CELLMILL_ENCODERS"

_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


class EncoderWeightsError(ValueError):
    """An encoder's weights are not there, may not be fetched, or are not those that are wanted."""


def encoder_source(source: str | Path | None = None) -> str:
    """The folder or file to look in: `source`, else CELLMILL_ENCODERS; empty for the hub alone."""
    return str(source or os.environ.get(ENCODERS_VARIABLE, ""))


def pretrained(config: ModelConfig, *, source: str | Path | None = None) -> "tuple[ModelConfig, CellNetwork]":
    """A network whose encoder has its own weights and whose decoder is random: where training starts.

    Args:
        config: the network; of a `teacher` or `cellvit`, or over a timm encoder.
        source: folder or file of the encoder's weights; see the module's docstring for the rest.

    Returns:
        The config, which names the file by its hash where the encoder is frozen, so that `save_model` leaves the
        encoder out; and the network.

    Raises:
        EncoderWeightsError: when the weights cannot be had or do not fit.
    """
    from cellmill.models.networks import build_model

    path = find_encoder_file(config, source=source)
    if config.vit is not None and config.vit.frozen:
        config = replace(config, vit=replace(config.vit, sha256=_sha256_of(path)))
    network = build_model(config)
    _fill(network, path)
    return config, network


def restore_encoder(network: "CellNetwork", *, source: str | Path | None = None) -> None:
    """Give a network the encoder that its config names by hash.

    Raises:
        EncoderWeightsError: when it cannot be had, or the file found is another.
    """
    _fill(network, find_encoder_file(network.config, source=source))


def save_encoder(network: "CellNetwork", path: Path) -> None:
    """Write a network's encoder as a safetensors file that `pretrained` takes; it appears whole or not at all."""
    from safetensors.torch import save as save_tensors

    state = _body(network).state_dict()
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(save_tensors(tensors))
    partial.replace(path)


def find_encoder_file(config: ModelConfig, *, source: str | Path | None = None) -> Path:
    """The file with the encoder's weights, of the hash that the config names, if it names one.

    Raises:
        EncoderWeightsError: when there is none, saying what to do, or its hash is another.
    """
    place = encoder_source(source)
    found = _local_file(config.encoder, Path(place)) if place else None
    path = found or _hub_file(config, place=place)
    wanted = config.vit.sha256 if config.vit is not None else ""
    if wanted and _sha256_of(path) != wanted:
        raise EncoderWeightsError(
            f"Encoder {config.encoder!r}: the model was trained on weights of sha256 {wanted}, but {path} has "
            f"{_sha256_of(path)}. Give that file, or train the decoder again on these weights."
        )
    return path


def _local_file(name: str, place: Path) -> Path | None:
    if place.is_file():
        return place
    if not place.is_dir():
        raise EncoderWeightsError(
            f"Encoder {name!r}: {str(place)!r}, given as the place of encoder weights, is no folder and no file."
        )
    safe = name.replace("/", "_")
    candidates = [place / f"{safe}{suffix}" for suffix in _SUFFIXES]
    candidates += [folder / file for folder in (place / safe, place) for file in _HUB_FILES]
    return next((path for path in candidates if path.is_file()), None)


def _hub_file(config: ModelConfig, *, place: str) -> Path:
    """From the hub, or its cache on this machine."""
    repository = _repository(config)
    tried = f"no file of it in {place!r}" if place else f"{ENCODERS_VARIABLE} is not set"
    local = f"put its weights there as {config.encoder}.safetensors" if place else (
        f"set {ENCODERS_VARIABLE} to a folder that holds {config.encoder}.safetensors or its repository's files"
    )  # fmt: skip
    if not repository:
        raise EncoderWeightsError(f"Encoder {config.encoder!r}: {tried}, and no hub has it; {local}.")
    # Slow to import, and needed only here.
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError

    for file in _HUB_FILES:
        cached = try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return Path(cached)
    reason, error = f"has none of {', '.join(_HUB_FILES)}", None
    for file in _HUB_FILES:
        try:
            return Path(hf_hub_download(repository, file))
        except GatedRepoError as refused:
            raise EncoderWeightsError(
                f"Encoder {config.encoder!r}: {tried}, and the repository {repository} is gated. Ask for access on its "
                f"page with your Hugging Face account, log in here with `hf auth login`, and try again; or {local}."
            ) from refused
        except LocalEntryNotFoundError as unreachable:
            # Tried several times by then; another file would not be reached either.
            reason, error = "cannot be reached from here", unreachable
            break
        except EntryNotFoundError as missing:
            error = missing
        except (OSError, RuntimeError) as failed:
            reason, error = f"gave nothing ({type(failed).__name__})", failed
            break
    raise EncoderWeightsError(
        f"Encoder {config.encoder!r}: {tried}, and the hub's {repository} {reason}. Without access to the hub, {local}."
    ) from error


def _repository(config: ModelConfig) -> str:
    if config.encoder in KNOWN_ENCODERS:
        return KNOWN_ENCODERS[config.encoder].hub
    import timm

    name = config.vit.timm_name if config.vit is not None else config.encoder
    # A graph whose sizes were changed has no published weights; its name does.
    changed = config.vit is not None and any(key != "init_values" for key, _ in config.vit.options)
    known = timm.get_pretrained_cfg(name) if timm.is_model(name) and not changed else None
    return (known.hf_hub_id or "") if known is not None else ""


def _fill(network: "CellNetwork", path: Path) -> None:
    """Weights of the file into the network's encoder."""
    config = network.config
    state = _read(path)
    if config.vit is None:
        _fill_features(network, state, path)
        return
    body = _body(network)
    state = {name: value.float() for name, value in state.items() if not name.startswith("head.")}
    wanted = {name: tuple(value.shape) for name, value in body.state_dict().items()}
    wrong = sorted(_misfits(wanted, {name: tuple(value.shape) for name, value in state.items()}))
    if wrong:
        raise EncoderWeightsError(
            f"Encoder {config.encoder!r}: {path} does not fit timm's {config.vit.timm_name} with "
            f"{dict(config.vit.options)} in {len(wrong)} tensors; the first is {wrong[0]}. "
            "Is the file of this encoder, in timm's names?"
        )
    body.load_state_dict(state, assign=True)  # no second copy of gigabytes


def _fill_features(network: "CellNetwork", state: "dict[str, Tensor]", path: Path) -> None:
    """Through timm, which knows the tensor's names in a graph that gives features."""
    import timm

    config = network.config
    try:
        filled = timm.create_model(
            config.encoder, pretrained=True, features_only=True, pretrained_cfg_overlay={"state_dict": state}
        )
    except (RuntimeError, KeyError) as error:
        raise EncoderWeightsError(f"Encoder {config.encoder!r}: {path} does not fit it: {error}") from error
    _body(network).load_state_dict(filled.state_dict())


def _body(network: "CellNetwork") -> "nn.Module":
    """What the encoder's file holds: timm's graph, without what wraps it."""
    encoder = cast("nn.Module", network.encoder)
    return cast("nn.Module", encoder.body) if network.config.vit is not None else encoder


def _misfits(wanted: Mapping[str, object], got: Mapping[str, object]) -> Iterator[str]:
    for name in wanted.keys() | got.keys():
        if wanted.get(name) != got.get(name):
            yield f"{name!r}, wanted {wanted.get(name)}, got {got.get(name)}"


def _read(path: Path) -> "dict[str, Tensor]":
    """Tensors by name.

    Raises:
        EncoderWeightsError: when the file holds anything else.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError) as error:
        raise EncoderWeightsError(
            f"{path} cannot be read as weights: {str(error).splitlines()[0]} Only safetensors and torch files of plain "
            "tensors are read."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise EncoderWeightsError(f"{path} holds no tensors by name.")
    return cast("dict[str, Tensor]", content)


def _sha256_of(path: Path) -> str:
    """The file's hash; gigabytes are read once a process, as long as the file does not change."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
