"""Read a data set of labelled nuclei into the store that training jobs take; see --help.

Settings (`cellmill_training/datasets/job.py`) -> reader (`datasets/readers/`) -> ontology (`datasets/mapping.py`) ->
splits (`datasets/splitting.py`) -> store (`datasets/store.py`).
"""

from cellmill_training.datasets.job import main

if __name__ == "__main__":
    raise SystemExit(main())
