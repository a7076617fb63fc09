"""Make a cohort of synthetic H&E slides with exact truth; see --help.

Settings (`synthetic/cohort.py`) -> slides (`synthetic/slide.py`, pixels by `synthetic/tissue.py`) -> files
(`synthetic/slide_writer.py`, `synthetic/truth.py`).
"""

from cellmill.synthetic.job import main

if __name__ == "__main__":
    raise SystemExit(main())
