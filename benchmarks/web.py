"""Web pages: how well main text is taken out of them, how often their language is told, and what the rules leave.

    python -m venv ENV && ENV/bin/pip install -e '.[data]' -c constraints.txt
    ENV/bin/pip install -c constraints.txt readability-lxml==0.9 boilerpy3==1.0.7 py3langid==0.4.0 lingua-language-detector==2.1.1
    ENV/bin/python recipes/fetch.py recipes/small --only debian-handbook
    ENV/bin/python benchmarks/web.py          about five minutes; what is not installed or fetched is left out

Extraction: words of an answer against those of the page's gold text, on 121 articles with text taken by hand and on 87
whose gold is what Mozilla's Readability makes of them (readability-lxml is its relative); pages for a second of
processor time over all. Language: see web_languages.py. The funnel: pages and Debian's handbook in 26 folders through
web.toml. What the rules catch of planted bad documents, and cost in good ones, is measured by filters.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import extraction_peers
import record
import web_languages
from extraction_peers import Extractor, answer

HERE = Path(__file__).parent
PAGES = HERE.parents[1] / "shared" / "data" / "webpages" / "pages.jsonl.zst"
HANDBOOK = HERE.parent / "recipes" / "small" / "raw" / "debian" / "debian-handbook"
GOAL = {"f1": 0.94, "pages_per_cpu_s": 200, "sentences": 0.985}  # of kiloq; ours

Page = dict[str, Any]


def gold_of(page: Page) -> str:
    """The text that an extractor should find."""
    from lxml.html import fromstring

    return str(page["gold_text"] or fromstring(page["gold_html"]).text_content())


def seconds(extractor: Extractor, pages: Sequence[Page]) -> Callable[[], float]:
    """A turn: processor time for all pages."""

    def run() -> float:
        start = time.process_time()
        for page in pages:
            answer(extractor, page["html"])
        return time.process_time() - start

    return run


def extraction(step: int) -> dict[str, Any]:
    """Figures of every extractor on both sets, of every `step`-th page."""
    pages = list(web_languages.rows(PAGES))[::step]
    sets: dict[str, list[Page]] = {}
    for page in pages:
        sets.setdefault(page["set"], []).append(page)
    found = extraction_peers.installed()
    times = record.interleaved({name: seconds(extractor, pages) for name, extractor in found.items()})
    figures: dict[str, Any] = {"pages": {name: len(group) for name, group in sets.items()}}
    for name, extractor in found.items():
        figures[name] = {
            **{label: extraction_peers.scores((answer(extractor, page["html"]), gold_of(page)) for page in group)
               for label, group in sets.items()},
            "pages_per_cpu_s": round(len(pages) / times[name]["median"], 1),
            "cpu_s": times[name],
        }  # fmt: skip
    return figures


def language(step: int) -> dict[str, Any]:
    """Accuracy of the step's function and of peers on labelled sentences, and what they say of the handbook."""
    everything = web_languages.sentences()[::step]
    main = [one for one in everything if one[0] in web_languages.MAIN]
    sets = {"18 languages": main, "75 languages": everything, "flores": web_languages.parallel()[::step]}
    figures: dict[str, Any] = {}
    for name, labelled in sets.items():
        figures[name] = {"texts": len(labelled)}
        for peer, identified in web_languages.peers().items():
            figures[name][peer] = web_languages.accuracy(identified, labelled)
    if HANDBOOK.exists():
        figures["handbook"] = web_languages.handbook_figures(HANDBOOK, 2 * step)
    return figures


def funnel() -> dict[str, Any] | None:
    """What the steps of web.toml leave of the pages; None where the handbook has not been fetched."""
    if not HANDBOOK.exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "kiloq", "prepare", str(HERE / "web.toml"), "--out", f"{folder}/web", "--json"]
        start = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
        wall = time.perf_counter() - start
    found = json.loads(done.stdout)
    return {"wall_s": round(wall, 1), "steps": found["steps"], "sources": found["sources"]}


def printed(figures: dict[str, Any]) -> None:
    """What the figures are, a line each."""
    for name, row in figures["extraction"].items():
        if name != "pages":
            told = "  ".join(f"{label[:8]} P {found['precision']:.3f} R {found['recall']:.3f} F1 {found['f1']:.3f}"
                             for label, found in row.items() if isinstance(found, dict) and "f1" in found)  # fmt: skip
            print(f"{name:18} {told}  {row['pages_per_cpu_s']:7.1f} pages/CPU-s")
    for name, row in figures["language"].items():
        for peer, found in row.items():
            print(f"{name:14} {peer:34} {found}")
    for step in figures["funnel"]["steps"] if figures["funnel"] else ():
        print(f"{step['step']:24} {step['documents_in']:7,} in {step['documents_out']:7,} out")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the texts and no funnel; the figures say little")  # fmt: skip
    parser.add_argument("--out", type=Path, help="a JSON file instead of one in benchmarks/results")
    options = parser.parse_args()
    logging.disable(logging.ERROR)  # of extractors, about pages
    step = 10 if options.quick else 1
    figures = {
        "goal": GOAL,
        "extraction": extraction(step),
        "language": language(step),
        "funnel": None if options.quick else funnel(),
    }
    printed(figures)
    print(record.write("web", figures, options.out))


if __name__ == "__main__":
    main()
