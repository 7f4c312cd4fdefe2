"""The plan of a run: formulas against what the allocator counts, recipes against the paper, and layouts that cannot be."""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from kiloq.core.errors import UsageError
from kiloq.model.config import ModelConfig
from kiloq.model.init import init_weights
from kiloq.model.network import Network
from kiloq.train import loss
from kiloq.train.activations import keep_activations
from kiloq.train.hardware import DEVICES, device_named, own_device
from kiloq.train.learner import Learner
from kiloq.train.loss import chunked_cross_entropy
from kiloq.train.memory import BLOCK_ELEMENTS, PRODUCT_ELEMENTS, Piece, activations, memory, parameters_here
from kiloq.train.parallel import build
from kiloq.train.parallel.world import World
from kiloq.train.plan import as_json, as_text, check_layout, in_flight, plan, planned_config, stage_layers
from kiloq.train.settings import CHECKPOINTING, PRECISIONS, Optimizer, Parallel, Recipe, Shape, read_recipe

ROOT = Path(__file__).parent.parent.parent
# Of the published config files, and equal to the checkpoints' own totals; tokens: report, table 1; devices: the recipes' heads.
PAPER = {
    "qwen-1.8b": (1_836_828_672, 2.2e12, 64),
    "qwen-7b": (7_721_324_544, 2.4e12, 256),
    "qwen-14b": (14_167_290_880, 3.0e12, 512),
    "qwen-72b": (72_287_920_128, 3.0e12, 2_048),
}
PLAIN = ModelConfig(vocab_size=512, hidden_size=64, num_layers=3, num_heads=4, ffn_size=160)
# (network, sequences, tokens, tokens of a chunk of the loss, block_diagonal)
SHAPES: dict[str, tuple[ModelConfig, int, int, int, bool]] = {
    "plain": (PLAIN, 2, 64, 1_000, False),
    "many tokens": (PLAIN.replace(vocab_size=128), 4, 128, 32, False),
    "grouped and tied": (
        PLAIN.replace(vocab_size=1024, num_kv_heads=2, ffn_size=96, tied_embeddings=True), 2, 64, 32, False,
    ),
    "two wide heads": (
        ModelConfig(vocab_size=300, hidden_size=128, num_layers=2, num_heads=2, ffn_size=160), 3, 40, 100, False,
    ),
    "wide feed-forward": (
        ModelConfig(vocab_size=64, hidden_size=128, num_layers=1, num_heads=4, ffn_size=1024), 1, 32, 1_000, False,
    ),
    "norms of heads": (PLAIN.replace(num_kv_heads=2, qk_norm=True, mlp_bias=True), 2, 64, 1_000, False),
    "documents apart": (PLAIN, 2, 96, 48, True),
}  # fmt: skip
THOROUGH = ("many tokens", "grouped and tied")  # in all precisions and ways to keep activations; the others in these:
TELLING = [("bf16", "none"), ("bf16", "full"), ("fp32", "selective")]
CASES = [
    (shape, precision, checkpointing)
    for shape in SHAPES
    for precision in PRECISIONS
    for checkpointing in CHECKPOINTING
    if shape in THOROUGH or (precision, checkpointing) in TELLING
]


