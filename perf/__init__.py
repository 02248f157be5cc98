"""Performance tests: ratios against peers, measured in one run. `make perf` runs all; `make perf-peers` adds the peers."""
