"""One self-contained page about some training runs: `python -m adaptsft.report RUN…`."""
