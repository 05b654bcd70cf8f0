"""Speed, memory and accuracy scenarios; each runs as ``python -m benchmarks.NAME`` and prints JSON."""

from countgen._torchvision import hide_unloadable_torchvision

hide_unloadable_torchvision()  # they import diffusers and transformers themselves
