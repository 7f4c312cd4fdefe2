"""Threads, signals, processes and instruction sets: what a model lives through beside its arithmetic."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from kernels_build import SOURCES
from oracles.native_models import native_backend, random_source, run, some_ids
from oracles.qwen1_golden import golden
from support import shared

from kiloq import native
from kiloq.generate.engine import Engine
from kiloq.generate.params import SamplingParams
from kiloq.model.config import ModelConfig

module = pytest.importorskip(
    "kiloq.native._native", reason="the native engine is not built: install kiloq where a C++ compiler is"
)

CONFIG = ModelConfig(vocab_size=60, hidden_size=64, num_layers=3, num_heads=4, ffn_size=96, train_length=8192)


def python(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh process, without PyTorch unless the script imports it."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, timeout=100, check=False
    )


def test_two_models_in_two_threads() -> None:
    """Each step takes the team for itself; answers are those of each model alone. Teams of other sizes take turns too."""
    backends = [native_backend(random_source(CONFIG, seed=at), threads=threads) for at, threads in enumerate((2, 2, 3))]
    ids = some_ids(CONFIG, 120)
    want = [backend.logits(ids) for backend in backends]
    wrong: list[int] = []

    def work(at: int) -> None:
        backend = backends[at]
        for _ in range(4):
            sequence = backend.open()
            pieces = [run(backend, (sequence, ids[:90]))[0]]
            pieces += [run(backend, (sequence, [token]))[0] for token in ids[90:]]
            if not np.array_equal(np.concatenate(pieces), want[at]):
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(at,)) for at in (0, 1, 2, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert not wrong


def test_one_engine_for_many_threads() -> None:
    """Eight threads submit to one engine and drive it together: each gets the answer that it gets alone."""
    backend = native_backend(random_source(CONFIG))
    params = SamplingParams(seed=3, max_new_tokens=25, ignore_eos=True)
    prompts = [some_ids(CONFIG, 5 + 9 * at, seed=at) for at in range(8)]

    def answer(engine: Engine, prompt: list[int]) -> tuple[int, ...]:
        request = engine.submit(prompt, params)
        engine.finish(request)
        return request.answers[0].completion.ids

    alone = [answer(Engine(backend, None, ()), prompt) for prompt in prompts]
    engine, got = Engine(backend, None, ()), {}
    threads = [threading.Thread(target=lambda at=at: got.update({at: answer(engine, prompts[at])})) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert [got.get(at) for at in range(8)] == alone


def test_the_engine_is_asleep_between_steps() -> None:
    """Workers spin for less than a millisecond behind a step and then sleep: 0.3 s of idling cost next to nothing."""
    backend = native_backend(random_source(CONFIG), threads=3)
    backend.logits([1, 2, 3])
    time.sleep(0.02)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.03


BIG = """
import os, signal, threading, time
import numpy as np
from kiloq.generate import native_load
from kiloq import native
from kiloq.generate.engine import Engine
from kiloq.generate.native_backend import NativeBackend
from kiloq.generate.params import SamplingParams
from kiloq.model.config import ModelConfig
from kiloq.model.shapes import tensor_shapes
config = ModelConfig(vocab_size=50, hidden_size=512, num_layers=12, num_heads=8, ffn_size=2048, train_length=1 << 16)
class Source:
    quantised, warnings = False, []
    def __init__(self): self.config = config; self.shapes = tensor_shapes(config)
    def names(self): return list(self.shapes)
    def shape(self, name): return self.shapes[name]
    def dtype_of(self, name): return "fp32"
    def tensor(self, name): return np.full(self.shapes[name], 0.001, np.float32)
    def rows(self, name, begin, end): return self.tensor(name)[begin:end]
    def integers(self, name, rows=None): return None
    def block_type(self, name): return None
    def release_pages(self): pass
    def warn_of_broken(self, names): assert not names
source = Source()
decoder = native_load.decoder(native.engine(), source, native_load.slots(source, "int8"), kv="bf16", threads=2,
                              cache_bytes=1 << 32, tell=lambda share: None)