class Step:
    """The forward and backward passes of a step, one micro-batch after the other."""

    def __init__(self, recipe: Recipe, config: ModelConfig, rows: int) -> None:
        self.recipe, self.network = recipe, Network(config)
        init_weights(self.network, 0)
        keep_activations(self.network, recipe.checkpointing)
        self.learner = Learner(self.network, recipe, World(torch.device("cpu")))
        self.optimizer = torch.optim.AdamW(self.network.parameters(), fused=True)
        self.ids_BT = torch.randint(0, config.vocab_size, (rows, recipe.sequence + 1))
        self.segments_BT = (torch.arange(recipe.sequence) // 20).expand(rows, -1) if recipe.block_diagonal else None

    def loss(self) -> torch.Tensor:
        loss: torch.Tensor = self.learner(self.ids_BT, self.segments_BT)
        return loss

    def take(self) -> None:
        for _ in range(2):
            self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def counted(work: Any) -> tuple[int, int]:
    """(bytes still held, most bytes held at a time) that `work` allocated; what it returns is kept till then."""
    gc.collect()  # graphs of checkpointed layers are cycles
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = work()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    del result
    return held, most


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Matrix products in bf16 have a buffer for each thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("shape", "precision", "checkpointing"), CASES)
def test_memory_is_what_the_allocator_counts(shape: str, precision: str, checkpointing: str, one_thread: None) -> None:
    """The state to the byte; what a forward pass leaves to 1 %, which are ids and kernels' states; the most held to 5 %."""
    config, rows, sequence, chunk, apart = SHAPES[shape]
    recipe = Recipe(
        sequence=sequence, loss_chunk=chunk, precision=precision, checkpointing=checkpointing, block_diagonal=apart
    )
    piece = Piece(layers=config.num_layers, tokens=rows * sequence, on_cpu=True)
    expected = memory(config, recipe, piece)
    step = Step(recipe, config, rows)
    step.take()
    step.loss().backward()  # from here on gradients are there, as in every forward pass but a step's first
    parameters, state = list(step.network.parameters()), step.optimizer.state.values()
    assert expected.weights == sum(p.numel() * p.element_size() for p in parameters)
    assert expected.gradients == sum(p.grad.numel() * p.grad.element_size() for p in parameters if p.grad is not None)
    assert expected.moments == sum(4 * s["exp_avg"].numel() + 4 * s["exp_avg_sq"].numel() for s in state)
    kept, _ = counted(step.loss)
    end = piece.tokens * (4 * config.hidden_size + 4)  # the final norm's input and 1 / rms
    gradients = 4 * config.hidden_size * (piece.tokens + config.vocab_size)  # the loss's
    assert kept == pytest.approx(activations(config, recipe, piece) + end + gradients, rel=0.01)
    _, most = counted(lambda: step.loss().backward())
    rest = expected.total - expected.weights - expected.gradients - expected.moments
    assert rest == pytest.approx(most, rel=0.05)


@pytest.mark.parametrize("vocabulary", [500, 40_000])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("tokens", "chunk", "width"), [(96, 200, 64), (64, 32, 256)])
def test_memory_of_the_loss(
    tokens: int, chunk: int, width: int, precision: str, vocabulary: int, one_thread: None
) -> None:
    """All that it holds at a time, to 10 %: a network without layers has little else. Of one block, and of many."""
    assert (loss.BLOCK_ELEMENTS, loss.PRODUCT_ELEMENTS) == (BLOCK_ELEMENTS, PRODUCT_ELEMENTS)
    config = ModelConfig(vocab_size=vocabulary, hidden_size=width, num_layers=1, num_heads=1, ffn_size=16)
    recipe = Recipe(loss_chunk=chunk, precision=precision)
    none = memory(config, recipe, Piece(layers=0, first=False, tokens=tokens, on_cpu=True))
    x_NC, matrix_VC = torch.randn(tokens, width, requires_grad=True), torch.randn(vocabulary, width, requires_grad=True)
    labels_N = torch.randint(0, vocabulary, (tokens,))

    def work() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
            return chunked_cross_entropy(x_NC, matrix_VC, labels_N, chunk)

    work()
    assert none.loss == pytest.approx(counted(work)[1], rel=0.1)


