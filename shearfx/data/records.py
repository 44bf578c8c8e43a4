"""Documents, and how the fields of a record (a JSON object, a row of a table) become one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shearfx.errors import DataError, message

__all__ = ["Dialogue", "Document", "Kind", "Message", "Role", "Text", "document_of", "fields_used"]

Kind = Literal["pretrain", "instruct"]
Role = Literal["system", "user", "assistant"]

TEXT_FIELDS = ("text", "content")
CHAT_FIELDS = ("messages", "conversations", "conversation")
# (what is asked, what it is asked about or None, the answer), the names of well-known data sets
INSTRUCTION_FIELDS = (
    ("instruction", "input", "output"),  # Alpaca
    ("instruction", "context", "response"),  # Dolly
    ("instruction", "input", "response"),
    ("prompt", None, "completion"),
    ("prompt", None, "response"),
    ("question", None, "answer"),  # GSM8K
)
ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt"), "assistant"),
}


@dataclass(frozen=True)
class Text:
    """A document to learn every token of."""

    text: str
    where: str = ""  # file and line, for messages
    continues: bool = False  # the next document is a further part of this text, after a blank line


@dataclass(frozen=True)
class Message:
    """What one side says in a dialogue."""

    role: Role
    content: str


@dataclass(frozen=True)
class Dialogue:
    """A prompt and its response, or several in turn; only what the assistant says is to be learned.

    The first message may be the system's; user and assistant follow, the assistant last.  No messages at all:
    the record had no answer, so there is nothing to learn from it.
    """

    messages: tuple[Message, ...]
    input: str = ""  # Alpaca's input: what the last instruction is about, told apart by Alpaca's template
    where: str = ""  # file and line, for messages


Document = Text | Dialogue


def fields_used(fields: Iterable[str], kind: Kind, columns: Sequence[str] | None) -> list[str] | None:
    """Return the fields that :func:`document_of` reads in a record with these fields; None if there is no use for it.

    >>> fields_used(["id", "instruction", "output"], "instruct", None)
    ['instruction', 'output']
    """
    there = set(fields)
    if columns is not None:
        return list(columns) if there >= set(columns) else None
    if kind == "pretrain":
        return next(([name] for name in TEXT_FIELDS if name in there), None)
    for name in CHAT_FIELDS:
        if name in there:
            return [name]
    for shape in INSTRUCTION_FIELDS:
        if {shape[0], shape[2]} <= there:
            return [name for name in shape if name in there]
    return None


def document_of(record: Any, kind: Kind, columns: Sequence[str] | None, where: str) -> Document:
    """Make a document of a record, by the fields that it has or by ``columns``.

    Raises:
        DataError: the record is no object, lacks the fields, or has something else than text in them.
    """
    if not isinstance(record, Mapping):
        todo = 'write every document as an object, such as {"text": "..."}'
        raise DataError(message(f"this is no JSON object but {_kind_of(record)}", where=where, todo=todo))
    used = fields_used(map(str, record), kind, columns)
    if used is None:
        raise _no_use(record, kind, columns, where)
    if kind == "pretrain":
        return Text("\n\n".join(_text(record, name, where) for name in used), where)
    if len(used) == 1:
        return Dialogue(_trimmed(_messages(record[used[0]], used[0], where)), where=where)
    prompt, response = used[0], used[-1]
    if isinstance(record[prompt], list) or isinstance(record[response], list):
        asked = _messages(record[prompt], prompt, where, "user")
        turns = [*asked, *_messages(record[response], response, where, "assistant")]
        return Dialogue(_trimmed(turns), where=where)
    turns = [Message("user", _text(record, prompt, where)), Message("assistant", _text(record, response, where))]
    return Dialogue(_trimmed(turns), _text(record, used[1], where) if len(used) == 3 else "", where)


def _no_use(record: Mapping[str, Any], kind: Kind, columns: Sequence[str] | None, where: str) -> DataError:
    names = ", ".join(map(repr, record)) or "none"
    if columns is not None:
        missing = [name for name in columns if name not in record]
        what = f"the record has no field {' and no '.join(map(repr, missing))}; its fields: {names}"
        return DataError(message(what, where=where, todo="name fields that every record has in columns="))
    if kind == "pretrain":
        other = fields_used(record, "instruct", None)
        todo = "name its text: open_source(columns=...), or behind the file, notes.parquet#body"
        if other:
            todo = "these are instructions: open the source as kind='instruct'"
        return DataError(message(f"the record has no field 'text'; its fields: {names}", where=where, todo=todo))
    shapes = ", ".join(f"{first}/{last}" for first, _, last in INSTRUCTION_FIELDS)
    what = f"the record has no prompt and response (messages, {shapes}); its fields: {names}"
    todo = "name them: open_source(columns=...), or behind the file, data.jsonl#prompt,response"
    return DataError(message(what, where=where, todo=todo))


def _text(record: Mapping[str, Any], name: str, where: str) -> str:
    value = record[name]
    if value is None:  # how tables store "nothing here"
        return ""
    if not isinstance(value, str):
        what, todo = f"the field {name!r} is no text but {_kind_of(value)}", "make it a string, or leave it out"
        raise DataError(message(what, where=where, todo=todo))
    return value


def _messages(value: Any, name: str, where: str, speaker: Role | None = None) -> list[Message]:
    """Read a chat: a list of objects with role and content (or ShareGPT's from and value), or text of ``speaker``."""
    if value is None:
        return []
    if isinstance(value, str) and speaker is not None:
        return [Message(speaker, value)]
    if not isinstance(value, list):
        what, todo = f"the field {name!r} is no list of messages", 'use [{"role": "user", "content": "..."}, ...]'
        raise DataError(message(what, where=where, todo=todo))
    return [_message(turn, f"{where}, message {number}") for number, turn in enumerate(value, 1)]


def _message(turn: Any, where: str) -> Message:
    said = turn if isinstance(turn, Mapping) else {}
    role, content = said.get("role", said.get("from")), said.get("content", said.get("value"))
    if isinstance(content, list):  # parts, as multimodal chats have them
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        content = None if None in parts else "".join(map(str, parts))
    if role not in ROLES or not isinstance(content, str):
        what = f"a message needs a role ({', '.join(ROLES)}) and text as its content; this one is {str(turn)[:80]!r}"
        raise DataError(message(what, where=where, todo="leave such dialogues out, or convert them"))
    return Message(ROLES[role], content)


def _trimmed(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Begin with a system message or a user's, end with an answer; without an answer, nothing is left."""
    turns = list(messages)
    while turns and not (turns[-1].role == "assistant" and turns[-1].content.strip()):
        turns.pop()
    first_user = next((at for at, turn in enumerate(turns) if turn.role == "user"), len(turns))
    return tuple(turn for at, turn in enumerate(turns) if at >= first_user or turn.role == "system")


def _kind_of(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
