"""What does a run say? Console, record, W&B, charts, page, tables."""
