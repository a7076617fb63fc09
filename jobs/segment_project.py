"""Run a model inside the annotations of a QuPath project; see --help.

Settings (`export/segment_config.py`) -> regions drawn (`export/annotations.py`) -> the cohort run of one slide
(`cohort/run.py`) -> cells inside the regions, back to the image (`export/segmenting.py`).
"""

from cellmill.export.segment_job import main

if __name__ == "__main__":
    raise SystemExit(main())
