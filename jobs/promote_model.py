"""Make a model the champion of the registry, if it has earned it; see --help.

Settings (`cellmill_training/tracking/promotion_job.py`) -> both models on one evaluation set -> verdict -> version and
alias.
"""

from cellmill_training.tracking.promotion_job import main

if __name__ == "__main__":
    raise SystemExit(main())
