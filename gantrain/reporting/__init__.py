"""Reports of a run: console, record, W&B, TensorBoard, charts, page, tables."""
