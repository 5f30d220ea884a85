"""The stages of a training, its trainer, checkpoints and launch."""
