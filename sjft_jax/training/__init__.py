"""The trainer, the training step, the loop around it, evaluation, metrics and checkpoints."""
