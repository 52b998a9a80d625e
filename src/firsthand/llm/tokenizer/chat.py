"""The chat template: messages to ids, and for every token whether it is trained on.

    <|system|>...<|end|><|user|>...<|end|><|assistant|>...<|end|>

All structure is special tokens, so nothing in a message can forge it, and a message's ids do not
depend on its neighbours. Trained are the tokens that the model must produce itself: what the
assistant says and the <|end|> after it, not the <|assistant|> that asks for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.tokenizer.errors import TokenizerError
from firsthand.llm.tokenizer.tokenizer import Ids, Tokenizer

ROLES = ("system", "user", "assistant", "tool")
TRAINED_ROLE = "assistant"
END = "<|end|>"
CHAT_TOKENS: tuple[str, ...] = (*(f"<|{role}|>" for role in ROLES), END)
"""The special tokens that a tokenizer must have for a chat."""

Message = Mapping[str, str]
"""{"role": one of ROLES, "content": text}"""


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as the model sees it."""

    ids: Ids
    """Token ids, (tokens,) uint32."""
    trained: NDArray[np.bool_]
    """True where the token counts in the loss as a target, (tokens,)."""


class ChatTemplate:
    """Renders conversations with one tokenizer.

    Args:
        tokenizer: one with all of CHAT_TOKENS among its special tokens.
    Raises:
        TokenizerError: a special token is missing.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        missing = [token for token in CHAT_TOKENS if token not in tokenizer.special_tokens]
        if missing:
            raise TokenizerError(
                f"the tokenizer lacks the special tokens {', '.join(missing)}: "
                "train it with special_tokens=CHAT_TOKENS"
            )
        self._tokenizer = tokenizer
        self._end = tokenizer.special_tokens[END]
        self._starts = {role: tokenizer.special_tokens[f"<|{role}|>"] for role in ROLES}

    @property
    def end(self) -> int:
        """The id at which generation of an answer stops."""
        return self._end

    def render(self, messages: Iterable[Message], *, ask: bool = False) -> RenderedChat:
        """The ids of a conversation and which of them are trained on.

        Args:
            messages: in order; a system message may only come first.
            ask: end with <|assistant|>, so that the model goes on with its answer.
        Raises:
            TokenizerError: no message, an unknown role, a field that is missing or no text, or a
                system message that is not the first; names the number of the message.
        """
        checked = [_checked(message, number) for number, message in enumerate(messages)]
        if not checked:
            raise TokenizerError("a conversation needs at least one message")
        contents, ends = self._tokenizer.encode_documents([content for _, content in checked])
        starts = [0, *ends[:-1].tolist()]
        ids: list[int] = []
        trained: list[bool] = []
        for (role, _), start, end in zip(checked, starts, ends.tolist(), strict=True):
            ids += [self._starts[role], *contents[start:end].tolist(), self._end]
            trained += [False, *[role == TRAINED_ROLE] * (end - start + 1)]
        if ask:
            ids.append(self._starts[TRAINED_ROLE])
            trained.append(False)
        return RenderedChat(np.array(ids, np.uint32), np.array(trained, np.bool_))

    def render_batch(self, conversations: Sequence[Iterable[Message]]) -> list[RenderedChat]:
        """Each conversation; an error also names the number of the conversation."""
        rendered = []
        for number, messages in enumerate(conversations):
            try:
                rendered.append(self.render(messages))
            except TokenizerError as error:
                raise TokenizerError(f"conversation {number}: {error}") from None
        return rendered

    @staticmethod
    def jinja() -> str:
        """The same template for the `chat_template` of Hugging Face's `tokenizer_config.json`."""
        return (
            "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
            f"{END}{{% endfor %}}{{% if add_generation_prompt %}}<|{TRAINED_ROLE}|>{{% endif %}}"
        )


def _checked(message: Message, number: int) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise TokenizerError(f"message {number} is no object with role and content")
    for name in ("role", "content"):
        if not isinstance(message.get(name), str):
            raise TokenizerError(f"message {number} has no text in {name!r}")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise TokenizerError(
            f"message {number} has the role {role!r}: choose one of {', '.join(ROLES)}"
        )
    if role == "system" and number > 0:
        raise TokenizerError(f"message {number} is a system message, which may only come first")
    return role, content
