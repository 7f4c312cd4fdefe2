"""The training steps that are compared, each in a process of its own: kiloq's, transformers', and bare matrix products.

    python benchmarks/train_engines.py '{"engine": "kiloq", "shape": "33m", "precision": "fp32"}'

The process makes its network, takes a step, prints a line, and then takes one step for every line that it reads and
prints its seconds; at the end its figures of memory. A step is forward, loss, backward, clipping and AdamW, on the same
random tokens: their values change no engine's speed. kiloq takes the parts that `kiloq train` is made of; transformers
is its Qwen2ForCausalLM or GPT2LMHeadModel, as it is, with PyTorch's fused AdamW. GPT2LMHeadModel stands for nanoGPT,
which is no package: its shape, its activation (one call, which GELU's approximation is not), no dropout, float32 and no
compiler, as in nanoGPT's README for a CPU.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kiloq.model.config import ModelConfig
from kiloq.model.flops import parameter_count
from kiloq.model.init import init_weights
from kiloq.model.network import Network
from kiloq.model.shapes import tensor_shapes
from kiloq.train.allocator import keep_memory
from kiloq.train.loss import chunked_cross_entropy
from kiloq.train.optimizer import make_optimizer
from kiloq.train.settings import Optimizer

THREADS = 2
CHUNK = 1_024  # tokens; the recipes' default
PEER_VOCABULARY = 65  # nanoGPT's characters; kiloq's single bytes and control tokens are 464 in 512 rows

# Name -> (network, sequences a step, tokens a sequence). 33m and 131m have 14 M parameters in their layers; 465m is the
# 0.3b of benchmarks/models.py; nanogpt is nanoGPT's CPU setting, as recipes/shakespeare has it.
BODY: dict[str, Any] = {"hidden_size": 384, "num_layers": 8, "num_heads": 6, "ffn_size": 1024}
SHAPES: dict[str, tuple[dict[str, Any], int, int]] = {
    "33m": ({**BODY, "vocab_size": 24_000}, 4, 512),
    "131m": ({**BODY, "vocab_size": 151_936}, 8, 512),
    "465m": ({"hidden_size": 1024, "num_layers": 12, "num_heads": 8, "ffn_size": 2816, "vocab_size": 151_936}, 1, 512),
    "nanogpt": (
        {"hidden_size": 128, "num_layers": 4, "num_heads": 4, "ffn_size": 320, "vocab_size": 512, "tied_embeddings": True},
        12, 64,
    ),
    "quick": ({"hidden_size": 64, "num_layers": 2, "num_heads": 2, "ffn_size": 128, "vocab_size": 512}, 2, 64),
}  # fmt: skip

Step = Callable[[], object]


def config_of(shape: dict[str, Any], sequence: int) -> ModelConfig:
    """kiloq's network of a shape."""
    return ModelConfig(**shape, train_length=sequence)


def kiloq_step(shape: dict[str, Any], batch: int, sequence: int, precision: str) -> tuple[Step, int]:
    """A step by the parts of `kiloq train`, and the parameters."""
    keep_memory()
    config = config_of(shape, sequence)
    network = Network(config)
    init_weights(network, 0)
    network.train()
    head = network.embed_tokens if network.lm_head is None else network.lm_head
    ids_BT = _ids(batch, sequence + 1, config.vocab_size)

    def loss() -> Tensor:
        x_BTC = network.hidden(ids_BT[:, :-1])
        total = chunked_cross_entropy(x_BTC.flatten(0, 1), head.weight, ids_BT[:, 1:].flatten(), CHUNK)
        return total / (batch * sequence)

    optimizer = make_optimizer(list(network.parameters()), Optimizer())
    return _step(loss, list(network.parameters()), optimizer, precision), parameter_count(config)


