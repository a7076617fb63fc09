"""ratiopath's reading of tiles through Ray Data, for `benchmarks.reading`; runs in an environment of its own.

One JSON line in, one out. The argument is the size of Ray's object store. In: `slides`, paths; `tile_px`;
`sums`, where to save what was seen: `path`, `x`, `y`, `sum`.
Out: `seconds` of the whole dataset, `tiles`, `version`. The steps are those of ratiopath's own guide: slides, a grid of
tiles, tiles in blocks of a fixed size, pixels; a last step looks at every tile, so that none need cross the object
store.
"""

import importlib.metadata
import json
import os
import sys
import time
from typing import Any

import numpy as np

TILES_PER_BLOCK = 128
MAX_STARTS = 4


def answer(request: dict[str, Any]) -> dict[str, float | str]:
    from ratiopath.ray import read_slides
    from ratiopath.tiling import read_slide_tiles

    side = int(request["tile_px"])
    started = time.perf_counter()
    tiles = read_slides(request["slides"], level=0, tile_extent=side, stride=side).flat_map(grid)
    seen = tiles.repartition(target_num_rows_per_block=TILES_PER_BLOCK).map_batches(read_slide_tiles).map_batches(look)
    rows = seen.take_all()
    seconds = time.perf_counter() - started
    np.savez(request["sums"], **{name: np.array([row[name] for row in rows]) for name in ("path", "x", "y", "sum")})
    return {"seconds": seconds, "tiles": len(rows), "version": importlib.metadata.version("ratiopath")}


def grid(slide: dict[str, Any]) -> list[dict[str, Any]]:
    from ratiopath.tiling import grid_tiles

    extents = [(slide[f"{kind}_x"], slide[f"{kind}_y"]) for kind in ("extent", "tile_extent", "stride")]
    keep = ("path", "level", "tile_extent_x", "tile_extent_y")
    return [
        {"tile_x": x, "tile_y": y, **{name: slide[name] for name in keep}}
        for x, y in grid_tiles(slide_extent=extents[0], tile_extent=extents[1], stride=extents[2], last="drop")
    ]


def look(batch: dict[str, Any]) -> dict[str, Any]:
    sums = [int(np.asarray(tile)[::7, ::5].sum()) for tile in batch["tile"]]
    return {"path": batch["path"], "x": batch["tile_x"], "y": batch["tile_y"], "sum": np.array(sums)}


def start_ray() -> None:
    """On loopback, two CPUs; Ray gives its own processes 30 s, which a busy machine exceeds: then again."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    for attempt in range(MAX_STARTS):
        try:
            settings = {"num_cpus": 2, "object_store_memory": int(sys.argv[1]), "include_dashboard": False}
            ray.init(address="local", log_to_driver=False, _node_ip_address="127.0.0.1", **settings)
            return
        except Exception as error:
            ray.shutdown()
            if attempt == MAX_STARTS - 1 or "timed out during startup" not in str(error):
                raise


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print goes to stderr
    start_ray()
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
