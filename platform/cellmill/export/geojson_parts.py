"""GeoJSON files small enough for QuPath's reader: FeatureCollections of at most 25,000 features, gzipped.

In: features as text, in any portions. Out: `part0000.geojson.gz`, ... and an `index.json` that says what they hold. The
bytes depend on the features alone.
"""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from cellmill.export.geojson_rules import MAX_FEATURES

__all__ = ["INDEX_NAME", "GeoJsonParts", "write_index"]

INDEX_NAME = "index.json"
_GZIP_LEVEL = 4
"""Of 880 bytes a cell 136 are left, for 10 microseconds; level 6 takes twice as long and leaves 119."""


class GeoJsonParts:
    """Writes features to parts of a folder; `with` it, `add` to it."""

    def __init__(self, folder: Path, *, name: str = "part", max_features: int = MAX_FEATURES) -> None:
        """Write to `folder`, which is made; parts are called `<name>0000.geojson.gz` and so on."""
        self._folder, self._name, self._max_features = folder, name, max_features
        self._file: gzip.GzipFile | None = None
        self._raw: IO[bytes] | None = None
        self._num_in_part = 0
        self.num_features = 0
        self.names: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "GeoJsonParts":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the last part."""
        self._end_part()

    def add(self, features: Sequence[str]) -> None:
        """Append features, each the text of a JSON object."""
        start = 0
        while start < len(features):
            file = self._open_part()
            portion = features[start : start + self._max_features - self._num_in_part]
            text = ",\n".join(portion)
            file.write((text if self._num_in_part == 0 else ",\n" + text).encode("utf-8"))
            self._num_in_part += len(portion)
            start += len(portion)
        self.num_features += len(features)

    def _open_part(self) -> gzip.GzipFile:
        if self._file is None or self._num_in_part == self._max_features:
            self._end_part()
            name = f"{self._name}{len(self.names):04d}.geojson.gz"
            # No name and no time in the header: the same features give the same bytes.
            self._raw = (self._folder / name).open("wb")
            self._file = gzip.GzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=self._raw, mtime=0)
            self._file.write(b'{"type":"FeatureCollection","features":[\n')
            self.names.append(name)
        return self._file

    def _end_part(self) -> None:
        if self._file is not None:
            self._file.write(b"\n]}\n")
            self._file.close()
        if self._raw is not None:
            self._raw.close()  # a GzipFile leaves what it was given open
        self._file, self._raw, self._num_in_part = None, None, 0


def write_index(folder: Path, document: dict[str, Any]) -> None:
    """Say beside the parts what they hold."""
    (folder / INDEX_NAME).write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")