def transformers_step(shape: dict[str, Any], batch: int, sequence: int, precision: str) -> tuple[Step, int]:
    """A step of transformers' network of the same shape, and its parameters."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=shape["vocab_size"], hidden_size=shape["hidden_size"], num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_heads"], num_key_value_heads=shape["num_heads"], use_cache=False,
        intermediate_size=shape["ffn_size"], max_position_embeddings=sequence, tie_word_embeddings=False,
    )  # fmt: skip
    return _peer(Qwen2ForCausalLM(config), shape["vocab_size"], batch, sequence, precision)


def gpt2_step(shape: dict[str, Any], batch: int, sequence: int, precision: str) -> tuple[Step, int]:
    """A step of a GPT-2 of nanoGPT's shape, and its parameters."""
    return _peer(gpt2_network(shape, sequence), PEER_VOCABULARY, batch, sequence, precision)


def gpt2_network(shape: dict[str, Any], sequence: int) -> Any:
    """transformers' GPT-2 with nanoGPT's settings."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=PEER_VOCABULARY, n_positions=sequence, n_embd=shape["hidden_size"], n_layer=shape["num_layers"],
        n_head=shape["num_heads"], activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=None, eos_token_id=None, loss_type="ForCausalLM",
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def _peer(network: Any, vocabulary: int, batch: int, sequence: int, precision: str) -> tuple[Step, int]:
    network.train()
    ids_BT = _ids(batch, sequence, vocabulary)
    parameters = list(network.parameters())
    settings = Optimizer()
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.peak_rate, betas=(settings.beta1, settings.beta2), eps=settings.epsilon, fused=True
    )
    step = _step(
        lambda: network(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss, parameters, optimizer, precision
    )
    return step, sum(p.numel() for p in parameters)


def _step(loss: Callable[[], Tensor], parameters: Sequence[Any], optimizer: Any, precision: str) -> Step:
    def run() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            found = loss()
        found.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return found.item()

    return run


def products_step(shape: dict[str, Any], batch: int, sequence: int, precision: str) -> tuple[Step, int]:
    """The matrix products of a step and nothing else: of each kind of matrix one, its forward and both backward ones.

    Attention's are left out. The second figure is how many operations they are.
    """
    tokens, dtype = batch * sequence, torch.bfloat16 if precision == "bf16" else torch.float32
    sizes = {s for name, s in tensor_shapes(config_of(shape, sequence)).items() if len(s) == 2 and "embed" not in name}
    if shape.get("tied_embeddings"):
        sizes.add((shape["vocab_size"], shape["hidden_size"]))
    made = [
        (torch.randn(width[0], width[1]).to(dtype), torch.randn(tokens, width[1]).to(dtype), torch.randn(tokens, width[0]).to(dtype))
        for width in sorted(sizes)
    ]  # fmt: skip
    outs = [(torch.empty_like(grad), torch.empty_like(x), torch.empty_like(weight)) for weight, x, grad in made]

    def run() -> None:
        for (weight, x, grad), (out, grad_x, grad_weight) in zip(made, outs, strict=True):
            torch.mm(x, weight.T, out=out)
            torch.mm(grad, weight, out=grad_x)
            torch.mm(grad.T, x, out=grad_weight)

    return run, 3 * sum(2 * tokens * rows * columns for rows, columns in sizes)


def _ids(batch: int, width: int, vocabulary: int) -> Tensor:
    return torch.randint(0, vocabulary, (batch, width), generator=torch.Generator().manual_seed(0))


ENGINES = {"kiloq": kiloq_step, "transformers": transformers_step, "gpt2": gpt2_step, "products": products_step}


def memory(field: str) -> int:
    """Bytes of this process: "VmHWM" at most so far, "VmRSS" now. Source: Linux, proc_pid_status(5)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    """Serve steps to the process that measures."""
    order = json.loads(sys.argv[1])
    torch.set_num_threads(THREADS)
    if order["engine"] in ("transformers", "gpt2"):
        import transformers.models.gpt2.modeling_gpt2
        import transformers.models.qwen2.modeling_qwen2  # noqa: F401 - so that `before` has their code
    shape, batch, sequence = order.get("sizes") or SHAPES[order["shape"]]
    before = memory("VmRSS")
    step, count = ENGINES[order["engine"]](shape, batch, sequence, order["precision"])
    step()
    print(json.dumps({"count": count, "before": before}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(time.perf_counter() - start, flush=True)
    print(json.dumps({"peak": memory("VmHWM")}), flush=True)


if __name__ == "__main__":
    main()
