"""What select-tiles is told: one typed record, from the command line, a YAML file or Python."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cellmill.slides.scale import MAX_MPP, MIN_MPP, is_usable_mpp
from cellmill_training.selecting.config import SelectionConfig

__all__ = ["SelectTilesSettings"]


@dataclass(frozen=True)
class SelectTilesSettings:
    """Settings of one selection.

    Args:
        slides: slides to choose from: files, globs, folders, URLs, or one CSV or Parquet manifest (slide, slide_id,
            mpp).
        out: folder for the tile list and the QuPath project; it appears whole.
        cells: cell set of these slides, finished in whole or in part: what its cells say is learned from, and they
            come along into the project. Default: none.
        labelled: data sets whose images say which types they hold (import-dataset, import-annotations). Default: none.
            Their test splits are not looked at.
        encoders: one or two networks whose features tiles are compared by: a packaged name (lite), a model folder, a
            models:/ URI, or a foundation model (H0-mini, UNI, ...). With one, classifiers are compared on two poolings
            of its map.
        encoder_weights: folder or file of a foundation model's weights. Default: CELLMILL_ENCODERS, else the hub.
        rare_types: types to look for. Default: those that at most a fifth of the labelled tiles hold.
        ontology: name of the classes, where there is no cell set to take them from.
        tiles_per_cohort: tiles to choose of each cohort.
        rare_share: share of them drawn from the tiles likeliest to hold a rare type.
        uncertain_share: share drawn from those on which the ensembles disagree; the rest is drawn for diversity.
        cohort_column: column of the manifest that says which cohort (indication, site) a slide is of. Default: all
            slides are one cohort.
        earlier: folders or tile lists of earlier selections, whose tiles are not chosen again.
        min_confidence: from which a cell of the cell set counts as surely of its type.
        max_tiles_per_slide: of a slide with more tiles of tissue, so many are drawn and looked at.
        mpp: um/px of the slides' finest pixels, in place of what they state. A manifest's mpp column goes before it.
        tissue: auto, none, or a GeoJSON file of polygons in level-0 px that holds for every slide.
        features: folder that keeps the tiles' features for the next selection. Default: beside --out, with -features.
        device: where encoders run.
        num_workers: slides looked at at the same time. Default (0): the CPUs granted; 1 with CUDA. Does not change
            results.
        pseudonymize: the key file that the cell set was made with, if one was used.
        replace: make a selection again in its place, unless it was worked on since.
        seed: of all that is drawn.
    """

    slides: tuple[str, ...] = ()
    out: str = ""
    cells: str = ""
    labelled: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ("lite",)
    encoder_weights: str = ""
    rare_types: tuple[str, ...] = ()
    ontology: str = "refined7"
    tiles_per_cohort: int = SelectionConfig.tiles_per_cohort
    rare_share: float = round(SelectionConfig.rare_share, 4)
    uncertain_share: float = round(SelectionConfig.uncertain_share, 4)
    cohort_column: str = ""
    earlier: tuple[str, ...] = ()
    min_confidence: float = 0.6
    max_tiles_per_slide: int = 2000
    mpp: float | None = None
    tissue: str = "auto"
    features: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_workers: int = 0
    pseudonymize: str | None = None
    replace: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("slides", "labelled", "encoders", "rare_types", "earlier"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if not self.slides or not self.out:
            raise ValueError("--slides and --out are needed: the slides to choose from, a folder for what is chosen.")
        if "://" in self.out:
            raise ValueError(f"--out must be a local folder, because it holds a QuPath project; got {self.out!r}.")
        if not 1 <= len(self.encoders) <= 2 or len(set(self.encoders)) != len(self.encoders):
            raise ValueError(f"--encoders takes one or two different names, got {' '.join(self.encoders) or 'none'}.")
        if self.mpp is not None and not is_usable_mpp(self.mpp):
            raise ValueError(f"--mpp must be {MIN_MPP:g} to {MAX_MPP:g} um/px, got {self.mpp}.")
        if self.cohort_column and not self.slides[0].lower().endswith((".csv", ".parquet", ".pq")):
            raise ValueError(f"--cohort-column needs a CSV or Parquet manifest as --slides, got {self.slides[0]!r}.")
        if not 0 <= self.min_confidence <= 1:
            raise ValueError(f"--min-confidence must be 0 to 1, got {self.min_confidence}.")
        if self.max_tiles_per_slide < 1 or self.num_workers < 0:
            raise ValueError(
                "--max-tiles-per-slide must be at least 1 and --num-workers not negative, got "
                f"{self.max_tiles_per_slide} and {self.num_workers}."
            )
        if self.tissue not in ("auto", "none") and not Path(self.tissue).is_file():
            raise ValueError(f"--tissue must be auto, none or a GeoJSON file, got {self.tissue!r}.")
        self.config()

    def config(self) -> SelectionConfig:
        """Figures of the method.

        Raises:
            ValueError: when they are out of range.
        """
        return SelectionConfig(
            tiles_per_cohort=self.tiles_per_cohort,
            rare_share=self.rare_share,
            uncertain_share=self.uncertain_share,
            seed=self.seed,
        )

    @property
    def features_folder(self) -> Path:
        """Where features are kept."""
        return Path(self.features or f"{self.out.rstrip('/')}-features").expanduser().absolute()
