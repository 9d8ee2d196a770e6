"""Tasks: from a ``Task`` of the study to tokenized rows and their audit. This module and ``library`` load no torch."""

from loracle.tasks.library import known_tasks, load_task

__all__ = ["known_tasks", "load_task"]
