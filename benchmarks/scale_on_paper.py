"""What a large cohort costs, from measured constants: arithmetic only, and every assumption an option.

    python -m benchmarks.scale_on_paper [--slides 100000] [--mm2 100] [--cpu-dollars 0.02] ...

In: constants that were measured (each with where it stands) and assumptions about slides and prices. Out: the tables of
`docs/scale.md`, as Markdown. What no one has measured yet is marked as such in the page, not here.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

__all__ = ["Cohort", "Measured", "cost"]


@dataclass(frozen=True)
class Measured:
    """Constants of two cores of an AMD EPYC (Zen 3), see docs/performance.md, and of the simulation and the bucket."""

    cpu_s_per_mm2: float = 2.15
    """Work on fields with `lite`: two workers, 96 s, 89.6 mm2 (docs/performance.md, the whole job)."""
    commit_cpu_s_per_million_cells: float = 11.3
    plan_cpu_s_per_slide: float = 2.0
    """Opening a slide in a process of its own and finding tissue; the planner's own arithmetic is 6 ms of it."""
    cells_per_mm2: float = 6338.0
    """567,845 cells on 89.6 mm2 of synthetic tissue."""
    fields_per_mm2: float = 1.35
    """Fields of 2048 px that hold tissue: 121 for 89.6 mm2."""
    table_bytes_per_cell: float = 59.0
    mask_bytes_per_cell: float = 59.3
    puts_per_field: float = 8.3
    """PUT, LIST and POST: `benchmarks.s3_requests`, as the next five."""
    gets_per_field: float = 18.5
    puts_per_slide: float = 55.4
    gets_per_slide: float = 25.1
    objects_per_field: float = 1.14
    objects_per_slide: float = 7.38
    puts_per_beat: float = 2.0
    """A claim's heartbeat lists, reads and writes."""
    gets_per_beat: float = 2.0
    beats_per_hour: float = 360.0
    slides_claimed: float = 256.0
    driver_cpu_s_per_field: float = 0.0044
    """Ray Data's and the ledger's work on one message, in the one driver."""
    driver_cpu_s_per_slide: float = 0.0055
    """Claim, plan's message, status, table of slides."""


@dataclass(frozen=True)
class Cohort:
    """What is assumed: each is an option."""

    slides: float = 100_000
    mm2: float = 100.0
    """Tissue analysed on a slide; 20 for a biopsy, 100 to 200 for a resection."""
    slide_gb: float = 1.0
    """Size of a slide's file."""
    gpu_s_per_mm2: float = 0.2
    """The aim for `student` on an H100. NOT MEASURED."""
    workers: float = 200.0
    """CPUs at work at the same time with `lite`; claims are kept alive as long as a run takes."""
    cpu_dollars: float = 0.02
    """A virtual CPU and hour on spot machines."""
    gpu_dollars: float = 2.5
    """An H100 and hour on spot machines, its CPUs included."""
    put_dollars: float = 0.005e-3
    """PUT, LIST or POST."""
    get_dollars: float = 0.0004e-3
    gb_month_dollars: float = 0.023
    busy: float = 0.85
    """Share of paid time that works; the rest is starting, waiting and work lost with spot machines."""


@dataclass(frozen=True)
class Cost:
    """What it takes."""

    mm2: float
    num_fields: float
    num_cells: float
    cpu_hours: float
    """`lite`, all on CPUs."""
    wall_hours: float
    gpu_hours: float
    puts: float
    gets: float
    objects: float
    read_tb: float
    table_tb: float
    mask_tb: float
    driver_hours: float
    """CPU time of one driver: the least wall time of one command."""
    cpu_run_dollars: float
    gpu_run_dollars: float
    request_dollars: float
    month_dollars: float
    """Keeping the outputs for a month."""


