"""Pocket: a small world of emoji scenes with a generator and counters that run on a bare laptop.

``world`` names what there is to draw, ``scenes`` composes pictures with exact boxes, ``captions`` says
what they show. The trained files lie in the folders beside this one, and ``python -m
countgen.pocket.train`` makes every one of them again.
"""
