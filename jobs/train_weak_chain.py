"""Train classifiers from weak labels: segmenter, teacher, student, fine-tuning; see --help and docs/weak_labels.md.

Settings (`cellmill_training/weak/job.py`) -> recipe (`recipes/weak_chain_ikem.py`) -> stages (`weak/chain.py`) ->
tables.
"""

from cellmill_training.weak.job import main

if __name__ == "__main__":
    raise SystemExit(main())
