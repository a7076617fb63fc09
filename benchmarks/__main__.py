"""All benchmarks, or those named: `make bench`, or `python -m benchmarks --only decode_flows query`.

Each module below measures one row or a few against a named rival in the same run. Prints one table and writes
`benchmarks/results/<date>.json`; docs/performance.md explains each row.
"""

import argparse
import importlib

from benchmarks.harness import Row, print_table, write_results

MODULES = (
    "decode_flows",
    "decode_hv",
    "reading",
    "forward",
    "whole_job",
    "commit_scale",
    "disk",
    "query",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MODULES, default=MODULES)
    rows: list[Row] = []
    for name in parser.parse_args().only:
        found: list[Row] = importlib.import_module(f"benchmarks.{name}").measure()
        rows += found
        path = write_results(found)
        print(f"{name}: done")
    print_table(rows)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
