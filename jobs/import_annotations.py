"""Bring corrections made in QuPath back as a data set; see --help.

A cell set and its slides (`corrections/exported.py`) -> corrected objects (`corrections/objects.py`) -> what was
changed (`corrections/comparing.py`) -> labelled images (`corrections/imaging.py`).
"""

from cellmill_training.corrections.job import main

if __name__ == "__main__":
    raise SystemExit(main())
