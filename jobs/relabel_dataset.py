"""Settle labels that one data set leaves open by what another knows; see --help.

Settings (`cellmill_training/relabel/job.py`) -> typed cells and splits (`cells.py`) -> crops (`crops.py`) ->
classifiers (`learning.py`, `fitting.py`) -> new labels (`relabelling.py`, `run.py`) -> lineage and report
(`lineage.py`, `report.py`).
"""

from cellmill_training.relabel.job import main

if __name__ == "__main__":
    raise SystemExit(main())