PROCESS = """
import json, sys, time
import numpy as np
import torch
import torch.distributed as dist
from kiloq.model.config import ModelConfig
from kiloq.model.init import drawn
from kiloq.train.batches import Sequences
from kiloq.train.parallel.engine import make_engine
from kiloq.train.parallel.world import world
from kiloq.train.settings import Parallel, Recipe
from tests.train.test_plan import counted

def patient(*arguments, **options):
    reduce(*arguments, **options)
    time.sleep(0.01)  # so that gloo's threads let go of their buffers

torch.set_num_threads(1)
reduce, dist.reduce_scatter_tensor = dist.reduce_scatter_tensor, patient
table, cases = (json.loads(text) for text in sys.argv[1:])
with world(Parallel(**table), "cpu") as processes:
    for sizes, fields in cases:
        config, recipe, most = ModelConfig(**sizes), Recipe(**fields, parallel=Parallel(**table)), []
        engine = make_engine(recipe, config, lambda name, shape: drawn(name, shape, config, 0), processes)
        ids_BT = np.random.default_rng(0).integers(0, config.vocab_size, (8 // processes.readers, 65))
        rows = Sequences(ids_BT, np.zeros_like(ids_BT), [])
        engine.gradients(rows, 100)
        for _ in range(5):
            engine.discard()
            most.append(counted(lambda: engine.gradients(rows, 100))[1])
        print("most", min(most))
"""
SIZES = {"vocab_size": 512, "hidden_size": 128, "num_layers": 4, "num_heads": 4, "ffn_size": 320}
FIELDS = {"sequence": 64, "batch": 8, "micro_batch": 2, "loss_chunk": 64}


@pytest.mark.parametrize(
    ("table", "cases"),
    [
        ({"shard": 2}, [({}, {}), ({}, {"checkpointing": "full"}),
                        ({"vocab_size": 4096, "num_layers": 2}, {"checkpointing": "selective"})]),
        ({"tensor": 2}, [({}, {"micro_batch": 8})]),
    ],
    ids=["shard", "tensor"],
)  # fmt: skip
def test_memory_is_what_two_processes_count(table: dict[str, int], cases: list[Any]) -> None:
    """Beside weights and moments. DTensor in several passes leaves cycles behind.

    The least of both processes' steps: gloo's threads let go of buffers when the machine lets them.
    """
    cases = [(SIZES | sizes, FIELDS | fields) for sizes, fields in cases]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, json.dumps(table), json.dumps(cases)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    ended = [process.communicate(timeout=100) for process in running]
    assert [process.returncode for process in running] == [0, 0], [errors[-2_000:] for _, errors in ended]
    counts = [[int(line.split()[1]) for line in said.splitlines() if line.startswith("most")] for said, _ in ended]
    for (sizes, fields), *most in zip(cases, *counts, strict=True):
        recipe = Recipe(**fields, parallel=Parallel(**table))
        expected = plan(ModelConfig(**sizes), recipe, 2).fullest.memory
        held = expected.total - expected.weights - expected.moments
        assert 0.75 * min(most) < held < 1.1 * min(most)  # on a busy machine gloo holds its buffers longer


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_of_the_paper(name: str) -> None:
    parameters, tokens, devices = PAPER[name]
    recipe = read_recipe(ROOT / "recipes" / name / "train.toml")
    found = plan(planned_config(recipe), recipe, devices, device_named("a100-80"))
    assert (found.name, found.parameters) == (name, parameters)
    assert found.tokens_per_step == 2_048 * 2_048
    assert found.tokens == pytest.approx(tokens, abs=found.tokens_per_step)
    assert not found.warnings and found.fullest.memory.total < DEVICES["a100-80"].usable_bytes
    optimizer = recipe.optimizer
    assert (optimizer.peak_rate, optimizer.epsilon, optimizer.beta1, optimizer.beta2) == (3e-4, 1e-8, 0.9, 0.95)
    assert (optimizer.warmup_steps, optimizer.weight_decay, optimizer.clip) == (2_000, 0.1, 1)
    assert optimizer.final_share == 0.1
    assert recipe.precision == "bf16" and Optimizer().epsilon == 1e-6
    assert found.time is not None and 10 < found.time.days < 90


def test_the_small_recipe_fits_one_gpu_of_24_gb() -> None:
    recipe = read_recipe(ROOT / "recipes" / "small" / "train.toml")
    found = plan(planned_config(recipe, 32_768), recipe, 1, device_named("RTX 4090"))
    assert 1e8 < found.parameters < 3e8 and not found.warnings
    assert found.time is not None and found.time.days < 1 / 12


