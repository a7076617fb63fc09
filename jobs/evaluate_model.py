"""Measure a model on labelled images; see --help.

Settings (`cellmill_training/evaluation/job.py`) -> references -> cells -> counts (`cellmill/metrics`) -> figures, page,
MLflow run.
"""

from cellmill_training.evaluation.job import main

if __name__ == "__main__":
    raise SystemExit(main())
