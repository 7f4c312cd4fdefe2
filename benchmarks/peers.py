"""The engines that are compared, kiloq among them, behind the same few methods.

llama.cpp is the native build of `build_llama_cpp.sh`, driven through `llama_shim.c` with ctypes; transformers is the
installed package in bfloat16. Token ids are random: no engine's speed depends on them. Neither kiloq nor a peer samples
here: a step ends when the logits are there.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

THREADS = 2
BATCH = 512  # tokens of a prompt given in one call: the longest that llama.cpp computes at once by default
SPARE = 128  # tokens of room behind a context, for the steps that are timed

Ids = NDArray[np.int32]


class Sequences(Protocol):
    """Sequences that have read their context."""

    def rewind(self) -> None:
        """Forgets what `step` added."""

    def step(self, ids: Ids) -> NDArray[np.float32]:
        """Appends one token to every sequence, in one call. Logits [V] of the first; all of them are computed."""


class Engine(Protocol):
    """One loaded model."""

    vocabulary: int

    def prompt(self, ids: Ids) -> None:
        """A new sequence reads at most BATCH tokens in one call, with the logits of the last."""

    def prepare(self, streams: int, context: int) -> Sequences:
        """`streams` sequences of `context` random tokens each."""


def random_ids(count: int, vocabulary: int) -> Ids:
    """Token ids, the same ones for the same arguments; below 40,000 so that small and large vocabularies share them."""
    return np.random.default_rng(count).integers(0, min(vocabulary, 40_000), count, np.int32)


def pieces(count: int, vocabulary: int) -> list[Ids]:
    """`random_ids` in pieces of at most BATCH."""
    ids = random_ids(count, vocabulary)
    return [ids[start : start + BATCH] for start in range(0, count, BATCH)]


class LlamaCpp:
    """See `Engine`."""

    def __init__(self, library: Path, model: Path, *, q8_cache: bool) -> None:
        self._shim = _load_shim(library)
        self._model = self._shim.shim_load(os.fsencode(model))
        if not self._model:
            raise SystemExit(f"llama.cpp does not load {model}")
        self._q8_cache = q8_cache
        self.vocabulary = int(self._shim.shim_vocabulary(self._model))
        self._prompts = _LlamaContext(self, streams=1, tokens=BATCH)

    def features(self) -> str:
        """The instruction sets that llama.cpp says it uses."""
        return str(self._shim.shim_features().decode())

    def prompt(self, ids: Ids) -> None:
        self._prompts.trim(0, 0)
        self._prompts.feed(0, ids)

    def prepare(self, streams: int, context: int) -> Sequences:
        if context > BATCH:
            assert streams == 1, "long contexts are measured one at a time"
            return _LlamaSequences(*self._filled(context))
        made = _LlamaContext(self, streams=streams, tokens=context + SPARE)
        for stream in range(streams):
            made.feed(stream, random_ids(context, self.vocabulary))
        return _LlamaSequences(made, streams, context)

    def _filled(self, context: int) -> tuple[_LlamaContext, int, int]:
        """(context, streams, position) of sequence 0 over `context` keys and values that the model computed.

        They are read by sequence 1 in pieces of BATCH that each start at position 0, which spares the quadratic
        prompt, and handed over. llama.cpp attends to every token of a sequence that is not later than the asking one,
        whatever its position, so a step costs what it costs after a prompt of that length.
        """
        made = _LlamaContext(self, streams=2, tokens=context + SPARE, shared=True)
        ids = random_ids(BATCH, self.vocabulary)
        for start in range(0, context, BATCH):
            made.feed(1, ids[: context - start])
            self._shim.shim_move(made.pointer, 1, 0)
        return made, 1, BATCH


class _LlamaContext:
    """A llama_context; `shared`: its sequences share one pool of `tokens` cells, else each has its own."""

    def __init__(self, engine: LlamaCpp, *, streams: int, tokens: int, shared: bool = False) -> None:
        self._shim, self._vocabulary = engine._shim, engine.vocabulary
        arguments = (engine._model, THREADS, tokens, streams, engine._q8_cache, shared)
        self.pointer = self._shim.shim_context(*arguments)
        if not self.pointer:
            raise SystemExit(f"llama.cpp refuses a context of {tokens} tokens for {streams} sequences")

    def feed(self, stream: int, ids: Ids) -> None:
        wanted = np.zeros(len(ids), np.int8)
        wanted[-1] = 1
        self.decode(ids, np.full(len(ids), stream, np.int32), wanted)

    def decode(self, ids: Ids, sequences: Ids, wanted: NDArray[np.int8]) -> None:
        ids = np.ascontiguousarray(ids, np.int32)
        at = [int(values.ctypes.data) for values in (ids, sequences, wanted)]
        error = self._shim.shim_decode(self.pointer, *at, len(ids))
        if error:
            raise RuntimeError(f"llama_decode returned {error}")

    def trim(self, stream: int, length: int) -> None:
        self._shim.shim_trim(self.pointer, stream, length)

    def logits(self) -> NDArray[np.float32]:
        return np.ctypeslib.as_array(self._shim.shim_logits(self.pointer, 0), (self._vocabulary,)).copy()


class _LlamaSequences:
    """See `Sequences`."""

    def __init__(self, context: _LlamaContext, streams: int, length: int) -> None:
        self._context, self._length = context, length
        self._streams = np.arange(streams, dtype=np.int32)
        self._wanted = np.ones(streams, np.int8)

    def rewind(self) -> None:
        for stream in self._streams:
            self._context.trim(int(stream), self._length)

    def step(self, ids: Ids) -> NDArray[np.float32]:
        self._context.decode(ids, self._streams, self._wanted)
        return self._context.logits()


def _load_shim(library: Path) -> Any:
    if not library.exists():
        raise SystemExit(f"{library} is not there: run benchmarks/build_llama_cpp.sh FOLDER and name FOLDER")
    shim, pointer, number, flag = ctypes.CDLL(str(library)), ctypes.c_void_p, ctypes.c_int, ctypes.c_bool
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "shim_features": (ctypes.c_char_p, []),
        "shim_load": (pointer, [ctypes.c_char_p]),
        "shim_vocabulary": (number, [pointer]),
        "shim_context": (pointer, [pointer, number, number, number, flag, flag]),
        "shim_decode": (number, [pointer, pointer, pointer, pointer, number]),
        "shim_logits": (ctypes.POINTER(ctypes.c_float), [pointer, number]),
        "shim_trim": (None, [pointer, number, number]),
        "shim_move": (None, [pointer, number, number]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(shim, name)
        function.restype, function.argtypes = result, arguments
    return shim


class Kiloq:
    """See `Engine`. Goes through the backend that every answer goes through, Python's share included."""

    def __init__(self, model: Path, *, kv: str) -> None:
        import kiloq

        self._backend = kiloq.load(model, weights="auto", kv=kv, threads=THREADS).engine.backend
        self.vocabulary = self._backend.config.vocab_size

    def features(self) -> str:
        """Which backend answers, and in which precision."""
        parts = (getattr(self._backend, name, None) for name in ("name", "dtype", "kv", "threads"))
        return " ".join(str(part) for part in parts if part is not None)

    def prompt(self, ids: Ids) -> None:
        self._read(ids, wanted=True)

    def prepare(self, streams: int, context: int) -> Sequences:
        return KiloqSequences(self._backend, [self._context(context) for _ in range(streams)])

    def _context(self, tokens: int) -> Any:
        sequence = None
        for ids in pieces(tokens, self.vocabulary):
            sequence = self._read(ids, sequence)
        return sequence

    def _read(self, ids: Ids, sequence: Any = None, wanted: bool = False) -> Any:
        from kiloq.generate.backend import Row

        sequence = self._backend.open() if sequence is None else sequence
        self._backend.step([Row(sequence, ids.tolist(), 1.0, int(wanted))])
        return sequence


