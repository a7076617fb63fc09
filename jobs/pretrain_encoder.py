"""Pretrain a small vision transformer on unlabelled tissue, as the encoder of a teacher; see --help.

Settings (`cellmill_training/pretrain/job.py`) -> views (`views.py`) -> masked autoencoder
(`autoencoder.py`) -> weights.
"""

from cellmill_training.pretrain.job import main

if __name__ == "__main__":
    raise SystemExit(main())
