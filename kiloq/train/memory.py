"""How many bytes one process holds while it trains, by formula: no torch, and no run.

Every term follows what autograd keeps of `kiloq.model.network` under `kiloq.train.learner`, each storage once, and
tests compare it with the allocator's own count. Under bf16 autocast the residual stream stays float32 (the embedding
and the norms are), every matrix product casts its own input and its matrix, and keeps both casts for the backward
pass: of the whole matrix, also where FSDP2 spreads the weights. FSDP2 gathers float32, keeps what stands outside the
layers gathered, and adds up whole gradients until the last forward pass of a step, as `kiloq.train.parallel` asks.
Sources: Korthikanti et al. 2022, section 4, for the method; Narayanan et al. 2021, section 2.2, for the passes that a
pipeline has in flight.

Units: bytes, unless a name says tokens or elements. Widths as in the network: C hidden, Q all query heads, K all
key (or value) heads, F feed-forward, V vocabulary, R rotary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from math import ceil, prod

from kiloq.model.config import ModelConfig
from kiloq.model.shapes import layer_shapes
from kiloq.train.settings import Parallel, Recipe

WIDE = 4  # float32: weights, gradients, moments, residual stream
WIDTHS = {"bf16": 2, "fp32": 4}  # of what goes into a matrix product
SPLIT_COLUMNS = ("o_proj.weight", "down_proj.weight")  # `tensor` shares their columns, and the rows of other matrices
COPIED = ("norm.weight", "o_proj.bias", "down_proj.bias")  # ends of names that `tensor` does not share
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
RANDOM_STATE = 5_056  # of PyTorch's CPU generator, which every checkpointed layer keeps
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
ALL = ATTENTION + FEED_FORWARD


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one process works on: some layers in a row, and the tokens of one forward pass."""

    layers: int
    first: bool = True  # has the embedding
    last: bool = True  # has the final norm, the head and the loss
    tokens: int
    in_flight: float = 1.0  # forward passes whose backward pass has not been
    copies: int = 1  # of the model in the run
    earlier: bool = True  # a step has forward passes before this one, whose gradients are there
    on_cpu: bool = False


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes at the fullest moment of a step, by what they are."""

    weights: int
    gradients: int  # so far: all of the process' matrices, or with FSDP2 whole ones before they are shared out
    moments: int  # two of AdamW
    copies: int  # of matrices in the precision of their products
    gathered: int  # of FSDP2: layers put together, and a layer's gradient on its way
    activations: int  # kept for the backward pass
    working: int  # of the backward pass: a layer computed again, and gradients on their way
    loss: int  # its gradients, and the logits of a chunk

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))


def memory(config: ModelConfig, recipe: Recipe, piece: Piece) -> Memory:
    """The fullest of four moments: behind the layers, at the loss, in the last layer's backward pass, at the end."""
    moments = [_behind_layers(config, recipe, piece), _at_layer(config, recipe, piece)]
    if piece.last:
        moments.append(_at_loss(config, recipe, piece))
    if piece.first:
        moments.append(_at_embedding(config, recipe, piece))
    return max(moments, key=lambda one: one.total)


def _behind_layers(config: ModelConfig, recipe: Recipe, piece: Piece) -> Memory:
    """Autocast remembers every cast until it ends, whatever is checkpointed; other passes in flight have their own."""
    copies = ceil((piece.in_flight - 1) * _copies_kept(config, recipe, piece))
    if recipe.precision == "bf16":
        copies += WIDTHS["bf16"] * piece.layers * _linear(config, recipe.parallel, ALL)
    kept = activations(config, recipe, piece) + ceil(piece.tokens * _end_bytes(config, recipe, piece))
    return _memory(config, recipe, piece, copies, kept, 0, _loss_kept(config, recipe, piece, piece.in_flight - 1))


def _at_loss(config: ModelConfig, recipe: Recipe, piece: Piece) -> Memory:
    kept = activations(config, recipe, piece) + ceil(piece.tokens * _end_bytes(config, recipe, piece))
    copies = ceil(piece.in_flight * _copies_kept(config, recipe, piece))
    loss = _loss_kept(config, recipe, piece, piece.in_flight) + _chunk(config, recipe, piece)
    return _memory(config, recipe, piece, copies, kept, 0, loss)


def _at_layer(config: ModelConfig, recipe: Recipe, piece: Piece) -> Memory:
    kept, copies = activations(config, recipe, piece), ceil(piece.in_flight * _copies_kept(config, recipe, piece))
    loss = _loss_kept(config, recipe, piece, piece.in_flight - 1)
    if piece.first and piece.last and config.tied_embeddings:
        loss += _table(config, recipe)  # the head's part of the gradient waits for the embedding's
    return _memory(config, recipe, piece, copies, kept, _working(config, recipe, piece), loss)


