"""What holds for every test: no network, one thread, fixed seeds, no deadlines."""

import os
import tempfile
from pathlib import Path

# Before any other import, since the packages read them when they are imported; and inherited by
# every process that a test starts.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    YOLO_OFFLINE="true",
    YOLO_AUTOINSTALL="false",
    YOLO_CONFIG_DIR=str(Path(tempfile.gettempdir(), "countgen-tests-ultralytics")),
    GRADIO_ANALYTICS_ENABLED="False",
    # The same rounding however many cores there are, and room for a second worker beside this one.
    OMP_NUM_THREADS="1",
)

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

from countgen._torchvision import hide_unloadable_torchvision

hide_unloadable_torchvision()  # before any test imports transformers or diffusers itself

# No test may fail because the machine is busy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
