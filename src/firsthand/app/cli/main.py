"""The `firsthand` command. Each command imports what it needs, so that `status` starts at once."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from firsthand.app.cli import (
    aligning,
    auditing,
    chatting,
    finetuning,
    fitting,
    machine,
    measuring,
    quantizing,
    running,
    serving,
    tracing,
    writing,
)
from firsthand.app.cli.kernels import kernels_app
from firsthand.app.cli.options import WorkspaceOption
from firsthand.app.cli.stack import data_app, tokenizer_app
from firsthand.course.errors import FirsthandError

app = typer.Typer(
    name="firsthand",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help=(
        "Build a small LLM with your own hands; only proof moves you on.\n\n"
        "Start with **firsthand learn**. It asks a few questions, shows one step at a time, and "
        "checks your file at each save. **firsthand status** shows where you are and what unlocks "
        "what. Everything is saved after each answer."
    ),
)
course_app = typer.Typer(no_args_is_help=True, help="For authors of the course.")


@app.command()
def learn(
    workspace: WorkspaceOption = None,
    test_out: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Take the gate of a session cold, e.g. 1.4. It is the same gate."),
    ] = None,
    session: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Turn to another open session, e.g. 1.2."),
    ] = None,
) -> None:
    """Start the course, or go on where you were.

    Shows one step: its theory, then one question. A typed answer is judged at once; for code, save
    the file that is named and the check runs by itself. Two attempts, then an easier rung; never a
    skip. Inside a step: hint, simplify, theory, pause.
    """
    from firsthand.app.cli.place import COURSE, open_log, workspace_or_new
    from firsthand.app.cli.terminal import console, interactive

    if not interactive() and (test_out is not None or session is not None):
        from firsthand.course.workspace import WorkspaceError

        raise WorkspaceError("--test-out and --session need a terminal; nothing has changed.")
    place, created = workspace_or_new(workspace)
    with open_log(place) as log:
        if not interactive():
            from firsthand.app.cli.commands import where_we_are

            log.ensure_created()
            for line in where_we_are(COURSE, place, log, created):
                console().print(line, markup=False)
            return
        from firsthand.app.cli.learning import Learning

        sitting = Learning(COURSE, place, log)
        if test_out is not None:
            sitting.sitting.test_out(_session(test_out))
        if session is not None:
            sitting.sitting.focus(_session(session))
        sitting.run()


@app.command()
def status(workspace: WorkspaceOption = None) -> None:
    """Where you are: phases, sessions, concepts, and what unlocks what."""
    from firsthand.app.cli import drawing
    from firsthand.app.cli.place import COURSE, open_log, workspace_at
    from firsthand.app.cli.terminal import console
    from firsthand.course import recap
    from firsthand.course.fold import progress

    with open_log(workspace_at(workspace), read_only=True) as log:
        found = progress(log.events(), COURSE.outline)
    loaded = recap.loaded(COURSE.outline, found).sentence
    console().print(drawing.status(COURSE.outline, found, loaded))


@app.command()
def check(
    step: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="A step, e.g. dot-product or 1.1/dot-product. Default: the open one."),
    ] = None,
    answer: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The answer to a typed question, e.g. --answer '96 bytes'."),
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Check the open step now; or look again at a step that you have built.

    Only the open step counts, in the same way as under `learn`. Exit code 0 means passed.
    """
    from firsthand.app.cli.commands import check_step
    from firsthand.app.cli.place import COURSE, open_log, workspace_at

    place = workspace_at(workspace)
    with open_log(place) as log:
        passed = check_step(COURSE, place, log, step, answer)
    raise typer.Exit(0 if passed else 1)


@app.command()
def hint(workspace: WorkspaceOption = None) -> None:
    """Show the next hint of the open step. It says how many there are; none is a solution."""
    from firsthand.app.cli.commands import show_hint
    from firsthand.app.cli.place import COURSE, open_log, workspace_at

    place = workspace_at(workspace)
    with open_log(place) as log:
        show_hint(COURSE, place, log)


@app.command()
def simplify(workspace: WorkspaceOption = None) -> None:
    """Go one rung down: smaller numbers, lines to order, one line to fill, the worked example."""
    from firsthand.app.cli.commands import go_down
    from firsthand.app.cli.place import COURSE, open_log, workspace_at

    place = workspace_at(workspace)
    with open_log(place) as log:
        go_down(COURSE, place, log)


@app.command()
def review(workspace: WorkspaceOption = None) -> None:
    """Answer the reviews that are due, with fresh numbers."""
    from firsthand.app.cli.commands import reviews
    from firsthand.app.cli.place import COURSE, open_log, workspace_at

    place = workspace_at(workspace)
    with open_log(place) as log:
        reviews(COURSE, place, log)


@app.command()
def reset(
    step: Annotated[str, typer.Argument(help="A Build step, e.g. dot-product.")],
    workspace: WorkspaceOption = None,
) -> None:
    """Put the starter of a step back. Your file is kept as a dated backup."""
    from firsthand.app.cli.commands import reset_step
    from firsthand.app.cli.place import COURSE, workspace_at

    reset_step(COURSE, workspace_at(workspace), step)


