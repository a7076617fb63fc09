"""Say what segmenting a cohort of slides will take, before anything is spent; see --help.

Settings (`estimate/config.py`) -> slides opened and counted (`estimate/survey.py`) -> pieces of tissue timed
(`estimate/calibration.py`, `estimate/rates.py`) -> figures (`estimate/cost.py`) -> table (`estimate/job.py`).
"""

from cellmill.estimate.job import main

if __name__ == "__main__":
    raise SystemExit(main())
