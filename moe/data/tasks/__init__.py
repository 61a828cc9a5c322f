"""The tasks of GLUE and SuperGLUE as seqio tasks, and any seqio task with metrics, to train on and to score."""

from moe.data.tasks.scored import ScoredTask, TaskExample, open_scored_tasks

__all__ = ["ScoredTask", "TaskExample", "open_scored_tasks"]
