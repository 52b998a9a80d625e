"""Preference pairs: from records, from generated tasks, and what is refused."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.pair_data import PairData, pair_batch, pair_data, whole_texts
from firsthand.llm.alignment.preferences import (
    encoded_pair,
    encoded_pairs,
    read_pairs,
    task_preferences,
    wrong_answer,
)
from firsthand.llm.alignment.settings import AlignmentSettings, TaskSettings
from firsthand.llm.data.problems import SourceError
from firsthand.llm.data.records import Message, PreferenceRecord
from firsthand.llm.data.task_kinds import KINDS, LEVELS
from firsthand.llm.data.tasks import generate_tasks, verify
from firsthand.llm.tokenizer.chat import CHAT_TOKENS, ChatTemplate
from firsthand.llm.tokenizer.tokenizer import Tokenizer

TOKENIZER = Tokenizer([], special_tokens=["<|endoftext|>", *CHAT_TOKENS])
TEMPLATE = ChatTemplate(TOKENIZER)
END = TOKENIZER.special_tokens["<|end|>"]


def record(prompt: str, chosen: str, rejected: str, place: str = "f.jsonl, line 3"):
    return PreferenceRecord(
        (Message("user", prompt),),
        (Message("assistant", chosen),),
        (Message("assistant", rejected),),
        place,
    )


def written(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def test_targets_are_the_answer_and_its_end() -> None:
    pair = encoded_pair(record("ab", "xyz", "q"), TEMPLATE, 40)
    assert pair is not None
    for example, text in ((pair.chosen, "xyz"), (pair.rejected, "q")):
        ids = np.asarray(example.ids)[np.asarray(example.trained)]
        assert ids.tolist() == [*TOKENIZER.encode(text), END]
    assert pair.length == len(pair.chosen.ids) - 1


def test_earlier_answers_of_the_prompt_are_not_learnt() -> None:
    conversation = PreferenceRecord(
        (Message("user", "a"), Message("assistant", "old"), Message("user", "b")),
        (Message("assistant", "new"),),
        (Message("assistant", "bad"),),
        "here",
    )
    pair = encoded_pair(conversation, TEMPLATE, 60)
    assert pair is not None
    trained = np.asarray(pair.chosen.ids)[np.asarray(pair.chosen.trained)]
    assert trained.tolist() == [*TOKENIZER.encode("new"), END]


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "said"),
    [
        ("ab", "  ", "q", "the answer in 'chosen' is empty"),
        ("ab", "q", "", "the answer in 'rejected' is empty"),
        ("ab", "same", "same", "'chosen' and 'rejected' are equal"),
        ("p" * 50, "a", "b", "the prompt has 52 tokens; the context of 40"),
        ("p", "a" * 50, "b", "take 54 positions; the context has 40"),
    ],
)
def test_what_cannot_be_learnt_from_names_file_and_line(
    prompt: str, chosen: str, rejected: str, said: str
) -> None:
    with pytest.raises(AlignmentError, match=r"f\.jsonl, line 3") as caught:
        encoded_pair(record(prompt, chosen, rejected), TEMPLATE, 40)
    assert said in str(caught.value)


def test_a_prompt_that_just_fits_is_taken() -> None:
    # <|user|> p <|end|> <|assistant|> a <|end|> is 6 tokens, the last of them only a target.
    assert encoded_pair(record("p", "a", "b"), TEMPLATE, 5) is not None
    with pytest.raises(AlignmentError, match="take 5 positions; the context has 4"):
        encoded_pair(record("p", "a", "b"), TEMPLATE, 4)


def test_too_long_ones_are_dropped_when_asked() -> None:
    records = [record("p" * 50, "a", "b"), record("p", "a" * 50, "b"), record("p", "a", "b")]
    assert len(encoded_pairs(records, TEMPLATE, 40, "drop")) == 1
    with pytest.raises(AlignmentError, match="no preference pair fits"):
        encoded_pairs(records[:2], TEMPLATE, 40, "drop")


def test_files_name_the_line_that_is_wrong(tmp_path: Path) -> None:
    good = {"prompt": "1+1", "chosen": "2", "rejected": "3"}
    path = written(tmp_path / "p.jsonl", good, {**good, "rejected": "2"})
    with pytest.raises(SourceError, match=r"line 2.*equal"):
        read_pairs([path], TEMPLATE, 40)
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(SourceError, match="line 1: a conversation"):
        read_pairs([written(tmp_path / "c.jsonl", chat)], TEMPLATE, 40)
    assert len(read_pairs([written(tmp_path / "g.jsonl", good)], TEMPLATE, 40)) == 1


@given(kind=st.sampled_from(sorted(KINDS)), level=st.sampled_from(LEVELS), seed=st.integers(0, 999))
def test_wrong_answers_are_refused_by_the_verifier(kind: str, level: int, seed: int) -> None:
    (task,) = generate_tasks(1, seed=seed, kinds=[kind], levels=[level])
    answer = wrong_answer(task, random.Random(seed))
    assert answer.strip()
    assert answer != task.expected
    assert not verify(task, answer).correct


def test_generated_preferences_are_the_same_on_every_machine() -> None:
    tasks = list(generate_tasks(200, seed=5))
    first, again = (list(task_preferences(tasks, 3)) for _ in range(2))
    assert first == again != list(task_preferences(tasks, 4))
    for task, preference in zip(tasks, first, strict=True):
        assert verify(task, preference.chosen[-1].content).correct
    # Badly formed answers hold the right one and something else.
    spoilt = sum(
        task.expected in preference.rejected[-1].content
        for task, preference in zip(tasks, first, strict=True)
    )
    assert 10 < spoilt < 120


def test_held_out_pairs_have_other_numbers() -> None:
    settings = AlignmentSettings(tasks=TaskSettings(count=60, evaluated=30))
    data = pair_data(settings, TEMPLATE, context=120, seed=0, validation_share=0.1)
    assert (len(data.train), len(data.validation)) == (60, 30)
    prompts = [
        {TOKENIZER.decode(pair.chosen.ids[: np.argmax(pair.chosen.trained)]) for pair in part}
        for part in (data.train, data.validation)
    ]
    assert not prompts[0] & prompts[1]


def test_files_are_split_by_a_draw(tmp_path: Path) -> None:
    records = [{"prompt": f"{n}", "chosen": "a", "rejected": "b"} for n in range(20)]
    settings = AlignmentSettings(files=(str(written(tmp_path / "p.jsonl", *records)),))
    data = pair_data(settings, TEMPLATE, context=40, seed=1, validation_share=0.2)
    places = [{pair.place for pair in part} for part in (data.train, data.validation)]
    assert [len(part) for part in places] == [16, 4]
    assert not places[0] & places[1]
    with pytest.raises(AlignmentError, match="20 pairs cannot be split with 1% held out"):
        pair_data(settings, TEMPLATE, context=40, seed=1, validation_share=0.01)


def test_identity_tells_pairs_apart() -> None:
    def data(chosen: str) -> PairData:
        pairs = encoded_pairs([record("p", chosen, "zz")], TEMPLATE, 40)
        return PairData(pairs, pairs)

    assert data("a").identity == data("a").identity != data("b").identity


def test_a_batch_pads_on_the_right_and_knows_the_whole_text() -> None:
    pairs = encoded_pairs([record("pq", "a", "bcd"), record("p", "wxyz", "v")], TEMPLATE, 40)
    batch = pair_batch(pairs, torch.device("cpu"), padding=7, reference=[(-1.0, -2.0), (-3.0, -4)])
    assert batch.pairs == 2
    assert batch.reference.tolist() == [-1, -3, -2, -4]
    examples = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    assert batch.tokens == sum(len(e.ids) - 1 for e in examples)
    assert batch.lengths.tolist() == [2, 5, 4, 2]
    tokens, real = whole_texts(batch.inputs, batch.targets, padding=9)
    for row, example in enumerate(examples):
        assert tokens[row][real[row]].tolist() == list(example.ids)
        assert set(tokens[row][~real[row]].tolist()) <= {7, 9}
        assert batch.inputs[row, : len(example.ids) - 1].tolist() == list(example.ids[:-1])
