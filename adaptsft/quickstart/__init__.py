"""The quick start: a tiny model, generated tasks, three objectives and a table, with no data, download or GPU.

    python -m adaptsft.quickstart configs/quickstart.yaml

`tasks` generates the data, `runs` trains (with adaptsft.train) and samples, `report` prints, writes and plots; `__main__` is the order.
"""
