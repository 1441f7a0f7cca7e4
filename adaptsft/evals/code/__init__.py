"""Python written by a model: taken out of its text (sanitize), run apart from everything else
(sandbox), and judged (evalplus).
"""
