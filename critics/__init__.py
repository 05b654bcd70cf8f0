"""Images to counts, differentiably: one module per family of counters.

Nothing here knows of diffusion, and importing the package itself loads no torch.
"""
