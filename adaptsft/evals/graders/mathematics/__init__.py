"""Grading mathematics: the published grader (paper*.py), and one that aims to be right: robust.py,
with the other files.
"""
