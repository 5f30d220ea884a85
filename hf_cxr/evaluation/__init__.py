"""What a score means: predictions, image-blind baselines, intervals, the report."""
