"""What makes one slide look unlike the next: stains, scanner, tissue mix.

In: a seed. Out: a frozen `TissueStyle`. Stain vectors are drawn around pairs estimated (Macenko's method) on the real
H&E images the project is developed with: two open slides, MoNuSAC, NuCLS, BreCaHAD and PUMA images.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellmill.synthetic import architecture as arch
from cellmill.synthetic.cell_types import KIND_TABLE, NUM_TYPES, KindRow
from cellmill.synthetic.marks import SlideMarks, draw_marks
from cellmill.synthetic.placement import kind_chances

__all__ = ["TissueStyle", "draw_style", "layout_seed"]

_STAIN_PAIRS = np.array(
    [
        # hematoxylin R, G, B            eosin R, G, B
        [[0.81, 0.51, 0.29], [0.17, 0.91, 0.37]],
        [[0.60, 0.68, 0.42], [0.17, 0.79, 0.59]],
        [[0.59, 0.70, 0.40], [0.27, 0.84, 0.48]],
        [[0.61, 0.71, 0.35], [0.22, 0.88, 0.41]],
        [[0.55, 0.75, 0.36], [0.15, 0.83, 0.55]],
        [[0.56, 0.74, 0.37], [0.28, 0.87, 0.41]],
        [[0.57, 0.72, 0.38], [0.23, 0.86, 0.46]],
        [[0.67, 0.66, 0.35], [0.38, 0.86, 0.33]],
        [[0.68, 0.64, 0.36], [0.25, 0.92, 0.30]],
        [[0.67, 0.68, 0.31], [0.45, 0.87, 0.18]],
        [[0.62, 0.75, 0.24], [0.23, 0.95, 0.21]],
        [[0.59, 0.74, 0.33], [0.22, 0.95, 0.22]],
    ]
)
_PIGMENT_VECTOR = (0.38, 0.58, 0.72)
_BASE_MIX = np.array([0.20, 0.16, 0.17, 0.11, 0.12, 0.06, 0.06, 0.11, 0.07])


@dataclass(frozen=True)
class TissueStyle:
    """One slide's look; everything `render_region` needs besides the seed."""

    world: arch.World
    stain_vectors: NDArray[np.float32]
    """(3 stains, 3 colours), unit rows: hematoxylin, eosin, pigment, each times its intensity on this slide."""
    kinds: NDArray[np.float64]
    """(kind, `KindRow` field): the general table with this slide's own sizes, stain and texture."""
    chances: NDArray[np.float64]
    """(lattice, compartment, kind), see `placement.kind_chances`."""
    white_rgb: NDArray[np.float64]
    blur_um: float
    sharpening: float
    gamma: float
    grain: float
    """Unevenness of the section at the scale of a micrometre."""
    noise: float
    """Standard deviation of the sensor noise in grey levels."""
    marks: SlideMarks | None = None
    """Pen and blur; only a slide with an extent has places to put them."""


def layout_seed(seed: int) -> np.uint64:
    """The 64 mixed bits every hash of slide `seed` starts from."""
    return np.random.SeedSequence([0x1A7, seed & 0xFFFFFFFFFFFFFFFF]).generate_state(1, np.uint64)[0]


