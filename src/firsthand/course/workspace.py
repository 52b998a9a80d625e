"""The learner's folder: files that mirror the stack's paths, never overwritten.

    mine/
      foundations/neuron.py     twin of llm/foundations/neuron.py
      debug/1.3_softmax_1.py    given code of a Debug step, one file for each time it is given
      .firsthand/log.sqlite     the event log
      .firsthand/backups/       dated copies, made before anything of the learner's is changed

Adding a starter appends to a file; `reset` and `upgrade` copy the file to a dated backup first.
"""

from __future__ import annotations

import ast
import contextlib
import os
import shutil
import subprocess
import textwrap
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from firsthand.course import starters
from firsthand.course.errors import FirsthandError
from firsthand.course.sources import PartName, module_source, text_lines

if TYPE_CHECKING:  # the declarations of steps import NumPy, and `status` starts without it
    from firsthand.course.loading import Course
    from firsthand.course.steps import Build, Debug, Mistake

MARKER = ".firsthand"
LOG_NAME = "log.sqlite"
README = """# My own LLM

What I build here mirrors the paths of firsthand's stack: `foundations/neuron.py` is my twin of
`llm/foundations/neuron.py`. Inside, `mine` is the name of this folder's package:
`from mine.foundations.neuron import dot_product`.

    firsthand learn      go on where I was
    firsthand status     where I am
    firsthand check      check the step I am on

firsthand never overwrites these files. What it must change (`firsthand reset`) it copies to
`.firsthand/backups/` first. My progress is `.firsthand/log.sqlite`; `firsthand export` saves it.
"""
IGNORED = ".firsthand/\n__pycache__/\n"


class WorkspaceError(FirsthandError):
    """A workspace that cannot be made, found or written; one sentence for the learner."""


@dataclass(frozen=True)
class StarterResult:
    """Where a part is to be written. added: whether a starter was put there now."""

    path: Path
    line: int
    added: bool


