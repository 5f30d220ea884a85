"""What serves a checkpoint: the page to try it on, and exported checkpoints with their runner without torch."""
