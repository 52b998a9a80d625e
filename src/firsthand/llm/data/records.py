"""Chat and preference records from JSON lines, in the forms in use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from firsthand.llm.data.jsonl import JsonLine, read_json_lines
from firsthand.llm.data.problems import Cursor, OnProblem, Problem, SourceError

ROLES = ("system", "user", "assistant", "tool")
_QUESTION_AND_ANSWER = (("prompt", "completion"), ("question", "answer"))


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str

    def to_json(self) -> dict[str, str]:
        """As the forms in use write it."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """A conversation to learn from; its last message is the assistant's."""

    messages: tuple[Message, ...]
    place: str


@dataclass(frozen=True, slots=True)
class PreferenceRecord:
    """Two continuations of one conversation, the first of which was preferred.

    prompt ends before the assistant's answer; chosen and rejected end with the assistant's message
    and differ.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    place: str


Record = ChatRecord | PreferenceRecord
Report = Callable[[Problem], None]


class _Wrong(Exception):
    """Why a line is no record."""


def _text(fields: dict[str, object], key: str, *, optional: bool = False) -> str:
    value = fields.get(key, "" if optional else None)
    if value is None and optional:
        value = ""
    if not isinstance(value, str):
        what = "missing" if value is None else f"{type(value).__name__}, not text"
        raise _Wrong(f"'{key}' is {what}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Wrong(f"'{key}' has a lone surrogate at character {error.start}") from None
    return value


def _messages(value: object, key: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise _Wrong(f"'{key}' must be a list of messages that is not empty")
    messages = []
    for index, item in enumerate(value):
        place = f"{key}[{index}]"
        if not isinstance(item, dict):
            raise _Wrong(f"'{place}' must be an object")
        try:
            role, content = _text(item, "role"), _text(item, "content")
        except _Wrong as wrong:
            raise _Wrong(f"'{place}': {wrong}") from None
        if role not in ROLES:
            raise _Wrong(f"'{place}': the role '{role}' is none of {', '.join(ROLES)}")
        if role == "system" and index:
            raise _Wrong(f"'{place}': a system message must come first")
        messages.append(Message(role, content))
    return tuple(messages)


def _answer(value: object, key: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        messages: tuple[Message, ...] = (Message("assistant", _text({key: value}, key)),)
    else:
        messages = _messages(value, key)
    if messages[-1].role != "assistant":
        raise _Wrong(
            f"'{key}' must end with the assistant's message, not the {messages[-1].role}'s"
        )
    if not messages[-1].content.strip():
        raise _Wrong(f"'{key}': the last answer is empty")
    return messages


def _question(value: object, key: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        messages: tuple[Message, ...] = (Message("user", _text({key: value}, key)),)
    else:
        messages = _messages(value, key)
    if messages[-1].role == "assistant":
        raise _Wrong(f"'{key}' must not end with the assistant's message")
    return messages


def _preference(fields: dict[str, object], place: str) -> PreferenceRecord:
    for key in ("chosen", "rejected"):
        if key not in fields:
            raise _Wrong(f"'{key}' is missing")
    chosen, rejected = _answer(fields["chosen"], "chosen"), _answer(fields["rejected"], "rejected")
    if "prompt" in fields:
        prompt = _question(fields["prompt"], "prompt")
        # Some collections repeat the prompt in front of both answers.
        if chosen[: len(prompt)] == prompt == rejected[: len(prompt)]:
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    else:
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if not prompt:
            raise _Wrong("without 'prompt', 'chosen' and 'rejected' must begin alike")
    if chosen == rejected:
        raise _Wrong("'chosen' and 'rejected' are equal")
    return PreferenceRecord(prompt, chosen, rejected, place)


def _alpaca(fields: dict[str, object], place: str) -> ChatRecord:
    instruction, given = _text(fields, "instruction"), _text(fields, "input", optional=True)
    if not instruction.strip():
        raise _Wrong("'instruction' is empty")
    question = f"{instruction}\n\n{given}" if given.strip() else instruction
    system = _text(fields, "system", optional=True)
    first = (Message("system", system),) if system.strip() else ()
    answer = _answer(_text(fields, "output"), "output")
    return ChatRecord((*first, Message("user", question), *answer), place)


def parse_record(fields: dict[str, object], place: str) -> Record:
    """A record from the fields of one object, by the keys that it has.

    `chosen` or `rejected`: a preference, with `prompt` as text or messages, or without where both
    begin alike. `messages`: a chat. `instruction`: Alpaca. `prompt` and `completion`, or `question`
    and `answer`: a chat.

    Raises:
        ValueError: why it is none of these.
    """
    try:
        if "chosen" in fields or "rejected" in fields:
            return _preference(fields, place)
        if "messages" in fields:
            return ChatRecord(_answer(fields["messages"], "messages"), place)
        if "instruction" in fields:
            return _alpaca(fields, place)
        for asked, given in _QUESTION_AND_ANSWER:
            if asked in fields and given in fields:
                prompt = _question(fields[asked], asked)
                return ChatRecord((*prompt, *_answer(fields[given], given)), place)
    except _Wrong as wrong:
        raise ValueError(str(wrong)) from None
    keys = ", ".join(sorted(fields)) or "none"
    raise ValueError(
        "no form that is known: 'messages', 'prompt' with 'chosen' and 'rejected', "
        "'instruction' with 'output', 'prompt' with 'completion', or 'question' with 'answer'; "
        f"the keys are {keys}"
    )


def read_records(
    path: Path, *, on_problem: OnProblem = "fatal", report: Report | None = None
) -> Iterator[Record]:
    """The records of a JSONL file.

    Args:
        on_problem: "fatal" raises at the first bad line, "skip" leaves it out.
        report: is told of every line left out.
    Raises:
        SourceError: a line that is no record, with file, line and byte; or an empty file.
    """
    empty = True
    for item in read_json_lines(path, str(path), Cursor()):
        problem = item if isinstance(item, Problem) else None
        if isinstance(item, JsonLine):
            try:
                record = parse_record(item.fields, f"{path}, line {item.line}")
            except ValueError as error:
                problem = Problem(str(path), str(error), item.after, item.offset, item.line)
            else:
                empty = False
                yield record
        if problem is not None:
            if on_problem == "fatal":
                raise SourceError(str(problem))
            if report is not None:
                report(problem)
    if empty:
        raise SourceError(f"{path}: no records")


def read_chats(path: Path, *, on_problem: OnProblem = "fatal") -> Iterator[ChatRecord]:
    """The conversations of a file; a preference is an error.

    Raises:
        SourceError: see read_records.
    """
    for record in read_records(path, on_problem=on_problem):
        if not isinstance(record, ChatRecord):
            raise SourceError(f"{record.place}: a preference, where a conversation was expected")
        yield record


def read_preferences(path: Path, *, on_problem: OnProblem = "fatal") -> Iterator[PreferenceRecord]:
    """The preferences of a file; a conversation is an error.

    Raises:
        SourceError: see read_records.
    """
    for record in read_records(path, on_problem=on_problem):
        if not isinstance(record, PreferenceRecord):
            raise SourceError(f"{record.place}: a conversation, where a preference was expected")
        yield record
