"""Which layer of `lite` tells types apart best when it is averaged over nuclei: MoNuSAC, held-out slides.

    python benchmarks/embedding_layers.py --monusac DATA/nuclei/monusac

For each layer, and some put together: mean over the pixels of each reference nucleus, logistic regression on the slides
that `lite` may have been trained on, accuracy and balanced accuracy on those it was not. Four classes: epithelial or
neoplastic, lymphocyte, macrophage, neutrophil. Images of more than 2.56 megapixels are left out.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cellmill.models.loading import load_model
from cellmill_training.samples import TissueSample, bits_of
from cellmill_training.sources.monusac import read_monusac

LAYERS = ("fuse.0", "fuse.1", "fuse.2", "stages.0", "stages.1", "stages.2")
TOGETHER = (("fuse.0", "fuse.1", "fuse.2"), ("fuse.1", "fuse.2"), ("fuse.1", "stages.2"), LAYERS)
CLASSES = (("neoplastic", "epithelial"), ("lymphocyte",), ("macrophage",), ("neutrophil",))
MAX_PX = 1600 * 1600


def pooled(features: np.ndarray, sample: TissueSample) -> np.ndarray:
    """Means (n, D) of features (D, h, w) over each instance of a sample, in the order of the labels."""
    y, x = np.nonzero(sample.instances)
    stride = -(-sample.instances.shape[0] // 32) * 32 // features.shape[1]
    labels = sample.instances[y, x]
    order = np.argsort(labels, kind="stable")
    y, x, labels = y[order], x[order], labels[order]
    starts = np.flatnonzero(np.diff(labels, prepend=0))
    sums = np.add.reduceat(features[:, y // stride, x // stride], starts, axis=1)
    return (sums / np.diff([*starts, len(labels)])).T


def classes_of(sample: TissueSample) -> np.ndarray:
    """Class (n,) of each instance, -1 for none of the four."""
    found = []
    for label in np.unique(sample.instances[sample.instances > 0]):
        allowed = int(np.bincount(sample.allowed[sample.instances == label]).argmax()) & ~1
        found.append(next((n for n, names in enumerate(CLASSES) if allowed == int(bits_of(names)) & ~1), -1))
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--monusac", type=Path, required=True)
    network = load_model("lite").build().eval()
    caught: dict[str, np.ndarray] = {}
    for name in LAYERS:
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: caught.__setitem__(name, output[0].numpy())
        )
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in LAYERS}
    classes, held_out = [], []
    for sample in read_monusac(parser.parse_args().monusac):
        height, width = (-(-side // 32) * 32 for side in sample.instances.shape)
        if height * width > MAX_PX or not sample.instances.any():
            continue
        image = np.full((height, width, 3), 255, np.uint8)
        image[: sample.instances.shape[0], : sample.instances.shape[1]] = sample.image
        with torch.inference_mode():
            network(torch.from_numpy(image).permute(2, 0, 1)[None].float())
        for name in LAYERS:
            vectors[name].append(pooled(caught[name], sample))
        classes.append(classes_of(sample))
        held_out.append(np.full(len(classes[-1]), sample.split == "test"))
    kind, test = np.concatenate(classes), np.concatenate(held_out)
    single = {name: np.concatenate(rows) for name, rows in vectors.items()}
    for names in (*((name,) for name in LAYERS), *TOGETHER):
        x = np.concatenate([single[name] for name in names], axis=1)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000))
        model.fit(x[~test & (kind >= 0)], kind[~test & (kind >= 0)])
        told, truth = model.predict(x[test & (kind >= 0)]), kind[test & (kind >= 0)]
        print(
            f"{' + '.join(names):50s} {x.shape[1]:4d} dimensions: accuracy {accuracy_score(truth, told):.3f}, "
            f"balanced {balanced_accuracy_score(truth, told):.3f} of {len(truth)} nuclei"
        )


if __name__ == "__main__":
    main()
