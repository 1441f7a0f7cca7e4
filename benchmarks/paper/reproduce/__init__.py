"""The paper's tables and figures, made again: `python -m benchmarks.paper.reproduce --help`.

table      what a table or figure consists of, and the numbers that the paper prints
stages     the commands that make it, in their order, and what they will cost
results    what was found beside what the paper prints: tables, rows.json, the figure
small      stand-ins for models, data and answers, so that everything runs in minutes
"""
