"""Dialogues as text: the tokenizer's own chat template, or Alpaca's; which part of it is to be learned."""

from __future__ import annotations

import os.path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from shearfx.data.records import Dialogue
from shearfx.errors import DataError, message

__all__ = ["Chosen", "Segment", "Template", "choose", "render"]

Template = Literal["auto", "chat", "alpaca"]
Chosen = Literal["chat", "alpaca"]
Segment = tuple[str, bool]  # (text, whether it is to be learned)

# Taori et al. 2023, Stanford Alpaca, with the line break before the answer that their data set's own texts have.
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)


def choose(template: Template, tokenizer: PreTrainedTokenizerBase) -> Chosen:
    """Decide which template ``"auto"`` stands for: the tokenizer's own, or Alpaca's if it has none.

    Raises:
        DataError: there is no such template, or the tokenizer has no chat template and is asked for it.
    """
    has_one = bool(getattr(tokenizer, "chat_template", None))
    if template == "auto":
        return "chat" if has_one else "alpaca"
    if template not in ("chat", "alpaca"):
        what, todo = f"there is no template {template!r}", "use 'auto', 'chat' or 'alpaca'"
        raise DataError(message(what, where="pack(template=...)", todo=todo))
    if template == "chat" and not has_one:
        todo = "use template='alpaca', or a tokenizer that has one"
        raise DataError(message("the tokenizer has no chat template", where="pack(template='chat')", todo=todo))
    return template


def render(dialogue: Dialogue, template: Chosen, tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    """Write a dialogue out: what the model is given and what it is to say, in turns.

    Raises:
        DataError: the chat template refuses the dialogue.
    """
    return _chat(dialogue, tokenizer) if template == "chat" else _alpaca(dialogue)


def _alpaca(dialogue: Dialogue) -> list[Segment]:
    """Alpaca's template; a system message takes the place of its first paragraph, further turns follow in its form."""
    system = [turn.content for turn in dialogue.messages if turn.role == "system"]
    given = "\n\n".join(system) or (WITH_INPUT if dialogue.input else WITHOUT_INPUT)
    segments: list[Segment] = []
    for turn in dialogue.messages:
        if turn.role == "user":
            given += f"\n\n### Instruction:\n{turn.content}"
        elif turn.role == "assistant":
            given += f"\n\n### Input:\n{dialogue.input}" if dialogue.input and not segments else ""
            segments += [(f"{given}\n\n### Response:\n", False), (turn.content, True)]
            given = ""
    return segments


def _chat(dialogue: Dialogue, tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    """Use the tokenizer's template: learned is what an answer adds to the prompt that asks for it.

    Templates that write earlier answers differently once the dialogue goes on (those that leave out old thoughts)
    have only the answers learned that stand in the whole dialogue as they were given.
    """
    turns = [{"role": turn.role, "content": turn.content} for turn in dialogue.messages]
    if dialogue.input:
        asked = next(turn for turn in reversed(turns) if turn["role"] == "user")
        asked["content"] += f"\n\n{dialogue.input}"
    eos = tokenizer.eos_token
    answers: list[tuple[str, str]] = []  # (all that stands before the answer, the same with the answer)
    for at, turn in enumerate(turns):
        if turn["role"] == "assistant":
            asked_for = _apply(turns[:at], tokenizer, dialogue.where, add_generation_prompt=True)
            answered = _apply(turns[: at + 1], tokenizer, dialogue.where)
            if isinstance(eos, str) and answered.rstrip().endswith(eos):
                answered = answered.rstrip()  # white space after the end of a turn belongs to the next
            shared = os.path.commonprefix([asked_for, answered])  # noqa: RUF071, of texts: they are no paths
            answers.append((shared, answered))
    segments: list[Segment] = []
    for before, answered in reversed(answers):
        if segments and not segments[0][0].startswith(answered):
            break
        if segments:
            segments[0] = (segments[0][0][len(answered) :], False)
        segments[:0] = [(before, False), (answered[len(before) :], True)]
    return segments


def _apply(turns: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, where: str, **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))
    except Exception as error:  # templates are programs with conditions of their own
        todo = "leave that dialogue out, or use template='alpaca'"
        raise DataError(message(f"the chat template refuses a dialogue: {error}", where=where, todo=todo)) from error
