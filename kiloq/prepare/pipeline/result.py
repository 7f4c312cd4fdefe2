"""The files of a finished run beside its documents: report.html, README.md (the data card), funnel.json, mix.json,
and decontamination.json if a step looked for test sets.

All of them depend on the recipe and the inputs alone, never on time or on the machine.
"""

from __future__ import annotations

from pathlib import Path

from kiloq.core.files import atomic_file
from kiloq.core.safe_json import write_json
from kiloq.prepare.pipeline.funnel import Funnel
from kiloq.prepare.report.card import data_card
from kiloq.prepare.report.page import report_page


def write_result(funnel: Funnel, folder: Path) -> None:
    """Write what people and later stages read about the run."""
    for name, text in (("report.html", report_page(funnel)), ("README.md", data_card(funnel))):
        with atomic_file(folder / name) as file:
            file.write(text.encode("utf-8", "replace"))
    write_json(folder / "funnel.json", funnel.record())
    if found := funnel.contamination():
        write_json(folder / "decontamination.json", found)
    (folder / "mix.json").unlink(missing_ok=True)  # of a run that was killed here, whose mix may have been another
    if funnel.mix():
        write_json(folder / "mix.json", funnel.mix_record())
