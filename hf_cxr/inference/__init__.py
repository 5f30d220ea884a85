"""The code that a checkpoint brings: read the views, pack, generate, label. It imports nothing else of the kit."""
