"""Benchmarks and experiments: speed as ratios within one run (`python -m bench`), results with their protocol (`bench.experiments`)."""
