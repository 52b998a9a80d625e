"""Learning from preferences and rewards: `firsthand align`."""

from __future__ import annotations

from typing import Annotated

import typer

from firsthand.app.cli.finetuning import BaseArgument, FilesOption, LoraOption, run_method
from firsthand.app.cli.options import (
    AlignmentOutOption,
    AlignmentSetOption,
    MineOption,
    ResumeOption,
    StepsOption,
    WorkspaceOption,
)
from firsthand.app.cli.stack import one_sentence
from firsthand.course.errors import FirsthandError


def align(
    base: BaseArgument = None,
    method: Annotated[
        str, typer.Option("--method", "-m", help="dpo, grpo, ppo, reward or sft.")
    ] = "",
    data: FilesOption = None,
    lora: LoraOption = 0,
    settings: AlignmentSetOption = None,
    out: AlignmentOutOption = None,
    resume: ResumeOption = None,
    steps: StepsOption = 0,
    mine: MineOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Make better answers likelier, from pairs or from rewards.

    Begin with a model that `firsthand finetune` has taught to answer. Ctrl-C saves a checkpoint
    first; --resume goes on. Settings of a method: --set dpo.beta=0.2, --set grpo.group=8 ...
    """
    with one_sentence():
        from firsthand.llm.alignment.methods import METHODS, find_method

        if resume is None and not method:
            raise FirsthandError(f"--method is missing; choose one of {', '.join(METHODS)}.")
        if resume is not None and method:
            raise FirsthandError("--resume goes on with the method of the run; leave out --method.")
        if method:
            find_method(method)
        run_method(method, base, data, lora, settings, out, resume, steps, mine, workspace)
