"""Recipes, figures and training sets of arXiv:2510.00526."""
