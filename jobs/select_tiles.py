"""Choose which tiles of a cohort to label; see --help, docs/active_learning.md and `cellmill_training/selecting`."""

from cellmill_training.selecting.job import main

if __name__ == "__main__":
    raise SystemExit(main())
