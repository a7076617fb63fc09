"""Let a heavy model score the cells that a query chooses; see --help.

A query (`rescore/choosing.py`) -> the tiles that hold its cells (`rescore/scoring.py`) -> `rescored/<slide_id>.parquet`
(`rescore/tables.py`) and the agreement of both models (`rescore/agreement.py`).
"""

from cellmill.rescore.job import main

if __name__ == "__main__":
    raise SystemExit(main())
