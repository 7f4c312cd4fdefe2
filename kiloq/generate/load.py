"""`load`: from a name, a folder or a GGUF file to a `Model` that answers.

On a CPU the native engine runs it, without PyTorch; on a GPU, for fp16, and where the native engine could not be
built, PyTorch does. There weights are mapped from the file where their type is kept; where it changes, one tensor at a
time is converted, so the peak is the model's own size plus its largest tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kiloq import native
from kiloq.convert.assets import resolve
from kiloq.convert.generation import GenerationDefaults
from kiloq.convert.source import ModelSource, open_model
from kiloq.core import machine
from kiloq.core.errors import MissingError, UsageError
from kiloq.generate import native_load
from kiloq.generate.backend import Backend
from kiloq.generate.engine import Limits
from kiloq.generate.model import Model
from kiloq.generate.native_backend import NativeBackend
from kiloq.generate.params import SamplingParams
from kiloq.generate.stage_plan import StagePlan
from kiloq.model.flops import weight_bytes
from kiloq.tokenize.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

WEIGHTS = ("auto", "fp32", "bf16", "fp16", "int8", "int4")
CACHES = ("auto", "fp32", "bf16", "fp16", "int8")
ENGINES = ("auto", "native", "torch")
GPU_NODES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, and either under WSL
CACHE_LIMIT_BYTES = 1 << 40  # of address space: the engine's context limit comes first
MEMORY_SHARE = 0.6  # of what is free; ours: the rest is for the cache, activations and everyone else

Progress = Callable[[str], None]


def load(
    name_or_path: str | Path,
    *,
    weights: str = "auto",
    kv: str = "auto",
    device: str = "auto",
    engine: str = "auto",
    threads: int = 0,
    packed: str | Path | None = None,
    stages: int | StagePlan = 1,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Model:
    """Opens a model for generation.

    name_or_path: a name of `kiloq get`, a model folder (Qwen-1, Qwen1.5 to dense Qwen3, LLaMA-shaped, GPTQ or not) or
        a .gguf file.
    weights: precision of the weights, fp32, bf16, int8 or int4 (groups of 32), or fp16 on a GPU; auto keeps what the
        file has: its integers as they are (other quantised types become int8), its floats (fp16 becomes fp32 on a CPU).
    kv: precision of the key/value cache, fp32, bf16 or int8; auto is fp32 for fp32 weights and bf16 for all others.
    device: cpu, or a torch device such as cuda:0; auto takes a GPU where there is one.
    engine: native (CPU) or torch; auto takes the native one where it can run the model.
    threads: of the native engine; 0: as many as the process may use.
    packed: a file for the native engine's packed weights: written at the first load and mapped at the next ones, which
        then start at once and share its memory; written again when the model's files or `weights` change.
    stages: processes that PyTorch splits the layers over; on GPUs each has one of its own.
    limits: of the engine's queue and cache, for servers.
    progress: called with one line for each step.
    Raises MissingError, FormatError or UsageError with one sentence.
    """
    say = progress or (lambda line: None)
    plan = stages if isinstance(stages, StagePlan) else StagePlan(stages)
    _check_options(weights, kv, engine, threads, plan)
    if not isinstance(name_or_path, (str, Path)) or not str(name_or_path):
        raise UsageError(f"the model is {name_or_path!r:.60}: give a name such as smollm2, a folder or a .gguf file")
    path = resolve(name_or_path)
    say("reading the files")
    source = open_model(path)
    tokenizer = None
    if source.tokenizer_path is not None:
        say("reading the tokenizer")
        tokenizer = Tokenizer.load(source.tokenizer_path)
    module = _native_engine(source, weights, kv, device, engine if plan.count == 1 else "torch")
    if module is not None:
        backend: Backend = _native_backend(module, source, weights, kv, threads, Path(packed) if packed else None, say)
    elif packed:
        raise UsageError("packed weights are the native engine's, and PyTorch runs here: leave packed out")
    else:
        backend = _torch_backend(source, weights, kv, device, plan, say)
    return Model(
        backend,
        tokenizer,
        name=str(name_or_path),
        defaults=_defaults(source.generation, tokenizer),
        eos_ids=_end_ids(source, tokenizer),
        warnings=source.warnings,
        limits=limits,
        react=source.kind == "qwen1",
    )


def _check_options(weights: str, kv: str, engine: str, threads: int, plan: StagePlan) -> None:
    for option, value, choices in (("weights", weights, WEIGHTS), ("kv", kv, CACHES), ("engine", engine, ENGINES)):
        if value not in choices:
            raise UsageError(f"{option} is {value!r:.60}: it must be one of {', '.join(choices)}")
    if type(threads) is not int or not 0 <= threads <= machine.allowed_cores():
        raise UsageError(f"threads is {threads!r:.60}: it must be a whole number from 0 to {machine.allowed_cores()}, the cores that this process may use")  # fmt: skip
    plan.check_engine(engine)


def _native_engine(source: ModelSource, weights: str, kv: str, device: str, engine: str) -> Any | None:
    """The native engine's module where it is to run the model; None where PyTorch is."""
    needs_torch = "fp16" in (weights, kv) or device not in ("auto", "cpu") or (device == "auto" and _gpu_in_use())
    if engine == "torch" or (engine == "auto" and needs_torch):
        return None
    if needs_torch and device != "auto":
        raise UsageError(
            f"the native engine runs on the CPU without fp16 (device {device}, weights {weights}, kv {kv}): leave engine out"
        )
    module = native.engine()
    if module is None:
        if engine == "native":
            raise MissingError(native.MISSING)
        source.warnings.append(native.MISSING)
    elif source.config.head_dim > native.MAX_HEAD_SIZE:
        if engine == "native":
            raise UsageError(
                f"head_dim {source.config.head_dim} is beyond the native engine's {native.MAX_HEAD_SIZE}: leave engine out"
            )
        return None
    return module


