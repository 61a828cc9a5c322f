"""Compile for a TPU slice nobody has here: memory, FLOPs, collectives, time."""