backend = NativeBackend(decoder, config, dtype="int8", kv="bf16", threads=2)
"""
INTERRUPT = """
want = backend.logits([1, 2, 3])
sequence = backend.open()
begin = time.perf_counter()
sent = []
def send():
    time.sleep(0.15)
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=send).start()
try:
    backend._run([(sequence, [1] * 60_000, 1.0, 0, None)])
except KeyboardInterrupt:
    print(f"{time.perf_counter() - sent[0]:.3f} {sequence.length} {decoder.cache_blocks[0]}")
again = backend._run([(sequence, [1, 2, 3], 1.0, 3, None)])[0]
assert np.array_equal(again, want)
engine = Engine(backend, None, ())
request = engine.submit([1, 2, 3], SamplingParams(max_new_tokens=3, temperature=0, ignore_eos=True))
engine.finish(request)
assert len(request.answers[0].completion.ids) == 3
"""


def test_ctrl_c_returns_at_once_and_leaves_the_model_usable() -> None:
    """A real signal in the middle of a prompt that would take minutes; the sequence is as it was before the call."""
    done = python(BIG + INTERRUPT)
    assert done.returncode == 0, done.stderr
    seconds, length, blocks = done.stdout.split()
    assert float(seconds) < 1.0  # a layer's piece takes milliseconds; a busy machine is slower
    assert (length, blocks) == ("0", "0")


DAEMON = """
import atexit, os, sys, threading, time
late = atexit.register(lambda: print(model.generate([1, 2, 3], max_new_tokens=2, temperature=0).finish_reason))
import kiloq
model = kiloq.load(sys.argv[1], engine="native")
def work():
    while True:
        model.logits(list(range(200)))
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
if hasattr(os, "fork"):
    pid = os.fork()
    if pid == 0:
        atexit.unregister(late)
        sys.exit(5)  # with Python's whole ceremony, though threads were busy at the fork
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
"""


def test_a_process_may_end_in_the_middle_of_a_step() -> None:
    """Daemon threads that step for ever: the exit is clean, and what runs at exit may still use the model."""
    done = python(DAEMON, str(shared("goldens", "model", "m18b")))
    assert (done.returncode, done.stdout, done.stderr) == (0, "length\n", "")


FORK = """
import os, sys, json, kiloq
def child(work):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            told = str(work())
        except BaseException as error:
            told = type(error).__name__ + ": " + str(error)
        os.write(write, told.encode())
        os._exit(0)
    os.close(write)
    told = os.fdopen(read).read()
    os.waitpid(pid, 0)
    return told
