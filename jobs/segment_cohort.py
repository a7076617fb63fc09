"""Segment the cells of a cohort of slides; see --help.

Settings (`cohort/config.py`) -> slides (`cohort/manifest.py`) -> plan, read, segment (`cohort/stages.py`, streamed by
`cohort/pipeline.py`) -> commit (`store/commit.py`) -> table of slides (`cohort/progress.py`).
"""

from cellmill.cohort.job import main

if __name__ == "__main__":
    raise SystemExit(main())
