"""The recipe that makes every trained file of pocket again: ``python -m countgen.pocket.train``."""