def _at_embedding(config: ModelConfig, recipe: Recipe, piece: Piece) -> Memory:
    """When this pass's own activations and casts are gone, but for the stream's gradient."""
    others = piece.in_flight - 1
    kept, copies = (part * others / piece.in_flight for part in (
        activations(config, recipe, piece), piece.in_flight * _copies_kept(config, recipe, piece)))  # fmt: skip
    both = 2 if piece.last and config.tied_embeddings else 1
    working = both * _table(config, recipe) + WIDE * piece.tokens * config.hidden_size
    loss = _loss_kept(config, recipe, piece, others)
    return _memory(config, recipe, piece, ceil(copies), ceil(kept), working, loss, complete=True)


def _memory(
    config: ModelConfig, recipe: Recipe, piece: Piece, copies: int, kept: int, working: int, loss: int,
    complete: bool = False,
) -> Memory:  # fmt: skip
    """complete: gradients are all there, and shared out."""
    weights, gradients = WIDE * parameters_here(config, piece, recipe.parallel), 0
    if complete:
        gradients = weights
    elif piece.earlier:
        gradients = WIDE * parameters_here(config, piece, replace(recipe.parallel, shard=1, context=1))
    return Memory(
        weights=weights, gradients=gradients, moments=2 * weights, copies=copies,
        gathered=gathered(config, recipe, piece), activations=kept, working=working, loss=loss,
    )  # fmt: skip


def parameters_here(config: ModelConfig, piece: Piece, parallel: Parallel) -> int:
    """Elements of the weights in one process: its layers, its share of each tensor, rows rounded up."""
    spread = parallel.shard * parallel.context  # FSDP2 shares weights among both
    return sum(_share(name, shape, parallel.tensor, spread) for name, shape in _tensors(config, piece))


def _tensors(config: ModelConfig, piece: Piece) -> Iterator[tuple[str, tuple[int, ...]]]:
    for _ in range(piece.layers):
        yield from layer_shapes(config).items()
    yield from _outside(config, piece)


def _outside(config: ModelConfig, piece: Piece) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What stands before and behind the layers; a tied embedding is in the first and in the last stage."""
    table = (config.vocab_size, config.hidden_size)
    if piece.first or (piece.last and config.tied_embeddings):
        yield "embed_tokens.weight", table
    if piece.last:
        yield "norm.weight", (config.hidden_size,)
        if not config.tied_embeddings:
            yield "lm_head.weight", table


def _share(name: str, shape: tuple[int, ...], tensor: int, shard: int) -> int:
    """Elements of one tensor in a process: `tensor` takes columns or rows, then `shard` takes rows."""
    rows, columns = shape[0], prod(shape[1:])
    if name.endswith(SPLIT_COLUMNS):
        columns //= tensor
    elif not name.endswith(COPIED):
        rows //= tensor
    return ceil(rows / shard) * columns


def _linear(config: ModelConfig, parallel: Parallel, parts: tuple[str, ...], ends: tuple[str, ...] = ("",)) -> int:
    """Elements of a layer's matrices and biases with one of these names in theirs, `tensor`'s share."""
    return sum(
        _share(name, shape, parallel.tensor, 1)
        for name, shape in layer_shapes(config).items()
        if any(part in name for part in parts) and name.endswith(ends)
    )


def _copies_kept(config: ModelConfig, recipe: Recipe, piece: Piece) -> int:
    """Of one pass until its backward pass: casts of matrices, not of biases, whose products are not made again."""
    if recipe.precision == "fp32":
        return 0
    parts = {"none": ALL, "selective": ATTENTION, "full": ()}[recipe.checkpointing]
    return WIDTHS["bf16"] * piece.layers * _linear(config, recipe.parallel, parts, (".weight",))


def gathered(config: ModelConfig, recipe: Recipe, piece: Piece) -> int:
    """Of FSDP2: the layer at work and the next one, what stands outside the layers, and a layer's gradient."""
    parallel = recipe.parallel
    if piece.copies * parallel.shard * parallel.context == 1:
        return 0
    layer = sum(_share(name, shape, parallel.tensor, 1) for name, shape in layer_shapes(config).items())
    if parallel.shard * parallel.context == 1:
        return WIDE * layer  # whole already
    outside = sum(_share(name, shape, parallel.tensor, 1) for name, shape in _outside(config, piece))
    layers = piece.layers if parallel.pipeline > 1 else min(2, piece.layers)  # PyTorch's stages keep all gathered
    return WIDE * (layers * layer + outside + layer)


def activations(config: ModelConfig, recipe: Recipe, piece: Piece) -> int:
    """What the layers keep for the backward pass, in all forward passes in flight."""
    c, stream = config, WIDE * config.hidden_size / recipe.parallel.tensor
    attention, feed_forward = attention_bytes(c, recipe), feed_forward_bytes(c, recipe)
    layer = {"none": attention + feed_forward, "selective": attention + stream, "full": stream}[recipe.checkpointing]
    token = piece.layers * layer
    token += 2 * WIDE * c.rotary_dim  # cos and sin, which all layers share
    if recipe.block_diagonal and recipe.checkpointing == "full":
        token += recipe.sequence  # the mask of one byte a pair, for what is computed again
    if not piece.last:
        token += stream  # the output, until the next stage has it
    states = 0 if recipe.checkpointing == "none" else piece.layers * RANDOM_STATE
    return ceil(piece.in_flight * (piece.tokens * token + states))


