"""CLIP-EBC: counts in blocks, classified by CLIP's text encoder."""

from critics.density.clip_ebc.critic import CARDS, load, number_sentences, save
from critics.density.clip_ebc.network import NWPU_ANCHORS, ClipEbcConfig, ClipEbcNetwork

__all__ = [
    "CARDS",
    "NWPU_ANCHORS",
    "ClipEbcConfig",
    "ClipEbcNetwork",
    "load",
    "number_sentences",
    "save",
]
