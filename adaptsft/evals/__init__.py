"""The benchmarks of the paper, in three stages with files between them: generate, score, report."""
