"""One page of HTML about a machine: what it is, its measured limits, its roofline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import PackageLoader

from firsthand.llm.audit.ceilings import MachineCeilings
from firsthand.llm.audit.machine_tables import (
    bandwidth_table,
    devices,
    facts,
    measured_state,
    overhead_table,
    product_table,
)
from firsthand.llm.audit.roofline import bandwidth_plot, roofline_plot
from firsthand.llm.data.files import write_atomically
from firsthand.llm.training.report.page import figure_of, page_environment


def machine_html(ceilings: MachineCeilings) -> str:
    """The page as one HTML document, without scripts, fonts or pictures from elsewhere."""
    parts: list[dict[str, Any]] = [
        {
            "title": title,
            "figures": [figure_of(roofline_plot(device, steps)), figure_of(bandwidth_plot(device))],
            "tables": [
                bandwidth_table(ceilings, device),
                product_table(device, steps),
                overhead_table(device),
            ],
        }
        for title, device, steps in devices(ceilings)
    ]
    template = page_environment(PackageLoader("firsthand.llm.audit", "pages")).get_template(
        "machine.html"
    )
    return template.render(
        title=ceilings.processor.model,
        state=measured_state(ceilings),
        headline=facts(ceilings.processor)[1:],
        notes=ceilings.notes,
        devices=parts,
    )


def write_machine_page(ceilings: MachineCeilings, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        DiskError: it cannot be written.
    """
    write_atomically(path, machine_html(ceilings).encode("utf-8"))
