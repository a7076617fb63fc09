"""Cells where people look at them: QuPath projects, GeoJSON, SpatialData; and models started from QuPath.

`job` and `run` are the exports, `segment_job` and `segmenting` run a model inside the annotations of a project.
"""
