"""Ranks, signals and checkpoints."""
