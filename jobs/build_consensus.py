"""One answer from several annotators' points; see --help and `cellmill_training/labelling`."""

from cellmill_training.labelling.job import main_build_consensus

if __name__ == "__main__":
    raise SystemExit(main_build_consensus())
