"""Real runs on two gloo ranks, with a fault in each; `make faults` runs all of them and prints the
table of docs/reliability.md."""