def test_the_pieces_of_a_model_are_the_model() -> None:
    """Over stages, shards and shared matrices; norms stand in every process that shares matrices."""
    config = PLAIN.replace(num_layers=5)
    whole = sum(p.numel() for p in Network(config).parameters())
    pieces = [
        Piece(layers=layers, first=at == 0, last=at == 2, tokens=1) for at, layers in enumerate(stage_layers(5, 3))
    ]
    assert [piece.layers for piece in pieces] == [2, 2, 1] == [len(layers) for layers in build.stage_layers(5, 3)]
    assert sum(parameters_here(config, piece, Parallel(shard=1)) for piece in pieces) == whole
    assert 8 * sum(parameters_here(config, piece, Parallel(shard=8)) for piece in pieces) == whole
    norms = (2 * 5 + 1) * config.hidden_size
    shared = sum(parameters_here(config, piece, Parallel(tensor=4)) for piece in pieces)
    assert 4 * shared == whole + 3 * norms


def outstanding(stage: int, stages: int, passes: int) -> int:
    """By running the schedule: forward passes until the first gradient comes back, then one backward for one forward."""
    order = ["F"] * min(stages - stage - 1, passes)
    while order.count("F") < passes:
        order += ["F", "B"]
    held = most = 0
    for one in order:
        held += 1 if one == "F" else -1
        most = max(most, held)
    return most


@pytest.mark.parametrize(("stages", "passes"), [(1, 1), (4, 8), (4, 2), (8, 64)])
def test_passes_in_flight(stages: int, passes: int) -> None:
    for stage in range(stages):
        assert in_flight(Parallel(pipeline=stages), stage, passes) == outstanding(stage, stages, passes)
        assert in_flight(Parallel(pipeline=stages, schedule="gpipe"), stage, passes) == (passes if stages > 1 else 1)
        interleaved = in_flight(Parallel(pipeline=stages, schedule="interleaved"), stage, passes)
        assert interleaved <= min(passes, 1.5 * stages)


def test_every_way_to_share_lowers_what_it_should() -> None:
    base = Recipe(
        sequence=64, batch=32, micro_batch=4, model=Shape(hidden_size=64, num_layers=4, num_heads=4, ffn_size=160)
    )
    config = planned_config(base, 500)
    one = plan(config, base, 1).fullest.memory

    def shared(processes: int, checkpointing: str = "none", micro_batch: int = 4, **parallel: Any) -> Any:
        recipe = replace(base, checkpointing=checkpointing, micro_batch=micro_batch, parallel=Parallel(**parallel))
        return plan(config, recipe, processes).fullest.memory

    copied, sharded, ring = shared(2), shared(4, shard=4), shared(2, context=2)
    assert replace(copied, gathered=0, loss=one.loss) == one  # copies save nothing; the head's cast is gathered
    assert 4 * sharded.weights == 2 * ring.weights == one.weights and sharded.gathered > one.gathered == 0
    assert 4 * sharded.gradients == one.gradients  # shared out after every pass
    assert shared(2, tensor=2).activations < one.activations == 2 * ring.activations
    assert shared(4, pipeline=4).weights < one.weights / 2
    kept = [shared(1, checkpointing=mode).activations for mode in CHECKPOINTING]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 3


def test_operations_and_time_by_hand() -> None:
    recipe = read_recipe(ROOT / "recipes" / "qwen-7b" / "train.toml")
    device = own_device(100, 80)
    found = plan(planned_config(recipe), recipe, 256, device)
    matrices = 7_721_324_544 - 151_936 * 4_096
    assert found.flops_by_rule == 6 * matrices + 6 * 32 * 4_096 * 2_048
    assert found.flops_per_token == pytest.approx(found.flops_by_rule, rel=0.01)  # norms and biases are not counted
    assert found.time is not None
    assert found.time.step_seconds == pytest.approx(found.flops_per_step / (256 * 100e12 * device.utilisation))
    assert found.time.days == pytest.approx(found.time.step_seconds * 572_205 / 86_400)
    again = plan(planned_config(recipe), replace(recipe, checkpointing="full"), 256, device)
    assert 1.3 < again.again < 4 / 3 and again.time is not None  # the head is not run again
    assert again.time.step_seconds == pytest.approx(again.again * found.time.step_seconds)


