"""The recipe that makes every trained file of pocket again: ``python -m countgen.pocket.train``."""

from countgen._torchvision import hide_unloadable_torchvision

hide_unloadable_torchvision()  # the modules here import diffusers and transformers at their top