@app.command()
def plan(
    set_: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", help="Change a field of your profile, e.g. --set pacing=2027-06-01."),
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Your plan: phases, what you build, the time it takes; change the profile with --set.

    Fields: language, level, goals, hardware, time, focus, tone, pacing, track. A date may leave
    sessions out of the plan; it never makes the gate easier.
    """
    from firsthand.app.cli.commands import show_plan
    from firsthand.app.cli.place import COURSE, open_log, workspace_at

    with open_log(workspace_at(workspace)) as log:
        show_plan(COURSE, log, set_ or [])


@app.command()
def export(
    target: Annotated[
        Path, typer.Argument(help="Where to write your progress, e.g. state.json; or a model.")
    ],
    format_: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--format", help="Write the model there for others: gguf or huggingface."),
    ] = None,
    type_: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--type", help="Of a GGUF file's weights: f16 (default), q8_0, bf16, f32."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", "-o", help="With --format: file or folder. Default: in the run."),
    ] = None,
    step: Annotated[
        int, typer.Option(help="With --format: of the checkpoint. Default: the newest.")
    ] = 0,
    workspace: WorkspaceOption = None,
) -> None:
    """Save your progress as one file; or a model in another format.

    `firsthand export state.json` is progress. `firsthand export RUN --format gguf --type q8_0`
    is a model for llama.cpp, `--format huggingface` one for transformers.
    """
    from firsthand.app.cli.terminal import console

    if format_ is not None:
        from firsthand.app.cli.exporting import export_model

        path = export_model(target, format_, type_, out, step)
        console().print(f"Written: {path}", markup=False)
        return
    if type_ is not None or out is not None or step:
        raise FirsthandError("--type, --out and --step go with --format gguf or huggingface.")
    if target.is_dir():
        raise FirsthandError(
            f"{target} is a folder. Progress goes into a file, e.g. state.json; the model of a run "
            "is exported with --format gguf or --format huggingface."
        )
    from firsthand.app.cli.place import open_log, workspace_at
    from firsthand.course.exchange import export_state

    with open_log(workspace_at(workspace)) as log:
        exported = export_state(log, target)
    console().print(f"Exported {exported.events} events to {exported.path}.", markup=False)


@app.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(help="A file that `firsthand export` wrote.")],
    replace: Annotated[
        bool, typer.Option(help="Where the two have diverged, take the file (a backup is kept).")
    ] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Bring progress from another machine. Nothing changes if the file is not whole."""
    from firsthand.app.cli.place import open_log, workspace_or_new
    from firsthand.app.cli.terminal import console
    from firsthand.course.exchange import import_state, require_sound
    from firsthand.course.recap import local_time

    require_sound(file)  # before a workspace is made for it
    place, _ = workspace_or_new(workspace)
    with open_log(place) as log:
        imported = import_state(file, log, replace=replace)
    console().print(
        f"Imported {imported.added} new events of {imported.events}, exported on "
        f"{local_time(imported.exported_at)}.",
        markup=False,
    )
    if imported.backup is not None:
        console().print(f"The former log is kept at {imported.backup}.", markup=False)


@app.command()
def new(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")] = Path("mine"),
) -> None:
    """Make a workspace: your files, mirrored from the stack, and your progress."""
    from firsthand.app.cli.commands import make_workspace
    from firsthand.app.cli.place import COURSE

    make_workspace(COURSE, folder)


@course_app.command("check")
def course_check(
    sessions: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Sessions, e.g. 1.3. Default: all."),
    ] = None,
) -> None:
    """Does every step keep its promises? Starters, references, mistakes, answers, prose."""
    from firsthand.app.cli.commands import check_sessions
    from firsthand.app.cli.place import COURSE

    raise typer.Exit(0 if check_sessions(COURSE, sessions or []) else 1)


def _session(text: str) -> str:
    from firsthand.app.cli.place import COURSE

    if text not in {session.id for session in COURSE.outline.sessions}:
        known = ", ".join(session.id for session in COURSE.outline.sessions)
        raise typer.BadParameter(f"there is no session {text}; there are {known}")
    return text


STACK = "Your language model"
for command in (
    running.build,
    running.train,
    finetuning.finetune,
    aligning.align,
    measuring.evaluate,
    writing.generate,
    chatting.chat,
    serving.serve,
    running.report,
    quantizing.quantize,
    machine.machine,
    fitting.fit,
    auditing.audit,
    tracing.layout,
    tracing.gallery,
):
    app.command(rich_help_panel=STACK)(command)
app.add_typer(tokenizer_app, name="tokenizer", rich_help_panel=STACK)
app.add_typer(data_app, name="data", rich_help_panel=STACK)
app.add_typer(kernels_app, name="kernels", rich_help_panel=STACK)
app.add_typer(course_app, name="course", rich_help_panel="For authors")


def main() -> None:
    """The entry point: every error of the learner's is one sentence, none of ours a traceback."""
    from firsthand.app.cli.terminal import prepare_streams

    prepare_streams()
    # PyTorch's threads wait for their next operation by spinning. Where anything else runs, the one
    # that computes waits for the one that spins, and small operations took up to 15 times as long;
    # with no spin at all waking them costs a third of a quiet machine's speed. This is between.
    # Read when PyTorch is imported, which is later.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # A terminal that is put back as it was, and a worker that ends, also when somebody ends us.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        app()
    except FirsthandError as error:
        _fail(_sentences(error), 1)
    except BrokenPipeError:
        # The reader of a pipe has left; nothing more can be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        _fail("Stopped.", 130)
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            _fail(f"{error.filename or 'The system'}: {error.strerror}.", 1)
        if os.environ.get("FIRSTHAND_TRACEBACK"):
            raise
        _fail(
            f"firsthand itself failed: {type(error).__name__}: {error}. Nothing of yours is lost. "
            "FIRSTHAND_TRACEBACK=1 shows where.",
            70,
        )


def _sentences(error: FirsthandError) -> str:
    """The error, and what was typed where it could not be stored."""
    data = getattr(error, "data", {})
    typed = str(data.get("answer") or data.get("text") or "")
    return f"{error}\nYou had typed: {typed[:500]}" if typed else str(error)


def _fail(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
