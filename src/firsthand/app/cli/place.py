"""Where a command works: the course, the learner's workspace, its log."""

from __future__ import annotations

from pathlib import Path

from firsthand.course.loading import Course
from firsthand.course.log import EventLog
from firsthand.course.workspace import Workspace, WorkspaceError

COURSE = Course(curriculum="firsthand.curriculum", stack="firsthand.llm")
DEFAULT = Path("mine")


def workspace_at(path: Path | None) -> Workspace:
    """The workspace named, or the one this folder lies in, or ./mine. Raises WorkspaceError."""
    if path is not None:
        return Workspace.open(path)
    found = Workspace.find(Path.cwd())
    if found is None:
        raise WorkspaceError("There is no workspace here. Make one with: firsthand new mine")
    return found


def workspace_or_new(path: Path | None) -> tuple[Workspace, bool]:
    """As `workspace_at`, but made where there is none; True if it was."""
    found = Workspace.find(Path.cwd()) if path is None else None
    if found is not None:
        return found, False
    root = path if path is not None else DEFAULT
    existed = (root / ".firsthand").is_dir()
    return Workspace.create(root), not existed


def open_log(workspace: Workspace, *, read_only: bool = False) -> EventLog:
    """The workspace's log. Raises LogError in one sentence."""
    return EventLog(workspace.log_path, read_only=read_only)