def test_text_and_json_say_the_same() -> None:
    recipe = read_recipe(ROOT / "recipes" / "qwen-72b" / "train.toml")
    found = plan(planned_config(recipe), recipe, 2_048, device_named("h100"))
    read = json.loads(json.dumps(as_json(found)))
    text = as_text(found)
    assert "72,287,920,128 parameters" in text and "6 N + 6 L q T" in text and "stage 8" in text
    assert read["parameters"] == 72_287_920_128 and len(read["stages"]) == 8
    assert f"{read['memory_bytes'] / 1e9:.2f}" in text and f"{read['layout']['idle']:.0%}" in text


def test_what_does_not_fit_is_said_in_a_sentence() -> None:
    recipe = replace(read_recipe(ROOT / "recipes" / "qwen-7b" / "train.toml"), micro_batch=8)
    found = plan(planned_config(recipe), recipe, 256, device_named("a100-80"))
    assert len(found.warnings) == 1 and "do not fit a100-80" in found.warnings[0] and "warning" in as_text(found)
    idle = replace(recipe, batch=64, micro_batch=1, parallel=Parallel(pipeline=8, shard=32, tensor=4))
    assert any("pipeline waits" in one for one in plan(planned_config(idle), idle, 1_024).warnings)
    deepspeed = replace(recipe, parallel=Parallel(engine="deepspeed"))
    assert any("DeepSpeed" in one for one in plan(planned_config(deepspeed), deepspeed, 1).warnings)


@pytest.mark.parametrize(
    ("parallel", "more", "processes", "words"),
    [
        ({"shard": 2, "tensor": 2}, {}, 6, "6 processes do not divide into groups of 4"),
        ({}, {}, 0, "0 processes"),
        ({}, {}, -3, "-3 processes"),
        ({"pipeline": 4}, {}, 4, "needs 4 layers, and the model has 3"),
        ({"pipeline": 2, "schedule": "interleaved"}, {}, 2, "needs 4 layers, and the model has 3"),
        ({"tensor": 8}, {}, 8, "num_heads 4 is no multiple"),
        ({"tensor": 4}, {}, 4, "num_kv_heads 2 is no multiple"),
        ({"tensor": 2}, {}, 2, "vocab_size 513 is no multiple"),
        ({"context": 3}, {}, 3, "sequence 64 is no multiple"),
        ({"context": 64}, {}, 64, "2 x context x tensor is 128, and sequence 64 is no multiple"),
        ({"context": 10**18}, {}, 10**18, "sequence 64 is no multiple"),
        ({"shard": 3}, {}, 3, "copies x shard is 3, and batch 32 is no multiple"),
        ({}, {}, 64, "copies x shard is 64, and batch 32 is no multiple"),
        ({"shard": 2}, {"micro_batch": 5}, 4, "micro_batch is 5, and each group of processes has 8"),
        ({"pipeline": 3}, {"micro_batch": 64}, 3, "micro_batch is 64, and each group of processes has 32"),
    ],
)
def test_layouts_that_cannot_be(parallel: dict[str, Any], more: dict[str, Any], processes: int, words: str) -> None:
    config = PLAIN.replace(num_kv_heads=2, vocab_size=513)
    recipe = Recipe(sequence=64, batch=32, parallel=Parallel(**parallel), **more)
    with pytest.raises(UsageError, match=words) as caught:
        check_layout(config, recipe, processes)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_devices_and_vocabularies_that_are_not_known() -> None:
    with pytest.raises(UsageError, match="did you mean 'h100'"):
        device_named("H10")
    with pytest.raises(UsageError, match="choose one of a100-40"):
        device_named("abacus")
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="--memory"):
            own_device(100, wrong)
    shape = Shape(hidden_size=64, num_layers=2, num_heads=2, ffn_size=64)
    with pytest.raises(UsageError, match="--data"):
        planned_config(Recipe(model=shape))
    assert planned_config(Recipe(model=shape), 100).vocab_size == 128


def test_a_plan_needs_no_pytorch() -> None:
    code = "import sys, kiloq.train.plan; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
