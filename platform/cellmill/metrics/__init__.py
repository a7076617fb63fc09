"""Figures that compare instances with a reference: panoptic quality and per-type F1."""
