"""Compare two models or cell sets on the same slides; see --help.

Two cell sets (`comparing/run.py`) -> cells paired one to one (`comparing/pairing.py`) -> shares, intervals and margins
(`comparing/gate.py`) -> comparison.json and a page (`comparing/page.py`).
"""

from cellmill.comparing.job import main

if __name__ == "__main__":
    raise SystemExit(main())
