"""The terminal: one console, and lesson Markdown drawn for it (formulas, diagrams, tables)."""

from __future__ import annotations

import re
import shutil
import sys
from functools import cache

from rich.console import Console, Group, RenderableType
from rich.text import Text
from rich.theme import Theme

WIDEST = 96
THEME = Theme(
    {
        "right": "green",
        "wrong": "red",
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


@cache
def console() -> Console:
    """Standard output: at most 96 columns wide, 80 when piped; NO_COLOR is honoured."""
    width = min(shutil.get_terminal_size((80, 24)).columns, WIDEST)
    return Console(theme=THEME, width=max(width, 20), highlight=False, soft_wrap=False)


@cache
def errors() -> Console:
    return Console(theme=THEME, stderr=True, highlight=False)


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
    pieces += _prose(text[position:])
    return Group(*pieces)


def _prose(text: str) -> list[RenderableType]:
    if not text.strip():
        return [Text("")] if text.count("\n") > 1 else []
    from rich.markdown import Markdown

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

        return Syntax(body.rstrip("\n"), "python", theme="ansi_dark", background_color="default")
    return Text(_indented(body.rstrip("\n")), no_wrap=True, overflow="ignore")


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def diagram(source: str, width: int) -> str:
    """A Mermaid diagram in box-drawing characters, as wide as it must be; its source if undrawable.

    A left-to-right diagram that is too wide is drawn from top to bottom.
    """
    import termaid

    ascii_only = not _unicode()
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
