"""Figures that compare cells with a reference.

`matching` pairs instances, `tally` counts one image, `quality` makes figures of counts, `bootstrap` draws their
confidence intervals, `figures` puts all of it together for a set of images. Formulas, sources and what happens where a
reference is undecided: docs/evaluation.md.
"""
