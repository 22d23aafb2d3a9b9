"""The engine: stages, steps, checkpoints, logs."""
