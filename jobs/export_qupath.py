"""Cells of a cell set in a QuPath project, or as GeoJSON or SpatialData; see --help.

Settings (`export/config.py`) -> cells wanted (`export/selection.py`) and areas (`export/areas.py`) -> text
(`export/features.py`) or Java objects (`export/insertion.py`) -> a folder that appears whole (`export/run.py`).
"""

from cellmill.export.job import main

if __name__ == "__main__":
    raise SystemExit(main())