class KiloqSequences:
    """See `Sequences`. Steps go to forks, so that rewinding is dropping them."""

    def __init__(self, backend: Any, origins: list[Any]) -> None:
        self._backend, self._origins = backend, origins
        self.rewind()

    def rewind(self) -> None:
        self._current = [self._backend.fork(sequence) for sequence in self._origins]

    def step(self, ids: Ids) -> NDArray[np.float32]:
        from kiloq.generate.backend import Row

        rows = [Row(sequence, [token], 1.0, 1) for sequence, token in zip(self._current, ids.tolist(), strict=True)]
        logits: NDArray[np.float32] = self._backend.step(rows)[0].logits_NV[-1]
        return logits


class Transformers:
    """See `Engine`."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(THREADS)
        self._network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self.vocabulary = int(self._network.config.vocab_size)

    def features(self) -> str:
        """Versions, precision and attention."""
        import torch
        import transformers

        attention = self._network.config._attn_implementation
        return f"transformers {transformers.__version__}, torch {torch.__version__}, bf16, {attention}"

    def prompt(self, ids: Ids) -> None:
        self.call(ids[None], None)

    def prepare(self, streams: int, context: int) -> Sequences:
        assert context <= BATCH, "transformers is measured at short contexts only"
        ids = np.tile(random_ids(context, self.vocabulary), (streams, 1))
        return _TransformersSequences(self, self.call(ids, None).past_key_values)

    def call(self, ids_BT: NDArray[Any], cache: Any) -> Any:
        """The network's output for new tokens, with the logits of the last."""
        import torch

        with torch.inference_mode():
            tokens = torch.from_numpy(ids_BT.astype(np.int64))
            return self._network(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)


class _TransformersSequences:
    """See `Sequences`."""

    def __init__(self, engine: Transformers, cache: Any) -> None:
        self._engine, self._cache, self._steps = engine, cache, 0

    def rewind(self) -> None:
        if self._steps:
            self._cache.crop(-self._steps)
        self._steps = 0

    def step(self, ids: Ids) -> NDArray[np.float32]:
        output = self._engine.call(ids[:, None], self._cache)
        self._steps += 1
        logits: NDArray[np.float32] = output.logits[0, -1].float().numpy()
        return logits
