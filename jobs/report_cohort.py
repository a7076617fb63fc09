"""Make a report of a cell set for a browser; see --help.

Cell set -> the cohort in numbers (`report/cohort.py`, judged by `report/outliers.py`) -> its first page
(`report/index_page.py`) and a page a slide (`report/slide_page.py`), written by `report/run.py`.
"""

from cellmill.report.job import main

if __name__ == "__main__":
    raise SystemExit(main())
