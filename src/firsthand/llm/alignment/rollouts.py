"""Rollouts: answers that the policy writes, with the log-probability of each token as it was drawn.

One engine for PPO and GRPO. The project's own generation writes all answers of a batch together
with the cache; the log-probabilities that it records are those of the distribution it drew from,
which is what the importance ratios of both methods divide by. The trainer computes the same
numbers another way, without a cache and for all positions at once. Where the two disagree, every
ratio is wrong though nothing fails, so `require_agreement` compares them while the weights are
still those that wrote the answers.
"""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.data.loading import IGNORED
from firsthand.llm.generation.decoding import Request, generate
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.tokenizer import Tokenizer
from firsthand.llm.training.config import Precision

# Nats by which trainer and sampler may differ at one token. In float32 sums in another order give
# about 1e-5; a mistake in positions, padding, temperature or vocabulary gives far more than 1e-3,
# and a ratio that is wrong by a thousandth is far within any clipping range. In half precision the
# trainer rounds and the sampler does not.
TOLERANCES: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.1}


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Prompts and answers as rows of one length, padded on the right.

    Attributes:
        inputs: the tokens that the model reads.
        targets: the token after each position where it is one of the answer, else IGNORED.
        sampled: ln of each target's probability under the distribution it was drawn from; 0
            elsewhere.
        ended: whether the answer has its end token.
        texts: of the answers.
    """

    inputs: Int[Tensor, "rows seq"]
    targets: Int[Tensor, "rows seq"]
    sampled: Float[Tensor, "rows seq"]
    ended: Bool[Tensor, " rows"]
    texts: tuple[str, ...]

    @property
    def answered(self) -> Bool[Tensor, "rows seq"]:
        """Where the targets are tokens of an answer."""
        return self.targets >= 0

    @property
    def lengths(self) -> Int[Tensor, " rows"]:
        """Tokens of each answer, the end token included."""
        return self.answered.sum(dim=1)

    def distinct(self) -> tuple[list[int], list[int]]:
        """The first row of each kind, and for every row which of these it is equal to."""
        rows = torch.cat([self.inputs, self.targets], dim=1).cpu().numpy()
        first: dict[bytes, int] = {}
        chosen: list[int] = []
        place = []
        for number, row in enumerate(rows):
            key = row.tobytes()
            if key not in first:
                first[key] = len(chosen)
                chosen.append(number)
            place.append(first[key])
        return chosen, place

    @property
    def real_tokens(self) -> int:
        """Positions of prompts and answers, without the padding behind them."""
        places = torch.arange(1, self.targets.shape[1] + 1, device=self.targets.device)
        return int(torch.where(self.answered, places, 0).amax(dim=1).sum())


def roll_out(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    *,
    end: int,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    first_stream: int = 0,
) -> Rollouts:
    """Let the policy answer each prompt `samples` times; the answers of a prompt stand together.

    Args:
        model: the policy.
        prompts: ids, each shorter than the context.
        tokenizer: of the policy.
        end: the id that ends an answer.
        samples: answers of each prompt.
        max_new_tokens: an answer is cut after so many, or at the end of the context.
        temperature: above 0; the logits are divided by it.
        seed, first_stream: row i draws from stream `first_stream + i` of the seed, so the same
            weights, seed and stream give the same answer in any batch.
    Raises:
        AlignmentError: nothing to roll out, or a temperature of 0.
        GenerationError: a prompt that fills the context, or logits that are not finite.
    """
    if not prompts or samples < 1:
        raise AlignmentError(f"{len(prompts)} prompts with {samples} answers each are no rollouts")
    if not temperature > 0:
        raise AlignmentError(
            f"answers are drawn at a temperature above 0; at {temperature} all of them are equal"
        )
    sampling = Sampling(
        temperature=temperature, max_new_tokens=max_new_tokens, seed=seed, logprobs=True
    )
    repeated = [tuple(prompt) for prompt in prompts for _ in range(samples)]
    requests = [
        Request(prompt=prompt, sampling=sampling, stream=first_stream + row)
        for row, prompt in enumerate(repeated)
    ]
    found = generate(model, requests, tokenizer=tokenizer, end_tokens=(end,))
    length = max(len(text.prompt) + len(text.ids) for text in found) - 1
    inputs = torch.full((len(found), length), end)
    targets = torch.full((len(found), length), IGNORED)
    sampled = torch.zeros(len(found), length)
    for row, text in enumerate(found):
        ids = torch.tensor(text.prompt + text.ids)
        first = len(text.prompt) - 1
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, first : len(ids) - 1] = ids[first + 1 :]
        sampled[row, first : len(ids) - 1] = torch.tensor(text.sampled_logprobs)
    device = model.embedding.weight.device
    return Rollouts(
        inputs=inputs.to(device),
        targets=targets.to(device),
        sampled=sampled.to(device),
        ended=torch.tensor([text.reason == "end" for text in found], device=device),
        texts=tuple(text.text for text in found),
    )


def require_agreement(
    trainer: Float[Tensor, "rows seq"],
    rollouts: Rollouts,
    *,
    tolerance: float,
    what: str = "rollouts",
) -> float:
    """Compare the trainer's log-probabilities with those that the sampler recorded.

    Args:
        trainer: of the rollouts' targets, at the sampler's temperature.
        rollouts: what the same weights wrote.
        tolerance: nats; `TOLERANCES` has those of each precision.
        what: the message begins with it, such as "step 3".
    Returns:
        The greatest difference.
    Raises:
        AlignmentError: they differ by more, or are no numbers; names row, position and token.
    """
    trainer = trainer.detach()
    difference = (trainer - rollouts.sampled).abs().nan_to_num(nan=torch.inf)
    difference = difference.masked_fill(~rollouts.answered, 0.0)
    greatest = float(difference.max())
    if greatest <= tolerance:
        return greatest
    row, position = divmod(int(difference.argmax()), difference.shape[1])
    raise AlignmentError(
        f"{what}: row {row}, position {position}, token {int(rollouts.targets[row, position])}: "
        f"the trainer gives ln p = {float(trainer[row, position]):.6f}, the sampler drew it with "
        f"{float(rollouts.sampled[row, position]):.6f}; they may differ by {tolerance:g}"
    )
