"""Say what segmenting a cohort of slides will take, before anything is spent; see --help.

Settings (`cohort/estimate_config.py`) -> slides opened and counted (`cohort/survey.py`) -> pieces of tissue timed
(`cohort/calibration.py`, `cohort/rates.py`) -> figures (`cohort/estimate.py`) -> table (`cohort/estimate_job.py`).
"""

from cellmill.cohort.estimate_job import main

if __name__ == "__main__":
    raise SystemExit(main())
