"""Prove that a cell set is whole, or say exactly what is not; see --help.

Objects (`verify/listing.py`) -> bytes against digests (`verify/slide.py`) -> tables (`verify/table.py`) and masks
(`verify/mask.py`) -> findings (`verify/findings.py`).
"""

from cellmill.verify.job import main

if __name__ == "__main__":
    raise SystemExit(main())
