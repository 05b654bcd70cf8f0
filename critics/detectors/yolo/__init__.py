"""The YOLO family, through the extra ``yolo``: the one place that imports ultralytics (AGPL-3.0).

Importing this package does not import ultralytics; loading and saving do.
"""

from critics.detectors.yolo.critic import CARDS, load
from critics.detectors.yolo.models import save_folder
from critics.detectors.yolo.text import save_text_encoder

__all__ = ["CARDS", "load", "save_folder", "save_text_encoder"]
