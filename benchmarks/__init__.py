"""Speed, memory and accuracy scenarios; each runs as ``python -m benchmarks.NAME`` and prints JSON."""
