"""Templates to pages. Every value from outside is escaped; style and script are inline and named by hash in the policy.

In: a template's name and values. Out: one HTML page that needs nothing beside it but the pages it links to.
"""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cellmill import __version__
from cellmill.report.outliers import Flag
from cellmill.store.identity import CellSetIdentity

__all__ = ["figure", "percent", "render", "sentence", "whole"]

_HERE = Path(__file__).parent
_NOTHING = "–"


def render(template: str, identity: CellSetIdentity, **values: Any) -> str:
    """The page."""
    style, script = _asset("report.css"), _asset("report.js")
    # Markup: our own two files, which hold no '</'; what browsers run is bound to their hashes by the policy.
    return (
        _environment()
        .get_template(template)
        .render(
            identity=identity,
            version=__version__,
            style=Markup(style),
            script=Markup(script),
            style_hash=_hash(style),
            script_hash=_hash(script),
            **values,
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        whole=whole, large=large, figure=figure, percent=percent, decimals=decimals, sentence=sentence
    )
    return environment


@cache
def _asset(name: str) -> str:
    text = (_HERE / name).read_text(encoding="utf-8")
    assert "</" not in text, name
    return text


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


# ----------------------------------------------------------------------------------------------------- how numbers look


def whole(value: float | None) -> str:
    """A count, with thousands apart."""
    return _NOTHING if value is None or value != value else f"{value:,.0f}"  # noqa: PLR0124 - NaN


def large(value: float) -> str:
    """A count that may be too long for its place: millions in words from ten on."""
    return whole(value) if value < 10_000_000 else f"{figure(value / 1e6)} million"


def figure(value: float | None) -> str:
    """Three figures or so, never more decimals than a reader needs."""
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return _NOTHING
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def decimals(value: float | None) -> str:
    """Two decimals."""
    return _NOTHING if value is None or value != value else f"{value:.2f}"  # noqa: PLR0124 - NaN


def percent(value: float | None) -> str:
    """A share of one."""
    return _NOTHING if value is None or value != value else f"{value * 100:.1f} %"  # noqa: PLR0124 - NaN


def sentence(flag: Flag) -> str:
    """A flag in words: what, against what, how far."""
    shown = {"per_mm2": figure, "share": percent, "number": decimals}[flag.measure.unit]
    side = "High" if flag.z > 0 else "Low"
    peers = f"median in {flag.within or 'the cohort'}"
    z = f"{flag.z:+.1f}".replace("-", "−")
    return f"{side} {flag.measure.label}: {shown(flag.value)}, {peers} {shown(flag.median)} (robust z {z})"
