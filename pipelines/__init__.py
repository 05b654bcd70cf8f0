"""Text and noise to images, differentiably: one module per family of models.

Nothing here knows of counting, and importing the package itself loads no torch.
"""
