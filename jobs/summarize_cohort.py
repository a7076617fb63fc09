"""Summarise a cell set in tables, per slide and region; see --help.

Cell set -> points of a slide (`spatial/points.py`) -> windows (`spatial/windows.py`) -> numbers of each
(`spatial/summary.py`, with `til.py` and `neighbours.py`) -> tables of the cohort (`spatial/run.py`).
"""

from cellmill.spatial.job import main

if __name__ == "__main__":
    raise SystemExit(main())
