import json
from pathlib import Path

import pytest

from firsthand.llm.data.problems import Problem, SourceError
from firsthand.llm.data.records import (
    ChatRecord,
    Message,
    PreferenceRecord,
    parse_record,
    read_chats,
    read_preferences,
    read_records,
)

USER, ANSWER = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
OTHER = {"role": "assistant", "content": "5"}
ASKED, RIGHT, WRONG = (
    Message("user", "2 + 2?"),
    Message("assistant", "4"),
    Message("assistant", "5"),
)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [USER, ANSWER]},
        {"instruction": "2 + 2?", "output": "4"},
        {"instruction": "2 + 2?", "input": "", "output": "4"},
        {"prompt": "2 + 2?", "completion": "4"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"question": "2 + 2?", "answer": "4"},
    ],
)
def test_the_forms_of_a_chat_are_one(fields: dict[str, object]) -> None:
    assert parse_record(fields, "here") == ChatRecord((ASKED, RIGHT), "here")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]},
        {"prompt": [USER], "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
    ],
)
def test_the_forms_of_a_preference_are_one(fields: dict[str, object]) -> None:
    assert parse_record(fields, "here") == PreferenceRecord((ASKED,), (RIGHT,), (WRONG,), "here")


def test_alpaca_puts_the_input_behind_the_instruction() -> None:
    record = parse_record({"instruction": "Add", "input": "2 2", "output": "4", "system": "s"}, "")
    assert isinstance(record, ChatRecord)
    assert record.messages == (Message("system", "s"), Message("user", "Add\n\n2 2"), RIGHT)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "the keys are none"),
        ({"text": "a"}, "no form that is known"),
        ({"messages": []}, "'messages' must be a list"),
        ({"messages": ["a"]}, r"'messages\[0\]' must be an object"),
        ({"messages": [{"role": "user"}]}, r"'messages\[0\]': 'content' is missing"),
        ({"messages": [{"role": "user", "content": 3}]}, "int, not text"),
        ({"messages": [{"role": "narrator", "content": "a"}]}, "the role 'narrator' is none of"),
        ({"messages": [USER]}, "must end with the assistant's message, not the user's"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "the last answer is empty"),
        ({"messages": [USER, {"role": "system", "content": "s"}, ANSWER]}, "must come first"),
        ({"messages": [USER, {"role": "assistant", "content": "\ud800"}]}, "lone surrogate"),
        ({"instruction": "a"}, "'output' is missing"),
        ({"instruction": " ", "output": "a"}, "'instruction' is empty"),
        ({"prompt": "a", "chosen": "b"}, "'rejected' is missing"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "are equal"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "'rejected': the last answer is empty"),
        ({"prompt": [USER, ANSWER], "chosen": "b", "rejected": "c"}, "must not end with"),
        ({"chosen": "b", "rejected": "c"}, "must begin alike"),
    ],
)
def test_what_is_wrong_is_said(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_record(fields, "here")


def lines_file(path: Path, *lines: object) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def test_each_error_has_file_and_line(tmp_path: Path) -> None:
    good = {"messages": [USER, ANSWER]}
    path = lines_file(tmp_path / "a.jsonl", good, "", {"messages": []}, good, "{broken", [1], good)
    with pytest.raises(SourceError, match=r"a\.jsonl, line 3, byte \d+: 'messages' must be"):
        list(read_records(path))
    problems: list[Problem] = []
    records = list(read_records(path, on_problem="skip", report=problems.append))
    assert [record.place for record in records] == [f"{path}, line {n}" for n in (1, 4, 7)]
    assert [problem.line for problem in problems] == [3, 5, 6]
    assert "broken JSON" in str(problems[1])
    assert "must be an object" in str(problems[2])


def test_a_file_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    chats = lines_file(tmp_path / "chats.jsonl", {"messages": [USER, ANSWER]})
    pairs = lines_file(tmp_path / "pairs.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"})
    assert len(list(read_chats(chats))) == len(list(read_preferences(pairs))) == 1
    with pytest.raises(SourceError, match=r"pairs\.jsonl, line 1: a preference, where"):
        list(read_chats(pairs))
    with pytest.raises(SourceError, match=r"chats\.jsonl, line 1: a conversation, where"):
        list(read_preferences(chats))


def test_an_empty_or_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"a\.jsonl: no records"):
        list(read_records(lines_file(tmp_path / "a.jsonl", "", "")))
    with pytest.raises(SourceError, match=r"missing\.jsonl: cannot be read"):
        list(read_records(tmp_path / "missing.jsonl"))


def test_a_message_goes_back_to_json() -> None:
    assert ASKED.to_json() == USER
