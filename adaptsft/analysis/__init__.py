"""About a model or a run: memory, diagnosis, report."""
