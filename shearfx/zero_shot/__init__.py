"""Zero-shot tasks: which continuation of a text a language model finds likeliest, as lm-evaluation-harness asks."""

from shearfx.zero_shot.answers import Answer, answers
from shearfx.zero_shot.comparing import Kept, kept
from shearfx.zero_shot.results import TaskResult, zero_shot
from shearfx.zero_shot.tasks import Item, Task, read_task, read_tasks

__all__ = ["Answer", "Item", "Kept", "Task", "TaskResult", "answers", "kept", "read_task", "read_tasks", "zero_shot"]
