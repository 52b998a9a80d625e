"""PPO and GRPO as tasks: they learn, resume bit for bit, notice drift, and say what is flat."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from firsthand.llm.alignment.errors import AlignmentError, DivergenceError
from firsthand.llm.alignment.experience import Experience
from firsthand.llm.alignment.grpo_task import GrpoTask
from firsthand.llm.alignment.policy_task import PolicyTask
from firsthand.llm.alignment.ppo_task import PpoTask
from firsthand.llm.alignment.reward_model import VALUE_HEAD, head_of
from firsthand.llm.alignment.rewards import Judgement, Question
from firsthand.llm.alignment.settings import GrpoSettings, PpoSettings
from firsthand.llm.data.records import Message
from firsthand.llm.model.settings import SettingsError
from firsthand.llm.training.loop import train

Make = Callable[..., PolicyTask]


def letter_questions(small) -> list[Question]:
    """Right is an answer whose first character is below 'P': half of all, so that all can learn."""

    def judge(text: str) -> Judgement:
        return Judgement(exact=bool(text) and text[0] < "P", formed=True)

    return [Question((Message("user", word),), judge, "here") for word in ("ab", "c", "def", "gh")]


def grpo(small, model, config, questions=None, **settings: Any) -> GrpoTask:
    named = {"prompts": 4, "group": 4, "max_new_tokens": 5, "minibatch": 8}
    named |= {"kl_coefficient": 0.02, **settings}
    chosen = GrpoSettings(**named)
    return GrpoTask(
        model,
        small.tokenizer,
        questions or small.questions(),
        config,
        chosen,
        small.alone,
        prompts=chosen.prompts,
        samples=chosen.group,
    )


def ppo(small, model, config, questions=None, **settings: Any) -> PpoTask:
    named = {"rollout_batch": 8, "samples": 1, "max_new_tokens": 5, "minibatch": 4, **settings}
    return PpoTask(
        model,
        small.tokenizer,
        questions or small.questions(),
        config,
        PpoSettings(**named),
        small.alone,
    )


MAKERS = pytest.mark.parametrize("make", [grpo, ppo], ids=["grpo", "ppo"])


@MAKERS
@pytest.mark.parametrize("micro_batch", [0, 2])
def test_a_resumed_run_has_the_same_bits(small, make: Make, micro_batch: int) -> None:
    # The checkpoint falls into the middle of a round for both methods.
    config = small.config(steps=7, micro_batch=micro_batch)
    options: dict[str, Any] = {"epochs": 2}
    if make is ppo:
        options |= {"kl": "adaptive", "entropy_coefficient": 0.01}
    whole = small.model()
    training, journal = small.assembled(make(small, whole, config, **options), whole, config)
    train(training)

    model = small.model()
    first, _ = small.assembled(make(small, model, config, **options), model, config)
    first.settings = replace(config.training, steps=3)
    train(first)
    state = first.task.state()
    assert state["experience"] is not None
    again = small.model()
    task = make(small, again, config, **options)
    second, lines = small.assembled(task, again, config)
    again.load_state_dict(model.state_dict())
    second.optimizer.load(first.optimizer.tensors(), first.optimizer.steps)
    second.task.restore(state)
    second.step = 3
    train(second)
    assert small.same_bits(small.bits(whole), small.bits(again))
    # The log lines are the same as well, clocks and memory apart.
    free = {"tokens_per_second", "memory_bytes", "seconds", "tokens"}
    cut = [{k: v for k, v in line.items() if k not in free} for line in journal.lines[-4:]]
    resumed = [{k: v for k, v in line.items() if k not in free} for line in lines.lines[-4:]]
    assert cut == resumed


@MAKERS
def test_the_policy_learns_what_is_rewarded(small, make: Make) -> None:
    options: dict[str, Any] = {"kl_coefficient": 0.0, "stop_kl": 0.0, "max_new_tokens": 1}
    options |= (
        {"prompts": 4, "group": 8, "minibatch": 32}
        if make is grpo
        else {"rollout_batch": 32, "minibatch": 32, "epochs": 1}
    )
    config = small.config(steps=40)
    model = small.model()
    # One token is an answer here, ended or not: the judge alone decides.
    questions = letter_questions(small)
    task = make(small, model, config, questions, **options)
    task.scores = lambda rollouts, asked: torch.tensor(
        [float(q.judge(text).exact) for q, text in zip(asked, rollouts.texts, strict=True)]
    )
    rewards = []
    training, journal = small.assembled(task, model, config)
    train(training)
    rewards = [line["reward"] for line in journal.lines if line["kind"] == "train"]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2


@MAKERS
def test_the_cut_into_micro_batches_does_not_matter(small, make: Make) -> None:
    weights = []
    for micro_batch in (0, 1, 2):
        config, model = small.config(steps=2, micro_batch=micro_batch), small.model()
        training, _ = small.assembled(make(small, model, config), model, config)
        train(training)
        weights.append(small.bits(model))
    for other in weights[1:]:
        for one, two in zip(weights[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=2e-4)


@MAKERS
def test_equal_rewards_give_no_gradient_to_the_policy_and_are_said(small, make: Make) -> None:
    config, model = small.config(steps=2), small.model()
    before = small.bits(model)
    options = {"kl_coefficient": 0.0, "stop_kl": 0.0}
    if make is ppo:
        # All values are 0 at first and stay so without their loss: every advantage is the reward,
        # and whitening leaves 0.
        options |= {"value_coefficient": 0.0, "lam": 1.0, "whiten": True}
    task = make(small, model, config, **options)
    task.scores = lambda rollouts, asked: torch.full((len(asked),), 0.25)
    training, journal = small.assembled(task, model, config)
    train(training)
    lines = [line for line in journal.lines if line["kind"] == "train"]
    assert all(line["flat"] == 1 and line["reward"] == 0.25 for line in lines)
    kept = {n: t for n, t in model.state_dict().items() if not n.startswith(VALUE_HEAD)}
    assert small.same_bits(before, list(kept.values()))


@MAKERS
def test_a_policy_far_from_its_reference_stops_and_is_not_saved(small, make: Make) -> None:
    config, model = small.config(steps=50), small.model()
    config = replace(config, optimizer=replace(config.optimizer, learning_rate=0.3))
    task = make(small, model, config, stop_kl=0.5)
    training, _ = small.assembled(task, model, config)
    with pytest.raises(DivergenceError, match=r"step \d+: the KL divergence .* limit of 0.5"):
        train(training)
    assert training.step < 50
    # What a checkpoint now would hold is refused, so the one before stays the newest.
    with pytest.raises(DivergenceError):
        task.state()


@MAKERS
def test_a_sampler_of_other_weights_is_caught(small, make: Make) -> None:
    config, model = small.config(), small.model()
    task = make(small, model, config)
    (batch,) = task.next_batches()
    task.loss(model, batch)
    with torch.no_grad():
        model.embedding.weight += 0.05
    with pytest.raises(AlignmentError, match=r"step 1: row .* they may differ by 0\.001"):
        task.loss(model, batch)


@MAKERS
def test_a_round_takes_each_answer_once_an_epoch(small, make: Make) -> None:
    config, model = small.config(), small.model()
    task = make(small, model, config, epochs=2)
    seen: list[tuple[int, ...]] = []
    for _ in range(task.updates_of_round):
        for batch in task.next_batches():
            sampled = batch.rollouts.sampled
            seen += [tuple(round(x, 5) for x in row.tolist() if x) for row in sampled]
    assert len(seen) == 2 * task.answers
    assert sorted(seen[: task.answers]) == sorted(seen[task.answers :])
    assert seen[: task.answers] != seen[task.answers :]
    rounds = task.rounds
    task.next_batches()
    assert task.rounds == rounds + 1


@MAKERS
@pytest.mark.parametrize("kl_coefficient", [0.0, 0.1])
def test_equal_answers_go_through_the_model_once(small, make: Make, kl_coefficient: float) -> None:
    gradients, figures = [], []
    for folded in (False, True):
        model = small.model()
        task = make(small, model, small.config(), kl_coefficient=kl_coefficient)
        task.scores = lambda rollouts, asked: torch.arange(float(len(asked))) % 3
        task.next_batches()
        assert task.experience is not None
        batch = task.experience.rows([0, 1, 2, 0, 0, 1])
        if folded:
            batch = task.learnt_from(batch)
            assert len(batch.rollouts.inputs) == 3
            assert batch.counts.tolist() == [3, 2, 1]
        loss = task.loss(model, batch)
        (loss.total / loss.tokens).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        figures.append((float(loss.total.detach()), int(loss.tokens), task.counted(batch)))
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_grpo_leaves_out_what_has_no_gradient(small) -> None:
    model = small.model()
    task = grpo(small, model, small.config(), prompts=2, group=4, minibatch=8, kl_coefficient=0.0)
    task.scores = lambda rollouts, asked: torch.tensor([1.0, 1, 1, 1, 0, 1, 2, 3])
    (batch,) = task.next_batches()
    assert task.experience is not None
    # The first group is flat; its answers still are part of the mean.
    assert not (batch.extras["advantages"] == 0).any()
    assert task.counted(batch) == int(task.loss(model, batch).tokens) == 8
    whole = task.experience.rows(list(range(8)))
    one, other = task.loss(model, batch).total, task.loss(model, whole).total
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    # With a penalty every answer has a gradient.
    held = grpo(small, small.model(), small.config(), prompts=2, group=4, kl_coefficient=0.1)
    held.scores = lambda rollouts, asked: torch.ones(len(asked))
    assert sum(float(batch.counts.sum()) for batch in held.next_batches()) == 8
    # Where nothing has one, a row stays, so that the update is an update.
    flat = grpo(small, small.model(), small.config(), prompts=2, group=4, kl_coefficient=0.0)
    flat.scores = lambda rollouts, asked: torch.ones(len(asked))
    assert [len(batch.rollouts.inputs) for batch in flat.next_batches()] == [1]


def test_ppo_may_answer_a_question_more_than_once(small) -> None:
    task = ppo(small, small.model(), small.config(), samples=4)
    task.next_batches()
    assert task.experience is not None
    inputs = task.experience.rollouts.inputs
    assert task.answers == 8
    starts = {tuple(row[:6].tolist()) for row in inputs}
    assert len(starts) <= 2
    with pytest.raises(SettingsError, match="does not divide by samples 3"):
        PpoSettings(samples=3)


def test_grpo_compares_answers_of_one_question(small) -> None:
    config, model = small.config(), small.model()
    task = grpo(small, model, config, prompts=2, group=4, minibatch=8)
    task.scores = lambda rollouts, asked: torch.tensor([1.0, 0, 0, 0, 5, 5, 5, 5])
    task.next_batches()
    assert task.experience is not None
    advantages = task.experience.extras["advantages"]
    # Deviation of (1, 0, 0, 0) with n - 1 below it is 1/2; the second group is flat.
    expected = [0.75 / 0.5001, *[-0.25 / 0.5001] * 3, 0, 0, 0, 0]
    assert advantages.tolist() == pytest.approx(expected, rel=1e-5)
    assert task.experience.figures["flat"] == 0.5


def test_ppo_pays_the_penalty_at_each_token_and_the_reward_at_the_last(small) -> None:
    config, model = small.config(), small.model()
    task = ppo(small, model, config, kl_coefficient=0.5, whiten=False, lam=1.0)
    with torch.no_grad():
        task.reference.embedding.weight.add_(
            0.02 * torch.randn(model.embedding.weight.shape, generator=torch.Generator())
        )
        head_of(model, VALUE_HEAD).weight.normal_(generator=torch.Generator().manual_seed(1))
    task.scores = lambda rollouts, asked: torch.arange(8.0)
    task.next_batches()
    kept = task.experience
    assert kept is not None
    mask = kept.rollouts.answered
    penalty = 0.5 * (kept.rollouts.sampled - kept.extras["reference"])
    # With λ = 1 the return of an answer's first token is its reward less all its penalties.
    for row in range(8):
        places = mask[row].nonzero()[:, 0]
        expected = row - float(penalty[row, places].sum())
        assert float(kept.extras["returns"][row, places[0]]) == pytest.approx(expected, abs=1e-4)
    assert not bool(kept.extras["advantages"][~mask].any())


def test_an_adaptive_penalty_moves_and_is_kept(small) -> None:
    config, model = small.config(steps=4), small.model()
    task = ppo(small, model, config, kl="adaptive", target_kl=50.0, kl_coefficient=0.1)
    training, _ = small.assembled(task, model, config)
    train(training)
    assert 0 < task.controller.coefficient < 0.1
    other = ppo(small, small.model(), config, kl="adaptive", target_kl=50.0, kl_coefficient=0.1)
    other.restore(task.state())
    assert other.controller.coefficient == task.controller.coefficient


def test_experience_survives_json(small) -> None:
    import json

    config, model = small.config(), small.model()
    task = grpo(small, model, config)
    task.next_batches()
    kept = task.experience
    assert kept is not None
    again = Experience.from_state(json.loads(json.dumps(kept.state())), torch.device("cpu"))
    for name in ("inputs", "targets", "sampled", "ended"):
        assert torch.equal(getattr(kept.rollouts, name), getattr(again.rollouts, name))
    assert all(torch.equal(kept.extras[n], again.extras[n]) for n in kept.extras)
    assert again.figures == kept.figures
    with pytest.raises(AlignmentError, match="cannot be read"):
        Experience.from_state({"rollouts": {}}, torch.device("cpu"))


@MAKERS
def test_a_prompt_longer_than_the_context_is_refused(small, make: Make) -> None:
    judge = small.questions(1)[0].judge
    long = [Question((Message("user", "x" * 200),), judge, "q.jsonl, line 9")]
    with pytest.raises(AlignmentError, match=r"q\.jsonl, line 9: the prompt has 203 tokens"):
        make(small, small.model(), small.config(), long)
