"""Speed as ratios within one run (`python -m bench`); results with their protocol (`python -m bench.experiments`)."""
