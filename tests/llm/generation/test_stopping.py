"""Text as it is shown: whole characters, and nothing of a stop string."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.generation.stopping import TextStream
from firsthand.llm.tokenizer.streaming import StreamDecoder

STOPS = st.lists(st.text("ab\u00e9", min_size=1, max_size=4), max_size=3)


def _stream(stop: Sequence[str]) -> TextStream:
    """Tokens are bytes."""
    return TextStream(StreamDecoder(lambda identity: bytes([identity])), stop)


def _cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The oracle: the text grows by a character until it ends with a stop string."""
    for end in range(1, len(text) + 1):
        ended = [s for s in stop if text[:end].endswith(s)]
        if ended:
            return text[: end - max(map(len, ended))], True
    return text, False


@given(st.text("abc\u00e9\u4e16", max_size=12), STOPS)
def test_shown_is_the_text_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    expected, stopped = _cut(text, stop)
    shown, stream = "", _stream(stop)
    for byte in text.encode():
        shown += stream.push(byte)
        # Never taken back: each moment's text is a beginning of the last one's.
        assert expected.startswith(shown)
        if stream.stopped:
            break
    shown += stream.finish()
    assert (shown, stream.stopped) == (expected, stopped)
    assert stream.text == shown


@given(st.lists(st.text("ab\u00e9", max_size=3), max_size=6), STOPS)
def test_where_tokens_are_cut_makes_no_difference(parts: list[str], stop: list[str]) -> None:
    stream = TextStream(StreamDecoder(lambda identity: parts[identity].encode()), stop)
    for identity in range(len(parts)):
        stream.push(identity)
        if stream.stopped:
            break
    stream.finish()
    assert (stream.text, stream.stopped) == _cut("".join(parts), stop)


def test_only_what_a_stop_string_may_take_is_held_back() -> None:
    stream = _stream(["\n\nHuman:", "###"])
    shown = [stream.push(byte) for byte in b"x\n\nHux#y##"]
    assert shown == ["x", "", "", "", "", "\n\nHux", "", "#y", "", ""]
    assert stream.finish() == "##"


def test_half_a_character_is_not_shown() -> None:
    stream = _stream([])
    assert [stream.push(byte) for byte in "\u4e16".encode()] == ["", "", "\u4e16"]
    assert stream.push(0xC3) == ""
    assert stream.finish() == "\ufffd"


def test_without_a_tokenizer_there_is_no_text() -> None:
    stream = TextStream(None)
    assert (stream.push(3), stream.finish(), stream.text) == ("", "", "")