def _unit_rows(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _draw_stains(rng: np.random.Generator) -> NDArray[np.float32]:
    first, second = rng.integers(0, len(_STAIN_PAIRS), 2)
    share = rng.uniform(0.0, 0.5)
    pair = (1.0 - share) * _STAIN_PAIRS[first] + share * _STAIN_PAIRS[second] + rng.normal(0.0, 0.025, (2, 3))
    vectors = _unit_rows(np.vstack([np.clip(pair, 0.05, None), _PIGMENT_VECTOR]))
    strength = np.exp(rng.normal([0.05, 0.0, 0.0], [0.24, 0.26, 0.1]))
    return (vectors * strength[:, None]).astype(np.float32)


def _draw_world(
    rng: np.random.Generator, seed: int, extent_um: tuple[float, float] | None, tumour_area_um2: float
) -> arch.World:
    mix = rng.dirichlet(_BASE_MIX * 7.0) * 0.75 + _BASE_MIX * 0.25
    territory_um = float(rng.uniform(240.0, 480.0))
    if extent_um is not None:
        # A small slide still shows several territories.
        territory_um = min(territory_um, 0.28 * min(extent_um))
    cumulative = np.cumsum(mix / mix.sum())
    fibre_angle = rng.uniform(0.0, math.pi)
    return arch.World(
        seed=layout_seed(seed),
        mix=tuple(float(value) for value in cumulative),  # pyright: ignore[reportArgumentType]
        territory_um=territory_um,
        structure_um=float(rng.uniform(95.0, 165.0)),
        pitches_um=(
            # Sheets are as crowded as their nuclei are large.
            float(np.clip(2.0 * np.sqrt(tumour_area_um2 / np.pi) * rng.uniform(1.2, 1.85), 7.5, 15.0)),
            float(rng.uniform(4.9, 6.2)),
            float(rng.uniform(10.5, 13.5)),
            6.6,
        ),
        warp_um=float(rng.uniform(14.0, 30.0)),
        malignancy=float(rng.uniform(0.2, 0.7)),
        fibre_um=float(rng.uniform(1.6, 3.4)),
        fibre_cos=math.cos(fibre_angle),
        fibre_sin=math.sin(fibre_angle),
        glass_share=float(rng.uniform(0.20, 0.33)),
        fold_share=float(rng.uniform(0.10, 0.26)),
        extent_w_um=extent_um[0] if extent_um else 0.0,
        extent_h_um=extent_um[1] if extent_um else 0.0,
    )


def _draw_kinds(rng: np.random.Generator) -> NDArray[np.float64]:
    kinds = KIND_TABLE.copy()
    column = {name: index for index, name in enumerate(KindRow._fields)}
    cells = slice(0, NUM_TYPES)
    kinds[cells, column["area_um2"]] *= np.exp(rng.normal(0.0, 0.14) + rng.normal(0.0, 0.10, NUM_TYPES))
    kinds[0, column["area_um2"]] *= np.exp(rng.normal(0.10, 0.32))
    kinds[cells, column["hematoxylin"]] *= np.exp(rng.normal(0.0, 0.10, NUM_TYPES))
    # Fixation and thickness: some slides show crisp vesicular nuclei, others smudged ones.
    crisp = np.exp(rng.normal(0.0, 0.35))
    for name in ("clump", "rim", "pallor"):
        kinds[cells, column[name]] *= crisp * np.exp(rng.normal(0.0, 0.2, NUM_TYPES))
    kinds[cells, column["pallor"]] = np.minimum(kinds[cells, column["pallor"]], 0.55)
    kinds[cells, column["cytoplasm_eosin"]] *= np.exp(rng.normal(0.0, 0.25, NUM_TYPES))
    kinds[cells, column["cytoplasm_hematoxylin"]] *= np.exp(rng.normal(0.0, 0.35, NUM_TYPES))
    kinds[[0, 4], column["cytoplasm_vacuoles"]] = rng.uniform(0.0, 0.6, 2) * (rng.random(2) < 0.6)
    kinds[[0, 4], column["halo"]] = rng.uniform(0.0, 0.5) * (rng.random() < 0.4)
    kinds[:, column["membrane"]] = rng.choice([0.09, 0.04, -0.08, -0.16])
    kinds[0, column["nucleoli"]] = rng.uniform(0.55, 0.95)
    return kinds


def draw_style(seed: int, *, extent_um: tuple[float, float] | None = None) -> TissueStyle:
    """The style of slide `seed`.

    Args:
        seed: any integer; the same seed gives the same slide.
        extent_um: width and height of the slide, so that glass surrounds its tissue; None for tissue without end.
    """
    rng = np.random.default_rng([0x5EED, seed & 0xFFFFFFFFFFFFFFFF])
    kinds = _draw_kinds(rng)
    world = _draw_world(rng, seed, extent_um, float(kinds[0, 0]))
    chances = kind_chances(
        tumour_lymphocytes=float(rng.uniform(0.005, 0.09)),
        stroma_density=float(rng.uniform(0.22, 0.55)),
        hemorrhage=float(rng.uniform(0.0, 0.05) if rng.random() < 0.4 else 0.002),
        pigment=float(rng.uniform(0.0, 0.012) if rng.random() < 0.3 else 0.0),
    )
    brightness = rng.uniform(226.0, 250.0)
    return TissueStyle(
        world=world,
        stain_vectors=_draw_stains(rng),
        kinds=kinds,
        chances=chances,
        white_rgb=np.clip(brightness + rng.normal(0.0, 3.5, 3), 205.0, 254.0),
        blur_um=float(rng.uniform(0.26, 0.55)),
        sharpening=float(rng.uniform(0.0, 1.0)),
        gamma=float(np.exp(rng.normal(0.0, 0.07))),
        grain=float(rng.uniform(0.2, 0.8)),
        noise=float(rng.uniform(0.6, 2.4)),
        marks=draw_marks(seed, extent_um=extent_um) if extent_um else None,
    )
