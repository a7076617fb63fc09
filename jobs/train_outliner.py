"""Train the network that turns points into outlines; see --help and `cellmill_training/labelling`."""

from cellmill_training.labelling.job import main_train_outliner

if __name__ == "__main__":
    raise SystemExit(main_train_outliner())