load = lambda: kiloq.load(sys.argv[1], engine="native")
model = load()
answer = lambda m: m.generate([1, 2, 3], max_new_tokens=4, temperature=0).ids
want = answer(model)
used = child(lambda: answer(model))
loaded = child(lambda: answer(load()) == want)
print(json.dumps([used, loaded, answer(model) == want]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_says_so_and_can_load_its_own() -> None:
    done = python(FORK, str(shared("goldens", "model", "m18b")))
    assert done.returncode == 0, done.stderr
    used, loaded, still = json.loads(done.stdout)
    assert used.startswith("UsageError: the model was loaded by process ") and "load the model in each process" in used
    assert (loaded, still) == ("True", True)


def test_a_wrong_instruction_set_is_one_sentence() -> None:
    done = python(
        "import runpy; runpy.run_module('kiloq', run_name='__main__')",
        "generate",
        str(shared("goldens", "model", "m18b")),
        "x",
        KILOQ_CPU="mmx",
    )
    assert done.returncode == 2
    assert "KILOQ_CPU is 'mmx': this machine runs " in done.stderr
    assert "portable" in done.stderr
    assert "Traceback" not in done.stderr


PATHS = """
import sys, numpy as np, kiloq
from kiloq.generate.native_backend import NativeBackend
folder, out, isa = sys.argv[1:]
assert kiloq.native.engine().chosen_path() == isa
ids = np.load(out + "/ids.npy").tolist()
results = {}
for weights, kv in (("fp32", "fp32"), ("bf16", "bf16"), ("int8", "int8"), ("int4", "bf16")):
    model = kiloq.load(folder, weights=weights, kv=kv, engine="native", threads=1)
    backend = model.engine.backend
    got = results[weights] = backend.logits(ids)
    sequence, other = backend.open(), backend.open()
    alpha = 15.0
    cut = [1, 32, 7, 100, 25, 99]
    parts, at = [], 0
    for size in cut:
        rows = [(other, [3] * (size % 3 + 1), 1.0, 0, None), (sequence, ids[at : at + size], alpha, size, None)]
        parts.append(backend._run(rows)[0])
        at += size
    parts += [backend._run([(sequence, [token], alpha, 1, None)])[0] for token in ids[at:]]
    assert np.array_equal(np.concatenate(parts), got), (weights, kv)
assert "torch" not in sys.modules
np.savez(out + "/" + isa, **results)
"""


@pytest.mark.parametrize("isa", module.runnable_paths())
def test_every_instruction_set(isa: str, tmp_path: Path) -> None:
    """Forced in a process of its own: the reference's logits (fp32), the same ones however the prompt is cut and whatever
    runs beside it (all precisions), and the chosen path's within rounding; PyTorch is not even imported."""
    _, tensors = golden("m18b")
    ids = tensors["long.input_ids"][0, :265].numpy()
    np.save(tmp_path / "ids.npy", ids)
    done = python(PATHS, str(shared("goldens", "model", "m18b")), str(tmp_path), isa, KILOQ_CPU=isa)
    assert done.returncode == 0, done.stderr
    got = np.load(tmp_path / f"{isa}.npz")
    at = tensors["long.265.positions"].long()
    want = tensors["long.265.logits"][0].numpy()
    np.testing.assert_allclose(got["fp32"][at], want, atol=2e-5)
    for weights, most in (("bf16", 0.01), ("int8", 0.035), ("int4", 0.3)):  # as in test_goldens.py
        assert np.abs(got[weights][at] - want).mean() < most * want.std()


def test_an_unusable_choice_is_told_once_asked_for() -> None:
    """`import kiloq` works with a wrong KILOQ_CPU; only the engine refuses."""
    done = python(
        "import kiloq; from kiloq import native\ntry: native.engine()\nexcept kiloq.KiloqError as e: print(e)",
        KILOQ_CPU="mmx",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and ", ".join(module.runnable_paths()) in done.stdout
    assert native.engine() is not None


@pytest.mark.timeout(300)  # compiles: 3 seconds on an idle core
def test_the_team_of_threads(tmp_path: Path) -> None:
    """threads_check.cpp: stages of every form, and numbers of stages that come round after 200,000 tokens."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler is here: install g++ to check the threads")
    files = [Path(__file__).with_name("threads_check.cpp"), SOURCES / "threads.cpp"]
    build = [compiler, "-std=c++20", "-O2", "-pthread", f"-I{SOURCES}", *map(str, files), "-o", str(tmp_path / "check")]
    subprocess.run(build, check=True)
    done = subprocess.run([str(tmp_path / "check")], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (0, "0 failures\n")


def test_ctrl_c_between_taking_the_lock_and_knowing_it_leaves_it_free() -> None:
    """A signal's handler runs right behind a call: here, behind the one that took the lock."""
    engine = Engine(native_backend(random_source(CONFIG)), None, ())
    lock = engine._lock

    class Interrupted:
        def __enter__(self) -> None:
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

        def acquire(self, timeout: float) -> bool:
            lock.acquire(timeout=timeout)
            raise KeyboardInterrupt

        release = staticmethod(lock.release)

    engine._lock = Interrupted()
    request = engine.submit([1, 2, 3], SamplingParams(max_new_tokens=2))
    with pytest.raises(KeyboardInterrupt):
        engine.finish(request)
    free: list[bool] = []
    other = threading.Thread(target=lambda: free.append(lock.acquire(blocking=False)))
    other.start()
    other.join()
    assert free == [True]
