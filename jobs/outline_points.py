"""Turn annotators' points into outlined nuclei; see --help and `cellmill_training/labelling`."""

from cellmill_training.labelling.job import main_outline_points

if __name__ == "__main__":
    raise SystemExit(main_outline_points())
