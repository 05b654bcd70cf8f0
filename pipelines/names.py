"""Names of the presets, without their cards: an unknown one is told before torch is loaded."""

from __future__ import annotations

from typing import Final

PRESET_NAMES: Final = (
    "sd-turbo",
    "lcm-dreamshaper",
    "sdxl-turbo",
    "sdxl-lightning",
    "sdxl-lightning-1step",
    "hyper-sdxl",
    "pixart-dmd",
    "pixart-lcm",
    "pixart-sigma",
    "sana-sprint",
    "sd3.5-large-turbo",
    "sd3.5-medium",
    "flux-schnell",
    "z-image-turbo",
)
