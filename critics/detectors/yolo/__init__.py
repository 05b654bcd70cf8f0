"""The YOLO family, through the extra `yolo`: the one place that imports ultralytics (AGPL-3.0)."""
