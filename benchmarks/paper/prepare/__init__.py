"""Training sets, prepared by python -m benchmarks.paper.prepare: `source` opens files or the hub,
`sets` says what each is, `pipeline` does the work."""
