"""Scores of a model's answers to tasks: ranked labels or decoded text, metrics with intervals, the choice of a step."""