def _gpu_in_use() -> bool:
    """Whether PyTorch sees a GPU; it is not even imported on a machine without one."""
    if not any(Path(node).exists() for node in GPU_NODES):
        return False
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def _native_backend(
    module: Any, source: ModelSource, weights: str, kv: str, threads: int, packed: Path | None, say: Progress
) -> NativeBackend:
    plan = native_load.slots(source, weights)
    main = plan["layers.0.mlp.down_proj.weight"].format
    cache = kv if kv != "auto" else "fp32" if main == "fp32" else "bf16"
    threads = threads or machine.usable_cores()
    say(f"packing the weights as {main}")
    decoder = native_load.decoder(
        module, source, plan, kv=cache, threads=threads, cache_bytes=CACHE_LIMIT_BYTES,
        tell=lambda share: say(f"packing the weights as {main}: {share:.0%}"), keep=packed,
    )  # fmt: skip
    return NativeBackend(decoder, source.config, dtype=main, kv=cache, threads=threads)


def _torch_backend(source: ModelSource, weights: str, kv: str, device: str, plan: StagePlan, say: Progress) -> Backend:
    try:
        import torch
    except ImportError:
        raise MissingError("PyTorch is not installed: run `pip install 'kiloq[train]'` to get it") from None
    from kiloq.generate.torch_backend import TorchBackend
    from kiloq.model.network import Network

    if weights in ("int8", "int4") or kv == "int8":
        raise UsageError(
            f"weights {weights} with kv {kv} needs the native engine, and PyTorch runs here: choose fp32, bf16 or fp16"
        )
    place = _device(device)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    chosen = weights if weights != "auto" else _auto_dtype(source, place.type)
    say(f"loading the weights as {chosen}")
    if plan.count > 1:
        from kiloq.generate.stages import StagedBackend

        places = plan.places(str(place), torch.cuda.device_count())
        return StagedBackend(source, plan, places, chosen, kv if kv != "auto" else chosen, say)
    with torch.device("meta"):
        network = Network(source.config)
    names = {name: name for name in source.names()}
    state, broken = read_state(
        source, names, place, dtypes[chosen], lambda share: say(f"loading the weights as {chosen}: {share:.0%}")
    )
    source.warn_of_broken(broken)
    network.load_state_dict(state, assign=True)
    network.requires_grad_(False)
    return TorchBackend(network, cache_dtype=dtypes.get(kv))


def read_state(
    source: ModelSource,
    names: Mapping[str, str],
    place: torch.device,
    dtype: torch.dtype,
    tell: Callable[[float], None],
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """(tensors by the names of parameters, of the source's names for them; the latter that hold NaN or infinity)."""
    state, broken = {}, []
    for at, (name, stored) in enumerate(names.items()):
        tensor = as_torch(source.tensor(stored)).to(device=place, dtype=dtype)
        if not _finite(tensor):
            broken.append(stored)
        state[name] = tensor
        tell((at + 1) / len(names))
    return state, broken


def as_torch(array: Any) -> torch.Tensor:
    """A NumPy array (bfloat16 of ml_dtypes included) as a tensor over the same memory."""
    import torch

    array = np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _finite(tensor: torch.Tensor) -> bool:
    low, high = tensor.aminmax()
    return bool(low.isfinite() and high.isfinite())


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(name)
        torch.zeros(1, device=place).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError, NotImplementedError, TypeError):
        raise UsageError(f"device {name!r:.60} is not usable here: try cpu, or see `kiloq doctor`") from None
    return place


def _auto_dtype(source: ModelSource, device: str) -> str:
    """The stored precision, except where the device cannot compute in it or it would not fit."""
    stored = "fp32" if source.dtype == "fp16" and device == "cpu" else source.dtype
    room = (machine.memory()[1] or 0) * MEMORY_SHARE
    converted = source.quantised or stored != source.dtype
    if stored == "fp32" and converted and device == "cpu" and 0 < room < weight_bytes(source.config, "fp32"):
        source.warnings.append(
            f"{source.path}: loaded as bf16, because fp32 needs {weight_bytes(source.config, 'fp32') / 2**30:.1f} GiB "
            f"and {room / 2**30:.1f} GiB are free for it (--weights fp32 insists)"
        )
        return "bf16"
    return stored


def _defaults(generation: GenerationDefaults, tokenizer: Tokenizer | None) -> SamplingParams:
    """The model's own sampling defaults over ours; end sequences of several tokens become stop strings."""
    g = generation
    given = {
        "temperature": 0.0 if g.do_sample is False else g.temperature,
        "top_p": g.top_p,
        "top_k": g.top_k,
        "repetition_penalty": g.repetition_penalty,
        "max_new_tokens": g.max_new_tokens,
    }
    stops = tuple(tokenizer.decode(list(ids)) for ids in g.stop_ids if len(ids) > 1) if tokenizer else ()
    return SamplingParams().override(stop=stops, **{key: value for key, value in given.items() if value is not None})


def _end_ids(source: ModelSource, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """Every token that ends an answer: what the model's files say, and the tokenizer's end-of-turn tokens."""
    ends = [*source.generation.eos_ids, *(ids[0] for ids in source.generation.stop_ids if len(ids) == 1)]
    ends += tokenizer.eos_ids if tokenizer is not None else ()
    return tuple(dict.fromkeys(end for end in ends if 0 <= end < source.config.vocab_size))
