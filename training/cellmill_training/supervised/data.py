"""Which images of a labelled data set train and which validate, and whether they can teach the classes asked for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cellmill_schemas.ontology import Ontology, OntologyMapping, get_ontology
from cellmill_schemas.ontology_mappings import get_mapping
from cellmill_training.datasets.store import LabelledDataset, open_dataset

__all__ = ["TrainingSet", "open_training_set"]


@dataclass(frozen=True)
class TrainingSet:
    """A data set with its images dealt out, in the classes of the network."""

    dataset: LabelledDataset
    mapping: OntologyMapping
    """From the data set's classes to the network's."""
    train_ids: tuple[str, ...]
    validation_ids: tuple[str, ...]

    @property
    def ontology(self) -> Ontology:
        """The network's classes."""
        return self.mapping.target

    def class_counts(self) -> Counter[str]:
        """Nuclei of each of the network's classes in the training images; those of an open type are not counted."""
        wanted, counts = set(self.train_ids), Counter[str]()
        labels = self.dataset.labels().select(["image_id", "cell_types"]).to_pylist()
        for row in labels:
            if row["image_id"] in wanted and len(row["cell_types"]) == 1:
                targets = self.mapping.target_indices(str(row["cell_types"][0]))
                if len(targets) == 1:
                    counts[self.ontology.names[targets[0]]] += 1
        return counts


def open_training_set(
    data: str, *, ontology: Ontology | str = "", train_folds: Sequence[str] = (), validation_folds: Sequence[str] = ()
) -> TrainingSet:
    """Open a data set and deal out its images.

    Args:
        data: folder or URL of a data set.
        ontology: the network's, or the name of a built-in one; the data set's own unless given.
        train_folds: folds of the source that train; the data set's splits decide unless given.
        validation_folds: folds that validate. Images of other folds are left alone.

    Raises:
        ValueError: when there is no such data set, ontology or fold, when the data cannot be read in the ontology, or
            when a fold is on both sides.
    """
    dataset = open_dataset(data)
    try:
        named = get_ontology(ontology) if isinstance(ontology, str) and ontology else ontology
        target = named if isinstance(named, Ontology) else dataset.ontology
        mapping = get_mapping(dataset.ontology, target)
    except KeyError as error:
        raise ValueError(
            f"Data set {dataset.name!r} has the classes of {dataset.ontology.name!r}, and the network is to have those "
            f"of {ontology if isinstance(ontology, str) else ontology.name}: {error.args[0]}"
        ) from error
    if bool(train_folds) != bool(validation_folds):
        raise ValueError("Give both --train-folds and --validation-folds, or neither to go by the data set's splits.")
    if not train_folds:
        return TrainingSet(dataset, mapping, dataset.image_ids("train"), dataset.image_ids("validation"))
    both = sorted(set(train_folds) & set(validation_folds))
    if both:
        raise ValueError(f"Fold {both[0]!r} can train or validate, not both.")
    return TrainingSet(dataset, mapping, _of_folds(dataset, train_folds), _of_folds(dataset, validation_folds))


def _of_folds(dataset: LabelledDataset, folds: Sequence[str]) -> tuple[str, ...]:
    rows = dataset.index.select(["image_id", "fold"]).to_pylist()
    there = sorted({str(row["fold"]) for row in rows})
    absent = [fold for fold in folds if fold not in there]
    if absent:
        raise ValueError(f"Data set {dataset.name!r} has no fold {absent[0]!r}; its folds are {', '.join(there)}.")
    return tuple(str(row["image_id"]) for row in rows if row["fold"] in folds)
