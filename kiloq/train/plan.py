"""`kiloq train --dry-run`: parameters, operations, memory and time of a run, before a processor is asked for one.

All of it is arithmetic on the recipe, so it takes no PyTorch and no data: parameters and operations are counted
(`kiloq.model.flops`), memory follows what autograd keeps (`kiloq.train.memory`), time is operations over what the
devices of `kiloq.train.hardware` are assumed to reach. `check_layout` says whether so many processes can share the
run at all. Sources: Narayanan et al. 2021, sections 2.2 and 3, for pipelines; PaLM (Chowdhery et al. 2022), appendix B.

Symbols of the rule of thumb: N parameters that multiply, L layers, q width of all query heads, T tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kiloq.core.errors import UsageError
from kiloq.model.config import ModelConfig
from kiloq.model.flops import forward_flops, parameter_count, training_flops
from kiloq.train.hardware import Device
from kiloq.train.memory import Memory, Piece, memory
from kiloq.train.settings import Parallel, Recipe

PADDED_ROWS = 128  # the vocabulary is padded to a multiple of so many rows, as the original's
PARTS_A_STAGE = 2  # of an interleaved pipeline: groups of layers that a process has
LABELS = {
    "weights": "weights", "gradients": "gradients", "moments": "AdamW's moments", "copies": "bf16 copies of matrices",
    "gathered": "layers gathered", "activations": "activations kept", "working": "backward pass at work",
    "loss": "loss",
}  # fmt: skip
MUCH_IDLE = 0.2  # of a pipeline's time; ours, for the warning


@dataclass(frozen=True)
class Layout:
    """How the processes of a run share a step."""

    processes: int
    copies: int  # groups of processes that each hold the whole model
    sharing: str  # how each group does it, in words
    sequences: int  # of a step, for the processes that share layers, matrices and tokens
    micro_batch: int  # sequences in one forward pass
    passes: int  # forward passes of a process in a step
    tokens: int  # of a process in a forward pass
    idle: float  # share of its time that a pipeline waits, as it fills and drains


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline, or the whole network."""

    number: int  # from 1
    layers: int
    in_flight: float  # forward passes whose activations it holds
    memory: Memory


@dataclass(frozen=True)
class Time:
    """On a named device. Operations that are done twice count, and so does waiting of the pipeline."""

    device: Device
    step_seconds: float
    days: float
    tokens_per_second: float  # of a process


@dataclass(frozen=True)
class Plan:
    """What a run needs."""

    name: str
    parameters: int
    embedding_parameters: int  # of the embedding, and of the head where it is apart
    tokens_per_step: int
    steps: int
    flops_by_rule: int  # a token, 6 N + 6 L q T
    flops_per_token: float  # counted
    again: float  # operations with checkpointing, as a multiple of those without
    layout: Layout
    stages: tuple[Stage, ...]
    time: Time | None
    warnings: tuple[str, ...]

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step

    @property
    def flops_per_step(self) -> float:
        return self.flops_per_token * self.tokens_per_step

    @property
    def fullest(self) -> Stage:
        return max(self.stages, key=lambda stage: stage.memory.total)


