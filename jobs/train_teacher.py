"""Train a teacher over a foundation model, CellViT, or the ResNet50 baseline; see --help.

Settings (`cellmill_training/teacher/job.py`) -> recipe (`recipes/`) -> crops and loop (`supervised/`) -> model folder,
history and MLflow run.
"""

from cellmill_training.teacher.job import main

if __name__ == "__main__":
    raise SystemExit(main())
