"""Conversations as packed rows: what is learnt from, in which order, resumed exactly."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.alignment.chat_data import (
    ChatData,
    PackedChats,
    chat_data,
    encoded_chat,
    held_out_questions,
)
from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.settings import AlignmentSettings, SftSettings, TaskSettings
from firsthand.llm.data.packing import Example
from firsthand.llm.data.problems import SourceError
from firsthand.llm.data.records import ChatRecord, Message
from firsthand.llm.data.tasks import generate_tasks
from firsthand.llm.tokenizer import Tokenizer
from firsthand.llm.tokenizer.chat import ChatTemplate

GSM8K = Path(__file__).resolve().parents[4] / "shared" / "data" / "gsm8k-train.jsonl"


@pytest.fixture(scope="module")
def template(chat_tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate(chat_tokenizer)


def chat(*contents: str, place: str = "file.jsonl, line 3") -> ChatRecord:
    roles = ("user", "assistant")
    messages = tuple(Message(roles[k % 2], text) for k, text in enumerate(contents))
    return ChatRecord(messages, place)


def examples_of(lengths: list[int]) -> list[Example]:
    """Examples whose ids tell which one it is: all of them are its number."""
    return [Example([k] * n, [False] + [True] * (n - 1)) for k, n in enumerate(lengths)]


def packed(examples: list[Example], **changes: Any) -> PackedChats:
    settings: dict[str, Any] = {"length": 12, "rows": 3, "padding": 999, "seed": 4, **changes}
    return PackedChats(examples, "these", **settings)


def lines(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def test_only_the_answers_are_trained_on(template: ChatTemplate, chat_tokenizer: Tokenizer) -> None:
    example = encoded_chat(chat("2+2", "4", "and?", "no"), template, 40)
    assert example is not None
    ids = np.asarray(example.ids)[np.asarray(example.trained)]
    four, no = chat_tokenizer.encode("4"), chat_tokenizer.encode("no")
    assert ids.tolist() == [*four, template.end, *no, template.end]


def test_a_packed_row_predicts_each_answer_from_its_own_prompt(
    template: ChatTemplate, chat_tokenizer: Tokenizer
) -> None:
    records = [chat(f"{k}+{k}", str(2 * k)) for k in range(5)]
    examples = [e for r in records if (e := encoded_chat(r, template, 40)) is not None]
    batch = packed(examples, length=40, rows=1).next_batch()
    targets = batch.targets[0]
    assert batch.trained_tokens == sum(len(str(2 * k)) + 1 for k in range(5))
    for position in np.flatnonzero(targets >= 0):
        same = batch.documents[0] == batch.documents[0, position]
        own = batch.inputs[0][same].tolist()
        asked = own[1 : own.index(template.end)]
        answer = str(2 * int(chat_tokenizer.decode(asked[:1])))
        assert targets[position] in (*chat_tokenizer.encode(answer), template.end)


@given(
    st.lists(st.integers(2, 13), min_size=1, max_size=60),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_every_example_comes_once_in_an_epoch(lengths: list[int], rows: int, seed: int) -> None:
    chats = packed(examples_of(lengths), rows=rows, seed=seed)
    seen: list[int] = []
    while len(seen) < 2 * len(lengths):
        batch = chats.next_batch()
        assert batch.inputs.shape == (rows, 12)
        for row in range(rows):
            documents = batch.documents[row]
            for number in range(documents.max() + 1):
                inside = documents == number
                found = set(batch.inputs[row][inside].tolist())
                assert len(found) == 1
                assert inside.sum() == lengths[found.copy().pop()] - 1
                seen += found
    for epoch in range(len(seen) // len(lengths)):
        part = seen[epoch * len(lengths) : (epoch + 1) * len(lengths)]
        assert sorted(part) == list(range(len(lengths)))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    lengths = [13] * 40
    one, other = (
        packed(examples_of(lengths), rows=40),
        packed(examples_of(lengths), rows=40, seed=5),
    )
    first, second = (one.next_batch().inputs[:, 0].tolist() for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second
    assert other.next_batch().inputs[:, 0].tolist() not in (first, list(range(40)))


@given(st.integers(0, 25), st.integers(1, 3))
def test_resumed_at_any_step_the_batches_are_the_same(steps: int, rows: int) -> None:
    examples = examples_of([2 + k * 7 % 11 for k in range(23)])
    unbroken, first = packed(examples, rows=rows), packed(examples, rows=rows)
    for _ in range(steps):
        unbroken.next_batch(), first.next_batch()
    resumed = packed(examples, rows=rows)
    resumed.restore(json.loads(json.dumps(first.state())))
    for _ in range(12):
        expected, found = unbroken.next_batch(), resumed.next_batch()
        assert np.array_equal(expected.inputs, found.inputs)
        assert np.array_equal(expected.documents, found.documents)


def test_ranks_share_the_rows_of_one_process() -> None:
    examples = examples_of([2 + k * 7 % 11 for k in range(23)])
    one = packed(examples, rows=6)
    two = [packed(examples, rows=3, rank=rank, ranks=2) for rank in range(2)]
    for _ in range(9):
        joined = np.concatenate([chats.next_batch().inputs for chats in two])
        assert np.array_equal(one.next_batch().inputs, joined)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "those"}, "of other conversations"),
        ({"seed": 7}, "seed 7; now it is 4"),
        ({"length": 99}, "length 99; now it is 12"),
        ({"position": 1000}, "no row 1000 in epoch 0"),
    ],
)
def test_the_state_of_another_order_is_refused(changes: dict[str, Any], message: str) -> None:
    chats = packed(examples_of([5] * 9))
    with pytest.raises(AlignmentError, match=message):
        chats.restore({**chats.state(), **changes})


def test_an_empty_answer_in_the_middle_is_refused(template: ChatTemplate) -> None:
    with pytest.raises(AlignmentError, match=r"file\.jsonl, line 3: the answer in message 1 is em"):
        encoded_chat(chat("a", " ", "b", "c"), template, 40)


@pytest.mark.parametrize("too_long", ["error", "cut"])
def test_a_prompt_that_fills_the_row_is_refused(template: ChatTemplate, too_long: Any) -> None:
    message = "line 3: the prompt has 43 tokens; a row of 42 holds no answer"
    with pytest.raises(AlignmentError, match=message):
        encoded_chat(chat("x" * 40, "y"), template, 42, too_long)


def test_what_is_too_long_is_an_error_cut_or_dropped(
    template: ChatTemplate, chat_tokenizer: Tokenizer
) -> None:
    record = chat("ab", "cdefgh")  # 4 tokens of prompt, <|assistant|>, 6, <|end|>
    assert encoded_chat(record, template, 11) is not None
    with pytest.raises(AlignmentError, match="has 12 tokens, 11 fit into a row"):
        encoded_chat(record, template, 10)
    assert encoded_chat(record, template, 10, "drop") is None
    cut = encoded_chat(record, template, 10, "cut")
    assert cut is not None
    assert len(cut.ids) == len(cut.trained) == 11
    assert [cut.ids[-1]] == chat_tokenizer.encode("h")


def test_held_out_tasks_are_never_trained_on(template: ChatTemplate) -> None:
    tasks = TaskSettings(kinds=("sorting", "copying"), count=300, evaluated=5, evaluated_last=40)
    data = chat_data(AlignmentSettings(tasks=tasks), template, length=95, seed=2)
    learnt = {np.asarray(e.ids, "<i4").tobytes() for e in data.train}
    held = [q for split in data.questions.values() for q in split]
    assert list(data.questions) == ["numbers", "phrasings", "both"]
    assert [len(split) for split in data.questions.values()] == [40, 40, 40]
    prompts = [np.asarray(q.ids(template, 96), "<i4").tobytes() for q in held]
    assert not any(prompt in ids for ids in learnt for prompt in prompts)
    assert not learnt & {np.asarray(e.ids, "<i4").tobytes() for e in data.validation}


@pytest.mark.parametrize("most", [1, 3])
def test_generated_conversations_have_as_many_turns_as_asked_and_every_task_once(
    template: ChatTemplate, chat_tokenizer: Tokenizer, most: int
) -> None:
    tasks = TaskSettings(kinds=("counting", "sorting"), levels=(1, 2), count=200, evaluated_last=1)
    settings = AlignmentSettings(tasks=tasks, sft=SftSettings(turns=most))
    found = chat_data(settings, template, length=200, seed=2).train
    user, end = chat_tokenizer.special_tokens["<|user|>"], template.end
    asked, turns = [], []
    for example in found:
        ids = np.asarray(example.ids).tolist()
        starts = [k for k, token in enumerate(ids) if token == user]
        turns.append(len(starts))
        asked += [chat_tokenizer.decode(ids[k + 1 : ids.index(end, k)]) for k in starts]
        assert len(ids) <= 201
    made = generate_tasks(200, seed=2, kinds=tasks.kinds, levels=tasks.levels)
    assert asked == [task.prompt for task in made]
    assert set(turns) == set(range(1, most + 1))


def test_the_same_seed_gives_the_same_data(template: ChatTemplate) -> None:
    settings = AlignmentSettings(tasks=TaskSettings(count=50))

    def identity(seed: int) -> str:
        return chat_data(settings, template, length=95, seed=seed).identity

    assert identity(2) == identity(2) != identity(3)


def test_what_is_trained_on_is_part_of_the_identity() -> None:
    def identity(trained: list[bool]) -> str:
        example = Example([1, 2, 3], trained)
        return ChatData([example], [example], {}).identity

    assert identity([False, True, True]) != identity([False, False, True])


def test_a_judge_takes_the_right_answer_alone() -> None:
    tasks = TaskSettings(kinds=("sorting",))
    for split, asked in held_out_questions(tasks, 20, 3).items():
        made = generate_tasks(20, seed=3, split=split, kinds=("sorting",), levels=(1,))  # type: ignore[arg-type]
        for question, task in zip(asked, made, strict=True):
            assert question.judge(task.expected).exact
            assert not question.judge(task.expected + ", 1").exact


def test_a_file_is_split_and_its_numbers_are_questions(
    template: ChatTemplate, tmp_path: Path
) -> None:
    records = [{"question": f"{k} + 1?", "answer": f"so\n#### {k + 1}"} for k in range(20)]
    settings = AlignmentSettings(
        files=(lines(tmp_path / "a.jsonl", *records),), sft=SftSettings(validation_share=0.25)
    )
    data = chat_data(settings, template, length=60, seed=1)
    assert (len(data.train), len(data.validation)) == (15, 5)
    (asked,) = data.questions.values()
    assert len(asked) == 5
    assert not {e.place for e in data.train} & {q.place for q in asked}
    number = int(asked[0].messages[0].content.split()[0])
    assert asked[0].judge(f"#### {number + 1}").exact
    assert not asked[0].judge(f"#### {number}").exact


def test_a_file_without_numbers_has_no_questions(template: ChatTemplate, tmp_path: Path) -> None:
    records = [{"prompt": f"{k}?", "completion": "yes"} for k in range(20)]
    settings = AlignmentSettings(files=(lines(tmp_path / "a.jsonl", *records),))
    assert chat_data(settings, template, length=60, seed=1).questions == {}


@pytest.mark.parametrize(
    ("record", "error", "message"),
    [
        ({"question": "a", "answer": " "}, SourceError, r"a\.jsonl, line 2.*last answer is empty"),
        ({"question": "a"}, SourceError, r"a\.jsonl, line 2.*no form that is known"),
        ({"question": "a" * 80, "answer": "b"}, AlignmentError, r"a\.jsonl, line 2: the prompt"),
        ({"question": "a", "answer": "b" * 80}, AlignmentError, r"a\.jsonl, line 2: the conv"),
    ],
)
def test_a_bad_line_is_named(
    template: ChatTemplate, tmp_path: Path, record: object, error: type[Exception], message: str
) -> None:
    path = lines(tmp_path / "a.jsonl", {"question": "a", "answer": "b"}, record)
    with pytest.raises(error, match=message):
        chat_data(AlignmentSettings(files=(path,)), template, length=60, seed=1)


def test_too_few_records_are_refused(template: ChatTemplate, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"question": "a", "answer": "b"})
    with pytest.raises(AlignmentError, match="1 conversations cannot be split with 5% held out"):
        chat_data(AlignmentSettings(files=(path,)), template, length=60, seed=1)


@pytest.mark.skipif(not GSM8K.exists(), reason="gsm8k-train.jsonl is not at hand")
def test_gsm8k_is_read_whole(template: ChatTemplate, chat_tokenizer: Tokenizer) -> None:
    settings = AlignmentSettings(files=(str(GSM8K),))
    data = chat_data(settings, template, length=4000, seed=1)
    count = len(GSM8K.read_bytes().splitlines())
    assert len(data.train) + len(data.validation) == count
    (asked,) = data.questions.values()
    assert len(asked) == len(data.validation)
    for question, example in zip(asked[:50], data.validation[:50], strict=True):
        trained = np.asarray(example.ids)[np.asarray(example.trained)][:-1]
        assert question.judge(chat_tokenizer.decode(trained.tolist())).exact
