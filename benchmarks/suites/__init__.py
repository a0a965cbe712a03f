"""What `python -m benchmarks` measures, a module a suite; each gives rows of the table."""
