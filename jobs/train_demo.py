"""Run the whole training chain on made-up tissue and print its table; see --help.

The steps and their flags are in `cellmill_training/train_demo.py`, one method a job.
"""

from cellmill_training.train_demo import main

if __name__ == "__main__":
    raise SystemExit(main())
