"""Distil a student from a teacher, sweep temperatures, compare with no teacher; see --help.

Settings (`cellmill_training/distill/job.py`) -> recipe (`recipes/`) -> teacher's outputs (`distill/teaching.py`) and
crops (`supervised/`) -> a model folder and an MLflow run each, and a table.
"""

from cellmill_training.distill.job import main

if __name__ == "__main__":
    raise SystemExit(main())
