"""Labelled nuclei of any origin in one typed store: readers, splits, lineage, and the way to training samples."""
