"""Objectives: functions of the probability that the model gives the target token."""
