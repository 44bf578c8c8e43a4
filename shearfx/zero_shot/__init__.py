"""Zero-shot tasks: which continuation of a text a language model finds likeliest, as lm-evaluation-harness asks."""

from shearfx.zero_shot.answers import Answer, answers
from shearfx.zero_shot.comparing import Kept, kept
from shearfx.zero_shot.line_file import LineFile
from shearfx.zero_shot.loss_file import LossFile
from shearfx.zero_shot.results import TaskResult, zero_shot
from shearfx.zero_shot.tasks import Item, Task, read_task, read_tasks
from shearfx.zero_shot.whose import whose

__all__ = [
    "Answer", "Item", "Kept", "LineFile", "LossFile", "Task", "TaskResult", "answers", "kept", "read_task",
    "read_tasks", "whose", "zero_shot",
]  # fmt: skip