@dataclass(frozen=True)
class Workspace:
    """A learner's folder. Use `create`, `open` or `find`."""

    root: Path

    @property
    def state_folder(self) -> Path:
        return self.root / MARKER

    @property
    def log_path(self) -> Path:
        return self.state_folder / LOG_NAME

    @classmethod
    def create(cls, root: Path) -> Workspace:
        """Make a workspace in a new or empty folder, or return the one that is there.

        Raises WorkspaceError where the folder holds something else or cannot be written.
        """
        root = root.absolute()
        workspace = cls(root)
        if workspace.state_folder.is_dir():
            return workspace
        if root.exists() and not root.is_dir():
            raise WorkspaceError(f"{root} is a file; a workspace is a folder.")
        if root.is_dir() and any(root.iterdir()):
            raise WorkspaceError(
                f"{root} holds other files. Name a new or empty folder: firsthand new DIR"
            )
        try:
            workspace.state_folder.mkdir(parents=True)
            (root / "README.md").write_text(README, encoding="utf-8")
            (root / ".gitignore").write_text(IGNORED, encoding="utf-8")
        except OSError as error:
            raise WorkspaceError(f"{root} cannot be written: {error.strerror}.") from None
        workspace._start_repository()
        return workspace

    @classmethod
    def open(cls, root: Path) -> Workspace:
        """The workspace at `root`. Raises WorkspaceError where there is none."""
        workspace = cls(root.absolute())
        if not workspace.state_folder.is_dir():
            raise WorkspaceError(
                f"{root} is no workspace. Make one with: firsthand new {root.name or 'mine'}"
            )
        return workspace

    @classmethod
    def find(cls, start: Path) -> Workspace | None:
        """The workspace that `start` lies in, or `start/mine`; None where there is neither."""
        start = start.absolute()
        for folder in (start, *start.parents):
            if (folder / MARKER).is_dir():
                return cls(folder)
        if (start / "mine" / MARKER).is_dir():
            return cls(start / "mine")
        return None

    def _start_repository(self) -> None:
        """The learner's own git repository, if git is there; its absence is no error."""
        if shutil.which("git") is None:
            return
        subprocess.run(
            ["git", "init", "--quiet", str(self.root)],
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    # ------------------------------------------------------------------ files of parts

    def file_of(self, build: Build) -> Path:
        return self.root / PartName.parse(build.part).file

    def add_starter(self, course: Course, session_id: str, build: Build) -> StarterResult:
        """Put the starter of a Build step's part where it belongs, unless the name is there.

        Creates the file, or appends to it (after a dated backup); what is there stays as it is.
        Raises WorkspaceError where the file cannot be written.
        """
        part = PartName.parse(build.part)
        path = self.file_of(build)
        source = starters.starter_source(course.stack, part)
        text = self._read(path)
        defined = starters.defined_names(text) if text is not None else set()
        if defined is None:  # does not parse now: look for the name as written
            defined = {part.name} if f" {part.name}" in (text or "") else set()
        methods = course.methods_until(build.part, session_id)
        if part.name in defined:
            added = self._add_methods(path, text or "", course, session_id, build)
            return StarterResult(path, self.line_of(path, build), added)
        parts = course.parts_until(session_id)
        pieces: list[str] = []
        if text is None or not text.strip():
            pieces.append(
                starters.file_header(source, course.stack, _built(course, session_id, part.module))
            )
        names_of_parts = {
            PartName.parse(item).name
            for item in parts
            if PartName.parse(item).module == part.module
        }
        for helper in starters.helpers(source, part.name, names_of_parts):
            if helper not in defined:
                pieces.append(starters.helper_text(source, helper))
        pieces.append(starters.part_starter(source, part.name, methods))
        if text is not None and text.strip():
            built = _built(course, session_id, part.module)
            given = "\n".join(pieces)
            imports = starters.missing_imports(source, course.stack, built, given, defined)
            if imports:
                pieces.insert(0, imports)
        if text is not None:
            self.back_up(path)
        body = "\n\n".join(piece.rstrip("\n") + "\n" for piece in pieces)
        self._write(path, body if text is None else text + _gap(text) + body)
        return StarterResult(path, self.line_of(path, build), True)

    def _add_methods(
        self, path: Path, text: str, course: Course, session_id: str, build: Build
    ) -> bool:
        """Append the starters of methods that the learner's class does not have yet."""
        part = PartName.parse(build.part)
        missing = starters.methods_missing(text, part.name, build.methods)
        if not missing:
            return False

        source = starters.starter_source(course.stack, part)
        tree = starters.parsed(text)
        assert tree is not None  # methods_missing found the class in it
        node = next(
            item for item in tree.body if isinstance(item, ast.ClassDef) and item.name == part.name
        )
        lines = text_lines(text)
        end = node.end_lineno or len(lines)
        if node.body[0].lineno == node.lineno:  # `class A: pass` takes no further line
            return False
        pieces = [
            "\n"
            + _indented(
                starters.emptied(source, source.method(part.name, method)),
                lines[node.body[0].lineno - 1],
            )
            for method in missing
        ]
        self.back_up(path)
        if lines and not lines[end - 1].endswith("\n"):
            lines[end - 1] += "\n"
        self._write(path, "".join(lines[:end]) + "".join(pieces) + "".join(lines[end:]))
        return True

    def line_of(self, path: Path, build: Build) -> int:
        """The line to start writing at: the first method or the name of the part; 1 if unknown."""
        text = self._read(path) or ""
        part = PartName.parse(build.part)
        inside = False
        for number, line in enumerate(text.splitlines(), start=1):
            if line.startswith((f"def {part.name}(", f"class {part.name}(", f"class {part.name}:")):
                if not build.methods:
                    return number
                inside = True
            elif inside and line.strip().startswith(f"def {build.methods[0]}("):
                return number
        return 1

    def reset(self, course: Course, session_id: str, build: Build) -> Path:
        """Replace a step's part by its starter; the file as it was is kept as a dated backup.

        Returns the backup. Where the file does not parse, it is set aside whole and made anew.
        """

        part = PartName.parse(build.part)
        path = self.file_of(build)
        text = self._read(path)
        if text is None:
            self.add_starter(course, session_id, build)
            return path
        backup = self.back_up(path)
        source = starters.starter_source(course.stack, part)
        tree = starters.parsed(text)
        if tree is None:
            path.unlink()
            self.add_starter(course, session_id, build)
            return backup
        lines = text_lines(text)
        node = next(
            (
                item
                for item in tree.body
                if isinstance(item, ast.FunctionDef | ast.ClassDef) and item.name == part.name
            ),
            None,
        )
        if node is None:
            self.add_starter(course, session_id, build)
            return backup
        replacements: list[tuple[ast.stmt, str]] = []
        if build.methods and isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and item.name in build.methods:
                    emptied = starters.emptied(source, source.method(part.name, item.name))
                    replacements.append((item, _indented(emptied, lines[item.lineno - 1])))
        else:
            methods = course.methods_until(build.part, session_id)
            replacements.append((node, starters.part_starter(source, part.name, methods)))
        for item, new in sorted(replacements, key=lambda pair: -pair[0].lineno):
            first = item.lineno
            decorators = getattr(item, "decorator_list", [])
            if decorators:
                first = min(first, decorators[0].lineno)
            lines[first - 1 : item.end_lineno] = [new]
        self._write(path, "".join(lines))
        self.add_starter(course, session_id, build)  # a method that was deleted
        return backup

    # ------------------------------------------------------------------ Debug files

    def debug_file(self, session_id: str, step: Debug, number: int) -> Path:
        """The file of a Debug step, the `number`-th time it is given (from 1)."""
        return self.root / "debug" / f"{session_id}_{step.id.replace('-', '_')}_{number}.py"

    def add_debug(
        self, course: Course, session_id: str, step: Debug, mistake: Mistake, number: int
    ) -> Path:
        """Write the given code of a Debug step once; a file that is there is left alone."""
        path = self.debug_file(session_id, step, number)
        if not path.exists():
            self._write(path, self.given_text(course, session_id, step, mistake))
        return path

    def given_text(self, course: Course, session_id: str, step: Debug, mistake: Mistake) -> str:
        """The given code of a Debug step: the reference's part with one mistake written into it."""
        part = PartName.parse(step.build.part)
        source = starters.starter_source(course.stack, part)
        first, last = source.span(source.definition(part.name))
        edited = source.edited(part.name, mistake.edits).splitlines(keepends=True)
        growth = len(edited) - len(source.lines)
        body = "".join(edited[first - 1 : last + growth])
        built = _built(course, session_id, part.module)
        symptom = textwrap.fill(f"Given code with one mistake. What one sees: {step.symptom}", 96)
        names = starters.helpers(source, part.name, {part.name})
        pieces = [
            f'"""{symptom}\n\nRepair it here, then save. Nothing else needs to change.\n"""\n',
            starters.import_lines(source, course.stack, built),
            *(starters.helper_text(source, name) for name in names),
            body,
        ]
        return "\n\n".join(piece.rstrip("\n") + "\n" for piece in pieces if piece.strip())

    def shown(self, path: Path) -> str:
        """A path as it is told to the learner: from the current folder where it lies below it."""
        try:
            return (
                os.path.relpath(path) if not os.path.relpath(path).startswith("..") else str(path)
            )
        except ValueError:  # another drive
            return str(path)

    # ------------------------------------------------------------------ keeping

    def back_up(self, path: Path, at: datetime | None = None) -> Path:
        """Copy a file of the learner's to .firsthand/backups/<date>/<its path>; return the copy."""
        stamp = (at or datetime.now()).strftime("%Y-%m-%dT%H-%M-%S.%f")
        target = self.state_folder / "backups" / stamp / path.relative_to(self.root)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        except OSError as error:
            raise WorkspaceError(
                f"{path.name} was left as it is: no backup could be written ({error.strerror})."
            ) from None
        return target

    def _read(self, path: Path) -> str | None:
        try:
            return path.read_bytes().decode("utf-8")  # line ends stay the learner's
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise WorkspaceError(
                f"{path} is not UTF-8 text (byte {error.start} cannot be read); save it as UTF-8."
            ) from None
        except OSError as error:
            raise WorkspaceError(f"{path} cannot be read: {error.strerror}.") from None

    def _write(self, path: Path, text: str) -> None:
        """Whole or not at all: a full disk never leaves half a file of the learner's."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(text.encode("utf-8"))
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise WorkspaceError(f"{path} cannot be written: {error.strerror}.") from None


def _indented(code: str, line: str) -> str:
    """A method as far in as `line` of the learner's class: two spaces or a tab are their choice."""
    indent = line[: len(line) - len(line.lstrip())]
    own = textwrap.indent(textwrap.dedent(code), indent)
    return own.replace("    ", "\t") if "\t" in indent else own


def _gap(text: str) -> str:
    """What separates a starter from the text above it, which stays as it is to the last byte."""
    newline = "\r\n" if "\r\n" in text else "\n"
    tail = len(text) - len(text.rstrip("\r\n"))
    present = text[len(text) - tail :].replace("\r\n", "\n").replace("\r", "\n").count("\n")
    if not text.strip():
        return newline if text and not present else ""
    return newline * max(0, 3 - present)


def _built(course: Course, session_id: str, own_module: str) -> dict[str, set[str]]:
    """What a file imports from the learner's other files: module -> names."""
    parts: dict[str, set[str]] = {}
    for item in course.parts_until(session_id):
        name = PartName.parse(item)
        if name.module != own_module:
            parts.setdefault(name.module, set()).add(name.name)
    return {
        module: starters.shared_names(module_source(f"{course.stack}.{module}"), names)
        for module, names in parts.items()
    }
