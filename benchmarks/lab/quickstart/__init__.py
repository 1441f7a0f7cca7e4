"""The quick start: a tiny model, generated tasks, three objectives and a table, with no data,
download or GPU.

    python -m benchmarks.lab.quickstart configs/quickstart.yaml

It is a small grid of benchmarks.lab, which keeps the trained models; `report` writes and plots.
"""
