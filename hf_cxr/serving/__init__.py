"""Exported checkpoints and their runner without torch, and the app."""
