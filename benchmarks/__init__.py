"""What m3dist costs, as ratios printed in one run: `python -m benchmarks`."""
