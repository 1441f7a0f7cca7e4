"""Python written by a model: extracted (sanitize), isolated (sandbox), judged (evalplus)."""
