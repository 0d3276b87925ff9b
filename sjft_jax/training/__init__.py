"""Losses, the training step, the loop, evaluation and checkpoints."""
