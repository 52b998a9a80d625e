"""The page itself: one HTML file without scripts, fonts or pictures from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import BaseLoader, ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from firsthand.llm.data.files import write_atomically
from firsthand.llm.training.report import tables
from firsthand.llm.training.report.contents import Contents, Record, read_contents
from firsthand.llm.training.report.plots import draw, short
from firsthand.llm.training.report.series import Plot, flow_plots, metric_plots, step

REPORT = "report.html"
# Steps whose samples are shown; the first and the last ones are always among them.
MOST_SAMPLES = 12


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A plot that is drawn."""

    title: str
    note: str
    svg: Markup


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Texts that the model wrote at one step."""

    step: int
    texts: list[Record]


def write_report(folder: Path) -> Path:
    """Write report.html into the folder of a run, from what the folder holds now.

    It can be called at any time and replaces the file at once.

    Raises:
        TrainingError: the folder is no run.
        DiskError: the file cannot be written.
    """
    path = folder / REPORT
    write_atomically(path, report_html(folder).encode("utf-8"))
    return path


def report_html(folder: Path) -> str:
    """The report of a run as one HTML document.

    Raises:
        TrainingError: the folder is no run.
    """
    contents = read_contents(folder)
    plots, constant = metric_plots(contents)
    model = contents.model()
    facts = [
        tables.validations(contents),
        tables.parameters(model) if model else None,
        tables.memory(model, contents) if model else None,
        tables.checkpoints(contents),
        tables.parts(contents),
        tables.settings(contents),
    ]
    template = page_environment().get_template("page.html")
    return template.render(
        title=folder.resolve().name,
        state=tables.state(contents),
        origin=tables.origin(contents),
        headline=tables.headline(contents),
        problems=contents.problems,
        events=[(short(step(e)), str(e.get("text", ""))) for e in contents.of_kind("event")],
        curves=[figure_of(plot) for plot in plots],
        thinned=any(series.band for plot in plots for series in plot.series),
        constant=[(name, short(value)) for name, value in constant.items()],
        flow=[figure_of(plot) for plot in flow_plots(contents)],
        flow_table=tables.flow(contents),
        flow_cost=tables.flow_cost(contents),
        samples=_samples(contents),
        tables=[table for table in facts if table is not None],
    )


def page_environment(*more: BaseLoader) -> Environment:
    """Where pages find their templates: a page's own loaders, then this folder.

    `base.html` is what every page has around its body, `style.html` its <style>; `macros.html`
    draws tables and figures.
    """
    return Environment(
        loader=ChoiceLoader([*more, PackageLoader("firsthand.llm.training", "report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def figure_of(plot: Plot) -> Figure:
    """The plot drawn, with what has to be said of it."""
    notes = [plot.note] if plot.note else []
    if plot.logarithmic:
        notes.append("Logarithmic axes." if plot.x_logarithmic else "Logarithmic axis.")
    if plot.dropped:
        why = "not finite or not above 0" if plot.logarithmic else "not finite"
        notes.append(f"{plot.dropped:,} values are {why} and left out.")
    return Figure(title=plot.title, note=" ".join(notes), svg=draw(plot))


def _samples(contents: Contents) -> list[Sample]:
    by_step: dict[int, list[Record]] = {}
    for record in contents.samples:
        texts = by_step.setdefault(int(step(record)), [])
        texts.append({"prompt": str(record.get("prompt", "")), "text": str(record.get("text", ""))})
    steps = sorted(by_step)
    if len(steps) > MOST_SAMPLES:
        last = len(steps) - 1
        steps = [steps[last * k // (MOST_SAMPLES - 1)] for k in range(MOST_SAMPLES)]
    return [Sample(step=number, texts=by_step[number]) for number in reversed(steps)]