def _end_bytes(config: ModelConfig, recipe: Recipe, piece: Piece) -> float:
    """A token's, behind the layers: their output, the same normalised, and 1 / rms; the loss lets go of them."""
    return (2 * WIDE * config.hidden_size + WIDE) / recipe.parallel.tensor if piece.last else 0.0


def attention_bytes(config: ModelConfig, recipe: Recipe) -> float:
    """A token's, of the first half of a layer."""
    c, width, share = config, WIDTHS[recipe.precision], recipe.parallel.tensor
    q, k = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    casts = 3 * width * c.hidden_size if width < WIDE else WIDE * c.hidden_size  # one for each of q, k, v, or shared
    kept = 2 * WIDE * c.hidden_size + WIDE  # the stream, the same normalised, and 1 / rms
    kept += width * (2 * q + 2 * k)  # rotated queries and keys, values, and the output, which goes into o_proj
    kept += WIDE * c.num_heads  # logarithms of the softmax' sums
    if c.qk_norm:
        kept += (WIDE + width) * (q + k) + WIDE * (c.num_heads + c.num_kv_heads)  # float32, normalised, and 1 / rms
    if recipe.block_diagonal:
        kept += share * width * recipe.sequence  # the mask as numbers: the kernel makes its own in every layer
    return kept / share + casts  # `tensor` gathers what goes into the products


def feed_forward_bytes(config: ModelConfig, recipe: Recipe) -> float:
    """A token's, of the second half of a layer."""
    c, width, share = config, WIDTHS[recipe.precision], recipe.parallel.tensor
    casts = (
        2 * width * c.hidden_size if width < WIDE else WIDE * c.hidden_size
    )  # one for each of gate and up, or shared
    kept = 2 * WIDE * c.hidden_size + WIDE  # the stream, the same normalised, and 1 / rms
    kept += 4 * width * c.ffn_size  # gate, silu(gate), up, and their product
    return kept / share + casts


def _working(config: ModelConfig, recipe: Recipe, piece: Piece) -> int:
    """Where the backward pass is in the feed-forward of the last layer, or in the norm behind it."""
    c, width, parallel = config, WIDTHS[recipe.precision], recipe.parallel
    stream, narrow = WIDE * c.hidden_size / parallel.tensor, width if width < WIDE else 0
    feed_forward, matrix = c.ffn_size / parallel.tensor, c.hidden_size * c.ffn_size // parallel.tensor
    again, casts = {
        "none": (0.0, ()),
        "selective": (feed_forward_bytes(c, recipe) - stream, FEED_FORWARD),  # the stream is kept
        "full": (attention_bytes(c, recipe) + feed_forward_bytes(c, recipe) - stream, ALL),
    }[recipe.checkpointing]
    fixed = narrow * _linear(c, parallel, casts)
    gradients = width * feed_forward * piece.tokens
    gradients += max(gradients, WIDE * matrix)  # two of the feed-forward's width, or one and that of a matrix
    gradients += piece.tokens * (stream + narrow * c.hidden_size / parallel.tensor)  # that of the stream, and its cast
    norm = (
        _end_bytes(c, recipe, piece) + 4 * stream if piece.last else 0
    )  # the final norm's, with four of the stream's width
    return ceil(max(piece.tokens * again + gradients + fixed, piece.tokens * norm))


def _loss_kept(config: ModelConfig, recipe: Recipe, piece: Piece, passes: float) -> int:
    """Gradients of the hidden states and of the head's matrix, float32, computed in the forward pass."""
    if not piece.last:
        return 0
    return ceil(passes * (WIDE * piece.tokens * config.hidden_size + _table(config, recipe)))


def _table(config: ModelConfig, recipe: Recipe) -> int:
    """A float32 gradient of the embedding or of the head."""
    return WIDE * (config.vocab_size // recipe.parallel.tensor) * config.hidden_size


def _chunk(config: ModelConfig, recipe: Recipe, piece: Piece) -> int:
    """What the loss holds within a chunk, beside what it keeps."""
    width, rows = WIDTHS[recipe.precision], config.vocab_size // recipe.parallel.tensor
    tokens, matrix = min(recipe.loss_chunk, piece.tokens), rows * config.hidden_size
    narrow = width if width < WIDE else 0
    logits = tokens * rows
    # Two copies of a chunk's logits while their sum is taken; and before that the last chunk's, which are still there.
    summing = (2 * WIDE + (WIDE if piece.tokens > tokens else 0)) * logits
    # Logits, their gradient, and its product with the hidden states; a CPU widens that before it adds it.
    product = (WIDE + narrow) * logits + (width + (WIDE if narrow and piece.on_cpu else 0)) * matrix
    return narrow * matrix + max(summing, product)
