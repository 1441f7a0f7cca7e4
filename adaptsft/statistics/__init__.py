"""Token-probability statistics: of a step, and of the base model."""
