"""From data files of any usual layout to the batches of every step."""