def planned_config(recipe: Recipe, vocab_size: int | None = None) -> ModelConfig:
    """The network that a recipe trains. vocab_size: of its corpus, or of the one to come.

    A model to go on from is opened, its weights are not read. Raises UsageError where no size is to be had.
    """
    if recipe.start is not None:
        from kiloq.train.export import open_start

        return open_start(recipe.start).config
    if vocab_size is None and recipe.model.like is None:
        raise UsageError(
            "model: its vocabulary is that of the corpus, and there is none: give --data, or --vocab-size, or "
            "like = one of the series"
        )
    return recipe.model.config(-(-(vocab_size or 1) // PADDED_ROWS) * PADDED_ROWS, recipe.sequence)


def plan(config: ModelConfig, recipe: Recipe, processes: int, device: Device | None = None) -> Plan:
    """The needs of a run on so many processes, one a device. Raises UsageError where they cannot share it.

    device: None: processors; then there is no time, and memory is that of PyTorch's CPU kernels.
    """
    check_layout(config, recipe, processes)
    recipe = _spread(recipe, processes)
    layout = layout_of(recipe, processes)
    stages = tuple(_stages(config, recipe, layout, device is None))
    flops, again = training_flops(config, recipe.sequence) / recipe.sequence, _again(config, recipe)
    time = _time(flops * again, recipe, layout, device) if device else None
    return Plan(
        recipe.name, parameter_count(config), _tables(config), recipe.batch * recipe.sequence, recipe.steps,
        flops_by_rule(config, recipe.sequence), flops, again, layout, stages, time,
        tuple(_warnings(recipe, layout, stages, device)),
    )  # fmt: skip


def check_layout(config: ModelConfig, recipe: Recipe, processes: int) -> None:
    """Whether `processes` can share the run as [parallel] says. Raises UsageError with the way out."""
    if processes >= 1:
        recipe = _spread(recipe, processes)
    parallel = recipe.parallel
    if processes < 1 or processes % parallel.processes:
        raise UsageError(
            f"parallel: {processes:,} processes do not divide into groups of {parallel.processes:,} ({_product(parallel)}): "
            f"start {parallel.processes:,} or a multiple, or change [parallel]"
        )
    needed = parallel.pipeline * (PARTS_A_STAGE if parallel.schedule == "interleaved" and parallel.pipeline > 1 else 1)
    if needed > config.num_layers:
        raise UsageError(
            f"parallel: pipeline = {parallel.pipeline:,} with schedule {parallel.schedule} needs {needed:,} layers, and "
            f"the model has {config.num_layers:,}: give fewer stages"
        )
    for name in ("num_heads", "num_kv_heads", "ffn_size", "vocab_size"):
        _check_divides("tensor", parallel.tensor, f"the model's {name}", getattr(config, name))
    if parallel.tensor > 1 and config.qk_norm:
        raise UsageError(
            f"parallel: tensor is {parallel.tensor:,}, and networks with query and key norms are not shared so: give "
            "tensor = 1"
        )
    _check_together(config, recipe)
    stretches = 2 if parallel.context > 1 else 1  # of every sequence in a process: one from either end
    name = f"{stretches} x context x tensor"
    _check_divides(name, stretches * parallel.context * parallel.tensor, "sequence", recipe.sequence)
    _check_batch(recipe, processes)


def _check_together(config: ModelConfig, recipe: Recipe) -> None:
    """Raises UsageError for what cannot go together."""
    parallel = recipe.parallel
    if parallel.context > 1 and (recipe.block_diagonal or config.windows):
        raise UsageError(
            f"parallel: context is {parallel.context}, and block_diagonal or a network with windows needs masks that ring "
            "attention does not have: give context = 1"
        )
    if parallel.pipeline > 1 and config.tied_embeddings:
        raise UsageError(
            f"parallel: pipeline is {parallel.pipeline}, and tied embeddings would be in two stages: give pipeline = 1, or "
            "tied_embeddings = false"
        )


def _spread(recipe: Recipe, processes: int) -> Recipe:
    """DeepSpeed spreads a run over all of its processes, whatever [parallel] says."""
    if recipe.parallel.engine == "torch":
        return recipe
    return replace(recipe, parallel=Parallel(engine="deepspeed", shard=processes))


def _check_batch(recipe: Recipe, processes: int) -> None:
    groups = processes * recipe.parallel.shard // recipe.parallel.processes
    _check_divides("copies x shard", groups, "batch", recipe.batch)
    share = recipe.batch // groups
    shared = groups > 1 or recipe.parallel.pipeline > 1  # one process alone takes a smaller last pass
    width = layout_of(recipe, processes).micro_batch if recipe.micro_batch is None else recipe.micro_batch
    if shared and share % width:
        raise UsageError(
            f"recipe: micro_batch is {width:,}, and each group of processes has {share:,} sequences of a "
            "step: give a divisor of them"
        )


def _check_divides(what: str, divisor: int, of: str, value: int) -> None:
    if value % divisor:
        raise UsageError(
            f"parallel: {what} is {divisor:,}, and {of} {value:,} is no multiple of it: give a divisor, or change {of}"
        )


def _product(parallel: Parallel) -> str:
    return " x ".join(f"{name} {getattr(parallel, name)}" for name in ("shard", "tensor", "pipeline", "context"))


def layout_of(recipe: Recipe, processes: int) -> Layout:
    """Who does how much of a step, where `check_layout` has no objection."""
    parallel = recipe.parallel
    copies = processes // parallel.processes
    share = recipe.batch // (copies * parallel.shard)
    micro_batch = min(recipe.micro_batch or max(1, share // parallel.pipeline), share)
    passes, waits = -(-share // micro_batch), parallel.pipeline - 1
    parts = PARTS_A_STAGE if parallel.schedule == "interleaved" else 1
    return Layout(
        processes, copies, _product(parallel), share, micro_batch, passes, micro_batch * recipe.sequence // parallel.context,
        waits / (parts * passes + waits),
    )  # fmt: skip


def stage_layers(layers: int, stages: int) -> list[int]:
    """Layers of each stage, as even as can be; the first ones, which have no head to compute, have one more."""
    return [layers // stages + (stage < layers % stages) for stage in range(stages)]


def in_flight(parallel: Parallel, stage: int, passes: int) -> float:
    """Forward passes that stage 0, 1, … holds activations of, at most; an interleaved stage counts by its parts."""
    if parallel.schedule == "gpipe" and parallel.pipeline > 1:
        return passes
    behind = parallel.pipeline - stage
    if parallel.schedule == "1f1b" or parallel.pipeline == 1:
        return min(behind, passes)
    warm = 2 * (behind - 1) + (PARTS_A_STAGE - 1) * parallel.pipeline  # Narayanan et al. 2021, section 2.2
    return min(warm + 1, PARTS_A_STAGE * passes) / PARTS_A_STAGE


def flops_by_rule(config: ModelConfig, sequence: int) -> int:
    """6 N + 6 L q T of a token: the rule of thumb, attention over the half of the square that is visible."""
    looked_up = 0 if config.tied_embeddings else config.vocab_size * config.hidden_size
    width = config.num_layers * config.num_heads * config.head_dim
    return 6 * (parameter_count(config) - looked_up) + 6 * width * sequence


def _tables(config: ModelConfig) -> int:
    return (1 if config.tied_embeddings else 2) * config.vocab_size * config.hidden_size


def _again(config: ModelConfig, recipe: Recipe) -> float:
    """Operations with those that checkpointing does again, by those without."""
    again = {
        "none": 0,
        "selective": 6 * config.num_layers * config.hidden_size * config.ffn_size * recipe.sequence,
        "full": forward_flops(config, recipe.sequence, logits=0),
    }[recipe.checkpointing]
    return 1 + again / training_flops(config, recipe.sequence)


def _stages(config: ModelConfig, recipe: Recipe, layout: Layout, on_cpu: bool) -> Iterator[Stage]:
    count = recipe.parallel.pipeline
    for number, layers in enumerate(stage_layers(config.num_layers, count)):
        flying = in_flight(recipe.parallel, number, layout.passes)
        piece = Piece(
            layers=layers, first=number == 0, last=number == count - 1, tokens=layout.tokens, in_flight=flying,
            copies=layout.copies, earlier=layout.passes > 1, on_cpu=on_cpu,
        )  # fmt: skip
        yield Stage(number + 1, layers, flying, memory(config, recipe, piece))


def _time(flops_per_token: float, recipe: Recipe, layout: Layout, device: Device) -> Time:
    tokens = recipe.batch * recipe.sequence
    reached = layout.processes * device.peak * device.utilisation * (1 - layout.idle)
    seconds = flops_per_token * tokens / reached
    return Time(device, seconds, seconds * recipe.steps / 86_400, tokens / seconds / layout.processes)


def _warnings(recipe: Recipe, layout: Layout, stages: Sequence[Stage], device: Device | None) -> Iterator[str]:
    most = max(stage.memory.total for stage in stages)
    if device is not None and most > device.usable_bytes:
        yield (
            f"{most / 1e9:.1f} GB do not fit {device.name}, of whose {device.memory_bytes / 1e9:.0f} GB "
            f"{device.usable_bytes / 1e9:.1f} are counted on: raise shard, tensor or pipeline, lower micro_batch, or set "
            "checkpointing"
        )
    if layout.idle > MUCH_IDLE:
        yield (
            f"the pipeline waits {layout.idle:.0%} of its time with {layout.passes} forward passes a step: lower "
            "micro_batch or pipeline, or give more sequences to each copy"
        )
    if recipe.parallel.engine == "deepspeed":
        yield "DeepSpeed shares memory as its JSON says: the memory here is that of FSDP2 over as many processes"


def as_json(found: Plan) -> dict[str, Any]:
    """All of a plan, as JSON takes it."""
    derived = {
        "tokens": found.tokens, "flops_per_step": found.flops_per_step, "flops": found.flops_per_step * found.steps,
        "memory_bytes": found.fullest.memory.total,
    }  # fmt: skip
    return asdict(found) | derived


def as_text(found: Plan) -> str:
    """A plan for people: what it is, who does what, memory, time, and what stands in the way."""
    lines = [*_head(found), _layout_line(found.layout), *_memory_lines(found), *_time_lines(found.time, found.layout)]
    return "\n".join([*lines, *(f"  warning      {sentence}" for sentence in found.warnings)])


def _head(found: Plan) -> list[str]:
    tables = found.embedding_parameters
    return [
        f"{found.name}: {found.parameters:,} parameters, {tables:,} in embedding and head, {found.parameters - tables:,} in the rest",
        f"  a step       {found.tokens_per_step:,} tokens; {found.steps:,} steps are {found.tokens:.3g} tokens",
        f"  operations   a token {found.flops_per_token:.4g} counted, {found.flops_by_rule:.4g} by 6 N + 6 L q T; a step "
        f"{found.flops_per_step:.3g}, all {found.flops_per_step * found.steps:.3g}"
        + (f"; {found.again:.2f} times as many with checkpointing" if found.again > 1 else ""),
    ]


def _layout_line(layout: Layout) -> str:
    waits = f"; the pipeline waits {layout.idle:.0%} of the time" if layout.idle else ""
    return (
        f"  processes    {layout.processes:,} = copies {layout.copies:,} x {layout.sharing}; sequences of a step "
        f"{layout.sequences:,} each, in {layout.passes:,} passes of {layout.micro_batch:,}{waits}"
    )


def _memory_lines(found: Plan) -> list[str]:
    """A column for the first, the fullest and the last stage."""
    shown = {stage.number: stage for stage in (found.stages[0], found.fullest, found.stages[-1])}
    stages = [shown[number] for number in sorted(shown)]
    rows = [("memory of a process, GB", [f"stage {stage.number}" if len(found.stages) > 1 else "" for stage in stages])]
    if len(found.stages) > 1:
        rows.append(("  layers", [f"{stage.layers:,}" for stage in stages]))
        rows.append(("  passes in flight", [f"{stage.in_flight:g}" for stage in stages]))
    for part, label in LABELS.items():
        values = [getattr(stage.memory, part) for stage in stages]
        if any(values):
            rows.append((f"  {label}", [_gigabytes(value) for value in values]))
    rows.append(("  in all", [_gigabytes(stage.memory.total) for stage in stages]))
    return [f"  {name:<28}{''.join(f'{value:>10}' for value in values)}".rstrip() for name, values in rows]


def _gigabytes(value: int) -> str:
    return f"{value / 1e9:,.2f}" if value >= 1e7 else f"{value / 1e9:.2g}"


def _span(days: float) -> str:
    hours = 24 * days
    return f"{days:,.1f} days" if days >= 2 else f"{hours:.1f} hours" if hours >= 2 else f"{60 * hours:,.0f} minutes"


def _time_lines(time: Time | None, layout: Layout) -> list[str]:
    if time is None:
        return ["  time         name a device with --gpu to know it"]
    device = time.device
    return [
        f"  time         a step {time.step_seconds:.3g} s, all {_span(time.days)}, {time.tokens_per_second:,.0f} tokens/s a device",
        f"               if {layout.processes:,} x {device.name} reach {device.utilisation:.0%} of {device.peak / 1e12:,.0f} Tflop/s "
        f"({device.source}), which nobody has measured",
    ]
