"""Fit new types on stored embeddings, without running the network again; see --help.

Labels (`refit/labels.py`) -> vectors of those cells -> a head and its worth by folds of slides (`refit/fitting.py`) ->
answers for every cell (`cellmill.embedding.head`) -> `retyped/NAME/`.
"""

from cellmill_training.refit.job import main

if __name__ == "__main__":
    raise SystemExit(main())
