"""Counters that see a density or a map of counts, one file or folder a family."""
