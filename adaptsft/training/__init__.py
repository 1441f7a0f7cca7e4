"""What the loop in train.py is made of."""
