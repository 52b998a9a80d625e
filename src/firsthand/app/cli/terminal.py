"""The terminal: one console, and lesson Markdown drawn for it (formulas, diagrams, tables)."""

from __future__ import annotations

import codecs
import re
import shutil
import sys
from functools import cache
from io import TextIOWrapper

from rich.console import Console, Group, RenderableType
from rich.text import Text
from rich.theme import Theme

WIDEST = 96
THEME = Theme(
    {
        "right": "bold green",
        "wrong": "bold red",
        "note": "cyan",
        "dim": "dim",
        "label": "bold",
        "markdown.code": "bold cyan",
        "markdown.h1": "bold",
        "markdown.h2": "bold",
    }
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
INLINE = re.compile(r"(?<![\\$\w])\$([^$\n]+?)\$(?![\w$])")
# What a terminal without Unicode shows instead; any other character becomes a question mark.
PLAIN = str.maketrans(
    {
        "•": "*",
        "·": "*",
        "×": "x",
        "−": "-",
        "–": "-",
        "—": "-",
        "─": "-",
        "━": "-",
        "│": "|",
        "▌": "|",
        "→": "->",
        "←": "<-",
        "≤": "<=",
        "≥": ">=",
        "≠": "!=",
        "≈": "~",
        "²": "^2",
        "³": "^3",
        "…": "...",
        "‘": "'",
        "’": "'",
        "“": '"',
        "”": '"',
        "µ": "u",
        "\u00a0": " ",
    }
)


def prepare_streams() -> None:
    """No character that a terminal cannot show or send ever ends the program."""
    codecs.register_error("plain", _plain)
    for stream, handler in ((sys.stdin, "replace"), (sys.stdout, "plain"), (sys.stderr, "plain")):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=handler)


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(PLAIN)
    return "".join(letter if letter.isascii() else "?" for letter in text), error.end


def console() -> Console:
    """Standard output: at most 96 columns wide, 80 when piped; NO_COLOR is honoured."""
    found = _console()
    found.width = max(min(shutil.get_terminal_size((80, 24)).columns, WIDEST), 20)
    return found


@cache
def _console() -> Console:
    return Console(theme=THEME, highlight=False, soft_wrap=False)


def cut(text: str, width: int) -> str:
    """`text` in at most `width` columns, its end replaced by three dots where it is longer."""
    return text if len(text) <= width else text[: max(width - 3, 0)].rstrip() + "..."


def interactive() -> bool:
    """Whether someone sits at a terminal and can answer."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def lesson(text: str) -> RenderableType:
    """Markdown of a lesson or a question: diagrams drawn, formulas in Unicode, the rest by rich."""
    pieces: list[RenderableType] = []
    position = 0
    for fence in FENCE.finditer(text):
        pieces += _prose(text[position : fence.start()])
        pieces.append(_block(fence[1], fence[2]))
        position = fence.end()
        if text[position:].strip():
            pieces.append(Text(""))
    pieces += _prose(text[position:])
    return Group(*pieces)


def _prose(text: str) -> list[RenderableType]:
    if not text.strip():
        return [Text("")] if text.count("\n") > 1 else []
    from rich.markdown import Markdown

    if not _unicode():  # a formula in question marks says nothing; its LaTeX does
        return [Markdown(text, hyperlinks=False), Text("")]
    from firsthand.app.cli.formulas import formula_text

    def display(match: re.Match[str]) -> str:
        return f"\n\n> `{formula_text(match[1])}`\n\n"

    text = DISPLAY.sub(display, text)
    text = INLINE.sub(lambda match: _escaped(formula_text(match[1])), text)
    return [Markdown(text, hyperlinks=False), Text("")]


def _escaped(text: str) -> str:
    """A formula inside Markdown: its stars, bars and brackets are its own."""
    return re.sub(r"([*_|\[\]`<>\\])", r"\\\1", text)


def _block(language: str, body: str) -> RenderableType:
    if language == "mermaid":
        return Text(diagram(body, console().width), style="note", no_wrap=True)
    if language in ("python", "py"):
        from rich.syntax import Syntax

        code = body.rstrip("\n")
        # A long line goes on below: a line of code that is cut off cannot be put in order.
        return Syntax(code, "python", theme="ansi_dark", background_color="default", word_wrap=True)
    return Text(_indented(body.rstrip("\n")), overflow="fold")


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def diagram(source: str, width: int) -> str:
    """A Mermaid diagram in box-drawing characters, as wide as it must be; its source if undrawable.

    A left-to-right diagram that is too wide is drawn from top to bottom.
    """
    import termaid

    ascii_only = not _unicode()
    # Right-to-left and bottom-up pictures come out mirrored: they are drawn the usual way.
    source = re.sub(r"\A(\s*(?:flowchart|graph)) RL", r"\1 LR", source)
    source = re.sub(r"\A(\s*(?:flowchart|graph)) BT", r"\1 TD", source)
    for text in (source, re.sub(r"\A(\s*(?:flowchart|graph)) LR", r"\1 TD", source)):
        for padding, gap in ((1, 4), (1, 2), (0, 1)):
            try:
                drawn = str(
                    termaid.render(
                        text, use_ascii=ascii_only, padding_x=padding, padding_y=0, gap=gap
                    )
                )
            except Exception:  # a diagram is never worth a stopped lesson
                return _indented(source)
            if max((len(line) for line in drawn.splitlines()), default=0) <= width:
                return drawn
    return _indented(source)


def _unicode() -> bool:
    encoding = (sys.stdout.encoding or "").lower()
    return "utf" in encoding
