"""Train the student or lite network; see --help.

Settings (`cellmill_training/job.py`) -> sets (`local_sets.py`, `sources/`) -> crops (`mixture.py`, `augment.py`)
-> loop (`loop.py`, `losses/`) -> model folder.
"""

from cellmill_training.job import main

if __name__ == "__main__":
    raise SystemExit(main())
