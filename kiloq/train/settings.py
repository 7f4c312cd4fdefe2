"""The recipe of `kiloq train`: one frozen dataclass for each part, the paper's values as defaults.

Qwen technical report, section 2.4 (AdamW, cosine to a tenth, 4 M tokens a step, clipping at 1) and the repository's
own notes, which give an epsilon of 1e-6, 2,000 steps of warm-up and weight decay 0.1 where the report has 1e-8 for the
epsilon and names neither of the others. Both stand in ADAM_PRESETS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kiloq.core.errors import UsageError
from kiloq.core.recipe import field_values, from_table, nearest, read_toml, set_values
from kiloq.model.config import SERIES, ModelConfig

ADAM_PRESETS = {"seed": 1e-6, "report": 1e-8}  # epsilon: the original's notes, and the report, section 2.4
PRECISIONS = ("bf16", "fp32")
CHECKPOINTING = ("none", "selective", "full")
ENGINES = ("torch", "deepspeed")
SCHEDULES = ("1f1b", "interleaved", "gpipe")
PATHS = ("data", "evaluation", "mix", "start")  # fields of a recipe that name files


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW (Loshchilov and Hutter 2019) with warm-up and a cosine, and what keeps steps sane."""

    peak_rate: float = 3e-4  # report, section 2.4
    final_share: float = 0.1  # of the peak, where the cosine ends; report, section 2.4
    warmup_steps: int = 2_000  # the original's notes
    beta1: float = 0.9  # report, section 2.4
    beta2: float = 0.95  # report, section 2.4
    adam: str = "seed"  # which epsilon: one of ADAM_PRESETS
    weight_decay: float = 0.1  # of matrices; norms and biases have none. The original's notes
    clip: float = 1.0  # largest norm of the whole gradient; report, section 2.4
    z_loss: float = 0.0  # weight of log(Z)^2, which keeps logits small; PaLM (Chowdhery et al. 2022), section 5: 1e-4

    def __post_init__(self) -> None:
        if self.adam not in ADAM_PRESETS:
            raise UsageError(f"optimizer: adam is {self.adam!r:.40}: choose one of {', '.join(ADAM_PRESETS)}")
        for name in ("peak_rate", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"optimizer: {name} is {getattr(self, name)}: give a number above 0")
        for name in ("final_share", "beta1", "beta2"):
            if not 0 <= getattr(self, name) <= 1 or (name != "final_share" and getattr(self, name) == 1):
                raise UsageError(f"optimizer: {name} is {getattr(self, name)}: give a number from 0 to below 1")
        for name in ("warmup_steps", "weight_decay", "z_loss"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"optimizer: {name} is {getattr(self, name)}: give 0 or more")

    @property
    def epsilon(self) -> float:
        return ADAM_PRESETS[self.adam]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The network: one of the series by name, or its sizes; what is left out is as in Qwen-1.8B but for the sizes."""

    like: str | None = None  # a name of kiloq.model.config.SERIES
    hidden_size: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None  # None: as many as heads
    head_dim: int | None = None  # None: hidden_size / num_heads
    ffn_size: int | None = None  # the width of SwiGLU
    tied_embeddings: bool = False
    rope_base: float = 10_000.0

    def config(self, vocab_size: int, sequence: int) -> ModelConfig:
        """The network for a vocabulary. Raises UsageError for sizes that are missing or do not fit."""
        sizes = {
            name: value
            for name in ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "ffn_size")
            if (value := getattr(self, name)) is not None
        }
        if self.like is not None:
            if self.like not in SERIES:
                raise UsageError(f"model: like is {self.like!r:.40}: {nearest(self.like, SERIES)}")
            return SERIES[self.like].replace(**sizes, train_length=sequence)
        if missing := [name for name in ("hidden_size", "num_layers", "num_heads", "ffn_size") if name not in sizes]:
            raise UsageError(f"model: lacks {', '.join(missing)}: give them, or like = one of {', '.join(SERIES)}")
        return ModelConfig(
            vocab_size=vocab_size, train_length=sequence, tied_embeddings=self.tied_embeddings,
            rope_base=self.rope_base, dynamic_ntk=True, logn=True, **sizes,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How the processes of a run share its work: four numbers, and what is left of the processes holds copies."""

    shard: int = 1  # processes that hold a part of the weights, gradients and moments each (FSDP2)
    tensor: int = 1  # processes that share every matrix, and the sequence between matrices
    pipeline: int = 1  # groups of layers, one after the other
    context: int = 1  # processes that share the tokens of a sequence (ring attention)
    schedule: str = "1f1b"  # of the pipeline: one of SCHEDULES
    engine: str = "torch"  # or deepspeed, which replaces `shard` by what its own JSON says
    deepspeed: str | None = None  # that JSON file; None: ZeRO stage 2

    def __post_init__(self) -> None:
        for name, allowed in (("schedule", SCHEDULES), ("engine", ENGINES)):
            if getattr(self, name) not in allowed:
                raise UsageError(f"parallel: {name} is {getattr(self, name)!r:.40}: choose one of {', '.join(allowed)}")
        for name in ("shard", "tensor", "pipeline", "context"):
            if getattr(self, name) < 1:
                raise UsageError(f"parallel: {name} is {getattr(self, name)}: give 1 or more")

    @property
    def processes(self) -> int:
        """The fewest that a run needs; any multiple holds copies."""
        return self.shard * self.tensor * self.pipeline * self.context


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run of `kiloq train`."""

    name: str = "model"
    seed: int = 0  # of the first weights and of the order of the data
    data: str | None = None  # a folder that `kiloq tokenize corpus` wrote
    evaluation: str | None = None  # another such folder; None: documents are held out
    held_out: int = 100  # without `evaluation`: of each source one document of so many is not learned from. Ours
    mix: str | None = None  # mix.json of `kiloq prepare`: how much of each source; None: as much as there is
    tokenizer: str | None = None  # the vocabulary of the corpus, put into the model's folder; None: ids only
    start: str | None = None  # a model folder to go on from; None: random weights

    steps: int = 1_000
    sequence: int = 2_048  # tokens; report, section 2.4
    batch: int = 2_048  # sequences a step over all processes: 4 M tokens; report, section 2.4
    micro_batch: int | None = None  # sequences in one forward pass of a process; None: all of its share
    block_diagonal: bool = False  # tokens do not see other documents of their sequence; the original's do
    precision: str = "bf16"  # of matrix products; weights, gradients and sums stay float32
    checkpointing: str = "none"  # activations computed again in the backward pass: none, selective (feed-forward), full
    compile: bool = False  # torch.compile of the layers
    loss_chunk: int = 1_024  # tokens whose logits are held at a time. Ours: 0.6 GB at 151,936 rows

    evaluate_every: int = 200  # steps
    evaluate_sequences: int = 64  # about; each source has one where it can
    save_every: int = 200  # steps
    keep: int = 2  # checkpoints, the newest
    samples: tuple[str, ...] = ()  # prompts that are continued after every evaluation; one process, with `tokenizer`
    max_bad_steps: int = 5  # in a row that could not be taken; then back to the last checkpoint, past their data
    spikes: float | None = None  # a loss or norm so many standard deviations above the last 128 is not taken; OLMo 2: 6
    hang_minutes: float = 30  # without a step until a process says where it is and ends; ours
    tensorboard: bool = False  # also write events for TensorBoard into the folder

    model: Shape = field(default_factory=Shape)
    optimizer: Optimizer = field(default_factory=Optimizer)
    parallel: Parallel = field(default_factory=Parallel)

    def __post_init__(self) -> None:
        for name, allowed in (("precision", PRECISIONS), ("checkpointing", CHECKPOINTING)):
            if getattr(self, name) not in allowed:
                raise UsageError(f"recipe: {name} is {getattr(self, name)!r:.40}: choose one of {', '.join(allowed)}")
        least = {"steps": 1, "sequence": 2, "batch": 1, "micro_batch": 1, "loss_chunk": 1, "evaluate_every": 1,
                 "evaluate_sequences": 1, "save_every": 1, "keep": 1, "max_bad_steps": 1, "seed": 0, "held_out": 2}  # fmt: skip
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"recipe: {name} is {value}: give {low} or more")
        for name in ("spikes", "hang_minutes"):
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf"):
                raise UsageError(f"recipe: {name} is {value}: give a number above 0")

    def resolved(self) -> dict[str, Any]:
        """All fields as JSON-able values."""
        return asdict(self)


def read_recipe(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, changed by `--set` values; paths are relative to the file."""
    tables = set_values(read_toml(path), settings)
    tables.setdefault("name", path.stem)
    return from_tables(tables, path.parent.absolute())


def from_tables(tables: Mapping[str, Any], base: Path) -> Recipe:
    """A Recipe from its tables. Raises UsageError for what is unknown or of another type."""
    parts: dict[str, Any] = {"model": Shape, "optimizer": Optimizer, "parallel": Parallel}
    values = field_values(Recipe, {key: value for key, value in tables.items() if key not in parts}, "recipe")
    for name in PATHS:
        if values.get(name) is not None:
            values[name] = str(base / values[name])
    for name, kind in parts.items():
        table = tables.get(name, {})
        if not isinstance(table, Mapping):
            raise UsageError(f"recipe: {name} is {table!r:.40}: a table [{name}] was expected")
        values[name] = from_table(kind, table, name)
    return Recipe(**values)
