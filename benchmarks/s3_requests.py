"""What a run asks of a bucket: requests by kind, for each slide and for each field.

    python -m benchmarks.s3_requests

A cohort with known cells goes from bucket to bucket over a real S3 API (moto's server, as in the tests), once with few
fields a slide and once with many; the difference is what a field costs, the rest what a slide costs. Prints one JSON
document; `docs/scale.md` multiplies it.
"""

import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from cohort_helpers import run
from oracle import OracleModel, make_slide
from s3_server import CREDENTIALS, FaultProxy, fault_proxy, moto_server

NUM_SLIDES = 3
FIELD_PX = 512
SIZES = {"few": (1024, 512), "many": (2048, 2048)}
"""Slides of 2 and of 16 fields."""
DOLLARS = {"PUT": 0.005e-3, "LIST": 0.005e-3, "POST": 0.005e-3, "GET": 0.0004e-3, "HEAD": 0.0004e-3, "DELETE": 0.0}
"""S3 Standard, us-east-1, a request (aws.amazon.com/s3/pricing, as known in 2025)."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, moto_server() as port, fault_proxy(port) as proxy:
        os.environ.update(CREDENTIALS, AWS_DEFAULT_REGION="us-east-1", AWS_ENDPOINT_URL=proxy.url)
        os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
        counted = {name: count(Path(folder) / name, proxy, *size) for name, size in SIZES.items()}
    fields = {name: width * height // FIELD_PX**2 for name, (width, height) in SIZES.items()}
    kinds = sorted({kind for requests, _ in counted.values() for kind in requests})
    each: dict[str, dict[str, float]] = {"field": {}, "slide": {}}
    for kind in kinds:
        few, many = (counted[name][0][kind] / NUM_SLIDES for name in ("few", "many"))
        each["field"][kind] = round((many - few) / (fields["many"] - fields["few"]), 2)
        each["slide"][kind] = round(few - fields["few"] * each["field"][kind], 2)
    objects = {name: counted[name][1] / NUM_SLIDES for name in SIZES}
    per_field = (objects["many"] - objects["few"]) / (fields["many"] - fields["few"])
    report = {
        "requests": each,
        "objects_left": {"field": round(per_field, 2), "slide": round(objects["few"] - fields["few"] * per_field, 2)},
        "dollars_per_million": {
            of: round(1e6 * sum(DOLLARS[kind] * number for kind, number in numbers.items()), 2)
            for of, numbers in each.items()
        },
    }
    print(json.dumps(report, indent=1))


def count(folder: Path, proxy: FaultProxy, width: int, height: int) -> tuple[Counter[str], int]:
    """Requests of a run by kind, and objects that are left."""
    bucket, seen = f"cells-{folder.name}", Counter[str]()
    filesystem: Any = fsspec.filesystem("s3")
    filesystem.mkdir(bucket)
    for seed in range(NUM_SLIDES):
        make_slide(folder / f"slide_{seed}.tif", width=width, height=height, seed=seed, corners=FIELD_PX)
        filesystem.put_file(str(folder / f"slide_{seed}.tif"), f"{bucket}/slides/slide_{seed}.tif")

    def seen_one(method: str, path: str) -> bool:
        seen["LIST" if method == "GET" and ("list-type" in path or "prefix=" in path) else method] += 1
        return True

    proxy.fail(*["pass"] * 10_000_000, matching=seen_one)
    out, cache = f"s3://{bucket}/out", str(folder / "cache")
    report = run([f"s3://{bucket}/slides"], out, OracleModel(folder), field_px=FIELD_PX, slide_cache=cache)
    proxy.fail()
    assert report.all_done
    filesystem.invalidate_cache()
    return seen, len(filesystem.find(f"{bucket}/out"))


if __name__ == "__main__":
    main()
