"""Training sets, prepared by tools/prepare_data.py: `source` opens files or the hub, `sets` says what each is, `pipeline` does the work."""
