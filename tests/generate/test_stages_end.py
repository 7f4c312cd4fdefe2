"""How stages end: one that dies or hangs is named, and none outlives the first one; nobody else can reach them."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import environment
from serving import served
from staged_models import alive, assert_all_end, backend_of, some_ids, staged_folder

import kiloq
from kiloq.core.errors import KiloqError
from kiloq.generate import stage_crew
from kiloq.generate.stage_plan import StagePlan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return staged_folder(tmp_path_factory.mktemp("model"))


def test_a_stage_that_dies_fails_its_requests_with_its_name(folder: Path) -> None:
    """The middle one of three, with requests running; and it is said in health, while the server is still there."""
    model = kiloq.load(folder, stages=3)
    backend = backend_of(model)
    with served(model) as server:
        body = {"prompt": some_ids(10), "max_tokens": 1800, "ignore_eos": True, "stream": True}
        with server.client.stream("POST", "/v1/completions", json=body) as stream:
            events = (line for line in stream.iter_lines() if line)
            for _ in range(3):
                next(events)
            os.kill(backend.pids[0], signal.SIGKILL)
            said = "\n".join(events)
        assert "stage 2 of 3 (layers 2 to 2) has ended (SIGKILL, perhaps for want of memory): start the model" in said
        answer = server.post("/v1/completions", {"prompt": some_ids(10)})
        assert answer.status_code == 500 and "stage 2 of 3" in answer.json()["error"]["message"]
        server.service.failure = backend.wait_for_failure()
        health = server.client.get("/health")
        assert health.status_code == 503 and "stage 2 of 3" in health.text
    assert_all_end(backend.pids)


def test_a_stage_that_hangs_or_fails_is_named_and_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage_crew, "TOKEN_S", 0.0)
    for what in ("hangs", "fails"):
        model = kiloq.load(folder, stages=2)
        backend = backend_of(model)
        model.generate([1, 2], max_new_tokens=2)
        if what == "hangs":
            backend._crew.patience_s = 1.0
            os.kill(backend.pids[0], signal.SIGSTOP)
            told = r"stage 2 of 2 \(layers 2 to 3\) has not moved for \d+ s and was ended: start the model again"
        else:
            backend._crew.tell({"do": "fork", "of": -1, "new": -2})
            told = r"stage 2 of 2 \(layers 2 to 3\) failed \(KeyError, the log has the details\): start the model again"
        for _ in range(2):
            with pytest.raises(KiloqError, match=told):
                model.generate([1, 2], max_new_tokens=2)
        assert_all_end(backend.pids)
        with pytest.raises(KiloqError, match="stage 2 of 2"):
            model.logits([1])
    assert "KeyError: -1" in capfd.readouterr().err


def test_all_meet_on_this_machine_only_and_a_dropped_model_ends_them(folder: Path) -> None:
    model = kiloq.load(folder, stages=StagePlan(2, rendezvous="localhost:0"))
    pids = list(backend_of(model).pids)
    listening = [address for pid in (os.getpid(), *pids) for address in listeners(pid)]
    assert len(listening) >= 3  # the rendezvous, and one of gloo in each process
    assert set(listening) <= {"0100007F", "0" * 24 + "01000000"}  # 127.0.0.1 and ::1 as Linux writes them
    assert len(model.generate([1], max_new_tokens=2, ignore_eos=True).ids) == 2  # type: ignore[union-attr]
    del model
    gc.collect()
    assert_all_end(pids)


def listeners(pid: int) -> list[str]:
    """Addresses on which a process listens, in hexadecimal."""
    links = [str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir() if file.is_symlink()]
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes]


@pytest.mark.parametrize("end", ["kill -9", "exit"])
def test_no_process_outlives_the_first_one(folder: Path, tmp_path: Path, end: str) -> None:
    code = (
        f"import kiloq, sys\nmodel = kiloq.load({str(folder)!r}, stages=3)\n"
        "print(*model.engine.backend.pids, flush=True)\n"
        "stream = model.stream([1, 2], max_new_tokens=2000, ignore_eos=True)\nnext(iter(stream))\n"
        f"if {end == 'kill -9'}:\n    for piece in stream: pass\n"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(tmp_path)
    ) as first:
        assert first.stdout is not None and first.stderr is not None
        pids = [int(pid) for pid in first.stdout.readline().split()]
        assert len(pids) == 2 and all(alive(pid) for pid in pids), first.stderr.read()
        if end == "kill -9":
            first.kill()
        said = first.stderr.read()
    assert first.returncode == (-9 if end == "kill -9" else 0)
    assert said == ""
    assert_all_end(pids)


@pytest.mark.parametrize("end", ["a stage dies", "SIGTERM"])
def test_the_server_ends_with_its_stages(folder: Path, tmp_path: Path, end: str) -> None:
    command = [sys.executable, "-m", "kiloq.cli", "serve", str(folder), "--stages", "2", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(tmp_path)) as server:
        assert server.stderr is not None
        said = ""
        while "ready" not in said:
            line = server.stderr.readline()
            assert line, said
            said += line
        assert "torch, 2 stages" in said
        children = Path(f"/proc/{server.pid}/task").glob("*/children")
        pids = [int(pid) for file in children for pid in file.read_text().split()]
        assert len(pids) == 1
        if end == "SIGTERM":
            server.terminate()
        else:
            os.kill(pids[0], signal.SIGKILL)
        said = server.stderr.read()
    assert server.returncode == (0 if end == "SIGTERM" else 1)
    if end != "SIGTERM":
        assert re.search(r"^(Error|kiloq): stage 2 of 2 \(layers 2 to 3\) has ended \(SIGKILL", said, re.MULTILINE), (
            said
        )
    assert_all_end(pids)
