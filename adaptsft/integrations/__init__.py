"""The adaptive objective in other programs' trainers."""