def cost(cohort: Cohort, measured: Measured) -> Cost:
    """Multiply."""
    mm2 = cohort.slides * cohort.mm2
    num_fields, num_cells = mm2 * measured.fields_per_mm2, mm2 * measured.cells_per_mm2
    commit_hours = num_cells / 1e6 * measured.commit_cpu_s_per_million_cells / 3600
    plan_hours = cohort.slides * measured.plan_cpu_s_per_slide / 3600
    cpu_hours = mm2 * measured.cpu_s_per_mm2 / 3600 + commit_hours + plan_hours
    gpu_hours = mm2 * cohort.gpu_s_per_mm2 / 3600
    wall_hours = cpu_hours / cohort.workers / cohort.busy
    beats = wall_hours * measured.beats_per_hour * measured.slides_claimed
    puts = num_fields * measured.puts_per_field + cohort.slides * measured.puts_per_slide
    gets = num_fields * measured.gets_per_field + cohort.slides * measured.gets_per_slide
    puts, gets = puts + beats * measured.puts_per_beat, gets + beats * measured.gets_per_beat
    table_tb, mask_tb = (
        num_cells * size / 1e12 for size in (measured.table_bytes_per_cell, measured.mask_bytes_per_cell)
    )
    driver = num_fields * measured.driver_cpu_s_per_field + cohort.slides * measured.driver_cpu_s_per_slide
    return Cost(
        mm2=mm2,
        num_fields=num_fields,
        num_cells=num_cells,
        cpu_hours=cpu_hours,
        wall_hours=wall_hours,
        gpu_hours=gpu_hours,
        puts=puts,
        gets=gets,
        objects=num_fields * measured.objects_per_field + cohort.slides * measured.objects_per_slide,
        read_tb=cohort.slides * cohort.slide_gb / 1e3,
        table_tb=table_tb,
        mask_tb=mask_tb,
        driver_hours=driver / 3600,
        cpu_run_dollars=cpu_hours / cohort.busy * cohort.cpu_dollars,
        gpu_run_dollars=gpu_hours / cohort.busy * cohort.gpu_dollars,
        request_dollars=puts * cohort.put_dollars + gets * cohort.get_dollars,
        month_dollars=(table_tb + mask_tb) * 1e3 * cohort.gb_month_dollars,
    )


_ROWS: tuple[tuple[str, str, str], ...] = (
    ("mm2 analysed", "mm2", "{:,.0f}"),
    ("fields of 2048 px", "num_fields", "{:,.0f}"),
    ("cells", "num_cells", "{:,.0f}"),
    ("CPU-hours, `lite` on CPUs", "cpu_hours", "{:,.0f}"),
    ("dollars for those", "cpu_run_dollars", "{:,.0f}"),
    ("hours with all workers", "wall_hours", "{:,.0f}"),
    ("GPU-hours, `student` (aim, **not measured**)", "gpu_hours", "{:,.0f}"),
    ("dollars for those", "gpu_run_dollars", "{:,.0f}"),
    ("PUT, LIST and POST requests", "puts", "{:,.0f}"),
    ("GET and HEAD requests", "gets", "{:,.0f}"),
    ("dollars for requests", "request_dollars", "{:,.0f}"),
    ("objects left", "objects", "{:,.0f}"),
    ("slides read, TB", "read_tb", "{:,.1f}"),
    ("tables, TB", "table_tb", "{:,.2f}"),
    ("masks, TB", "mask_tb", "{:,.2f}"),
    ("dollars a month to keep both", "month_dollars", "{:,.0f}"),
    ("hours of one driver's CPU", "driver_hours", "{:,.1f}"),
)


def table(cohorts: Sequence[tuple[str, Cohort]], measured: Measured) -> str:
    """Markdown, one column a cohort."""
    costs = [cost(cohort, measured) for _, cohort in cohorts]
    lines = ["| | " + " | ".join(name for name, _ in cohorts) + " |", "| --- |" + " ---: |" * len(cohorts)]
    for label, name, form in _ROWS:
        lines.append(f"| {label} | " + " | ".join(form.format(getattr(entry, name)) for entry in costs) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for entry in fields(Cohort):
        parser.add_argument("--" + entry.name.replace("_", "-"), type=float, default=entry.default)
    cohort = Cohort(**vars(parser.parse_args()))
    biopsies = replace(cohort, mm2=cohort.mm2 / 5, slide_gb=cohort.slide_gb / 5)
    ten_million = replace(cohort, slides=10e6 / (cohort.mm2 * Measured().fields_per_mm2))
    names = (f"{cohort.slides:,.0f} slides of {cohort.mm2:g} mm2", f"of {biopsies.mm2:g} mm2", "10 million fields")
    print(table(list(zip(names, (cohort, biopsies, ten_million), strict=True)), Measured()))


if __name__ == "__main__":
    main()
