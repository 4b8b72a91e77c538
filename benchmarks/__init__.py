"""`vae-fast bench`: runs the benchmarks, compares two records, writes the report. Reading records takes no checkout."""
