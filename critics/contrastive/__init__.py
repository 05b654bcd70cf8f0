"""Counters that compare pictures with captions of every number."""
