"""Rollouts: the sampler's log-probabilities are the trainer's, and a disagreement is named."""

from dataclasses import replace

import pytest
import torch

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.logprobs import batch_token_logprobs
from firsthand.llm.alignment.rollouts import TOLERANCES, Rollouts, require_agreement, roll_out


def rolled(small, model, *, temperature: float = 1.0, samples: int = 3, first: int = 0) -> Rollouts:
    prompts = [q.ids(small.template, small.context) for q in small.questions(4)]
    return roll_out(
        model,
        prompts,
        small.tokenizer,
        end=small.template.end,
        samples=samples,
        max_new_tokens=9,
        temperature=temperature,
        seed=2,
        first_stream=first,
    )


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_trainer_and_sampler_agree_to_rounding(small, temperature: float) -> None:
    model = small.model()
    rollouts = rolled(small, model, temperature=temperature)
    trainer = batch_token_logprobs(
        model, rollouts.inputs, rollouts.targets, temperature=temperature
    )
    greatest = require_agreement(trainer, rollouts, tolerance=TOLERANCES["float32"])
    assert 0 < greatest < 1e-4


def test_rows_hold_the_prompt_then_the_answer(small) -> None:
    rollouts = rolled(small, small.model())
    questions = small.questions(4)
    for row in range(12):
        ids = questions[row // 3].ids(small.template, small.context)
        answered = rollouts.answered[row]
        first = int(answered.nonzero()[0])
        assert rollouts.inputs[row, : len(ids)].tolist() == list(ids)
        assert first == len(ids) - 1
        length = int(rollouts.lengths[row])
        answer = rollouts.targets[row, first : first + length]
        assert bool((answer >= 0).all())
        assert int(answered.sum()) == length <= 9
        assert bool(rollouts.ended[row]) == (int(answer[-1]) == small.template.end)
        # What the model reads after the prompt is the answer without its last token.
        assert torch.equal(rollouts.inputs[row, first + 1 : first + length], answer[:-1])
    assert rollouts.real_tokens == sum(
        int(rollouts.answered[row].nonzero().max()) + 1 for row in range(12)
    )


def test_equal_rows_are_found(small) -> None:
    rollouts = roll_out(
        small.model(),
        [(1, 2, 3), (1, 2, 3), (4, 5)],
        small.tokenizer,
        end=small.template.end,
        samples=4,
        max_new_tokens=1,
        temperature=0.05,
        seed=0,
    )
    first, place = rollouts.distinct()
    assert len(place) == 12
    assert len(first) < 12
    for number, kind in enumerate(place):
        assert torch.equal(rollouts.inputs[number], rollouts.inputs[first[kind]])
        assert torch.equal(rollouts.targets[number], rollouts.targets[first[kind]])
        assert first[kind] <= number
    assert len({(*rollouts.inputs[n].tolist(), *rollouts.targets[n].tolist()) for n in first}) == (
        len(first)
    )


def test_a_stream_gives_the_same_answer_in_any_batch(small) -> None:
    model = small.model()
    three, one = rolled(small, model), rolled(small, model, samples=1, first=0)
    assert one.texts[0] == three.texts[0]
    assert rolled(small, model).texts == three.texts
    assert rolled(small, model, first=12).texts != three.texts


def test_answers_of_a_prompt_differ(small) -> None:
    texts = rolled(small, small.model()).texts
    assert all(len(set(texts[at : at + 3])) > 1 for at in range(0, 12, 3))


@pytest.mark.parametrize("row", [0, 7])
def test_a_disagreement_names_row_position_and_token(small, row: int) -> None:
    model = small.model()
    rollouts = rolled(small, model)
    trainer = batch_token_logprobs(model, rollouts.inputs, rollouts.targets).detach()
    position = int(rollouts.answered[row].nonzero()[1])
    spoilt = rollouts.sampled.clone()
    spoilt[row, position] += 0.01
    with pytest.raises(AlignmentError, match=f"step 4: row {row}, position {position}, token"):
        require_agreement(trainer, replace(rollouts, sampled=spoilt), tolerance=1e-3, what="step 4")
    trainer[row, position] = torch.nan
    with pytest.raises(AlignmentError, match=f"row {row}, position {position}"):
        require_agreement(trainer, rollouts, tolerance=1e-3)


def test_other_weights_or_another_temperature_are_noticed(small) -> None:
    rollouts = rolled(small, small.model(), temperature=0.8)
    for model, temperature in ((small.model(), 1.0), (small.model(seed=4), 0.8)):
        trainer = batch_token_logprobs(
            model, rollouts.inputs, rollouts.targets, temperature=temperature
        )
        with pytest.raises(AlignmentError, match="the sampler drew it with"):
            require_agreement(trainer, rollouts, tolerance=TOLERANCES["float32"])


def test_nothing_to_roll_out_and_greedy_answers_are_refused(small) -> None:
    with pytest.raises(AlignmentError, match=r"above 0; at 0\.0 all of them are equal"):
        rolled(small, small.model(), temperature=0.0)
    with pytest.raises(AlignmentError, match="with 0 answers"):
        rolled(small, small.model(), samples=0)
