"""Cohort runs: a list of slides in, a cell set out.

Pure parts (`manifest`, `plan`, `field`) know no Ray; `pipeline` only moves their rows; `run` is the driver.
"""
