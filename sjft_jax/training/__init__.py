"""The trainer, the training step, the loop around it, evaluation and metrics."""
