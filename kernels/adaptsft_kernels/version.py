"""The version of these files, which adaptsft compares with its own when it is imported."""

__version__ = "0.1.0"
