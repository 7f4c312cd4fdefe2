"""The page in a real browser against the stub server; the checks themselves are in `check_*.mjs`.

Needs node, chromium (`apt-get install chromium`) and `npm ci` in this folder; skips with a sentence where one is missing.
`KILOQ_CHROMIUM` names a browser that is not on the PATH. To run one check by hand:
`python stub.py 8765 &` and `node browser.mjs http://127.0.0.1:8765 /usr/bin/chromium NAME`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LIMIT_SECONDS = 600  # about 60 on two free cores
CHECKS = re.compile(r"^export (?:async function|const) (\w+)", re.MULTILINE)


def browser() -> str:
    named = os.environ.get("KILOQ_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    return found or pytest.skip("chromium is not here: apt-get install chromium, or name one in KILOQ_CHROMIUM")


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.syspath_prepend(str(HERE))
    import stub

    server = stub.serve()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()
    for name in ("stub", "scripts"):
        sys.modules.pop(name, None)


@pytest.mark.timeout(LIMIT_SECONDS + 30)
def test_the_page_in_a_browser(address: str) -> None:
    node = shutil.which("node") or pytest.skip("node is not here: install Node.js 20 or newer to run this test")
    executable = browser()
    if not (HERE / "node_modules" / "playwright-core").is_dir():
        pytest.skip(f"playwright-core is not here: run `npm ci` in {HERE}")
    command = [node, "browser.mjs", address, executable]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    failures = [f"{report['name']}: {report['error']}" for report in reports if not report["ok"]]
    assert not failures and done.returncode == 0, "\n\n".join(failures) or done.stderr
    written = {name for path in HERE.glob("check_*.mjs") for name in CHECKS.findall(path.read_text(encoding="utf-8"))}
    assert {report["name"] for report in reports} == written
