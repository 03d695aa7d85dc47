"""The benchmark suite: measured, never asserted on a clock. See docs/benchmarks.md."""
