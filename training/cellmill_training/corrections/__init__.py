"""Experts' corrections of a cell set: read, told apart from what was there, and made a data set with lineage."""
