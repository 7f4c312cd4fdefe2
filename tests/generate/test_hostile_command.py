"""The command line in bad surroundings: full disks, pipes as files, names with control characters, Ctrl-C while it loads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command_line import ECHO, environment, run

FULL = "make room, or write to another place"


def full_device() -> str:
    if not Path("/dev/full").is_char_device():
        pytest.skip("/dev/full is not here")
    return "/dev/full"


@pytest.mark.parametrize(
    "arguments", [["generate", "echo", "hi"], ["generate", "echo", "hi", "--json"], ["chat", "echo"]]
)
def test_stdout_on_a_full_disk_is_one_sentence_and_a_failure(arguments: list[str], tmp_path: Path) -> None:
    with Path(full_device()).open("w") as full:
        done = subprocess.run(
            [*ECHO, *arguments], input=b"a\nb\nc\n", stdout=full, stderr=subprocess.PIPE, env=environment(tmp_path),
            timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr.decode()) == (1, f"kiloq: No space left on device: {FULL}\n")


def test_a_batch_whose_disk_gets_full_says_where_its_answers_are(tmp_path: Path) -> None:
    prompts, out = tmp_path / "p.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "x"}\n' * 50)
    limited = [ECHO[0], "-c", "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500)); "
               "sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv[0].rpartition('/')[0]); "
               "runpy.run_path(sys.argv[0], run_name='__main__')", ECHO[1]]  # fmt: skip
    done = run(["generate", "echo", "--batch", str(prompts), "--out", str(out)], tmp_path, program=limited)
    assert done.stderr.splitlines() == [
        f"kiloq: stopped early: the answers so far are in {out}.partial",
        f"kiloq: File too large: {FULL}",
    ]
    assert done.returncode == 1
    assert not out.exists()
    assert json.loads(Path(f"{out}.partial").read_text().splitlines()[0])["text"] == "echo: x"


def test_batch_takes_and_fills_pipes(tmp_path: Path) -> None:
    """As with `--batch <(...)`, and `--out /dev/null`, which must still be a device afterwards."""
    source, sink = tmp_path / "in", tmp_path / "out"
    os.mkfifo(source)
    os.mkfifo(sink)
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: source.write_text('{"prompt": "x"}\n'), daemon=True),
        threading.Thread(target=lambda: found.append(sink.read_text()), daemon=True),
    ]
    for thread in threads:
        thread.start()
    done = run(["generate", "echo", "--batch", str(source), "--out", str(sink)], tmp_path)
    for thread in threads:
        thread.join(10)
    assert (done.stderr, done.returncode) == ("", 0)
    assert json.loads(found[0])["text"] == "echo: x"
    assert source.is_fifo()
    assert sink.is_fifo()


@pytest.mark.parametrize(
    ("option", "sentence"), [("--batch", "is a folder: --batch takes"), ("--out", "is a folder or")]
)
def test_a_folder_is_no_batch_file(option: str, sentence: str, tmp_path: Path) -> None:
    files = {"--batch": tmp_path / "p.jsonl", "--out": tmp_path / "o.jsonl"} | {option: tmp_path}
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n')
    done = run(["generate", "echo", *(str(part) for pair in files.items() for part in pair)], tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_control_characters_in_a_name_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    done = run(["generate", "a\nb\x1b[31m", "x"], tmp_path)
    assert done.stderr.startswith(r"kiloq: a\nb\x1b[31m: ")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_while_the_command_starts_says_nothing(tmp_path: Path) -> None:
    """The signal comes while `kiloq.cli` is being imported."""
    program = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from kiloq.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env=environment(tmp_path), timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_the_package_can_be_run_as_a_module(tmp_path: Path) -> None:
    done = run(["--version"], tmp_path, program=[sys.executable, "-m", "kiloq"])
    assert done.stdout.startswith("kiloq ")
