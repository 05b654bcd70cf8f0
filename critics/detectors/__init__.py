"""Counters that see single objects: detectors, one file or folder a family."""
