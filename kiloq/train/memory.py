"""How many bytes one process holds while it trains, by formula: no torch, and no run.

Every term follows what the backward pass of `kiloq.model.fused` and of `kiloq.train.loss` needs, each storage once, and
tests compare it with the allocator's own count. Under bf16 autocast the residual stream stays float32 (the norms read
it), what leaves a norm and goes into a matrix product is bf16, and casts of matrices live as long as one product.
Where `tensor` shares the matrices the plain code of `kiloq.model.network` runs: there every product casts its own input
and its matrix, and autograd keeps both. FSDP2 gathers what it spreads in the type of the products, one layer after the
other, keeps what stands outside the layers gathered, and shares out gradients after every pass; only PyTorch's stages of
a pipeline keep all gathered and add up whole gradients.
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
BLOCK_ELEMENTS, PRODUCT_ELEMENTS = 1 << 19, 1 << 23  # as in kiloq.train.loss
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
    gradients: int  # so far: of the process' own share, or whole ones in a stage of a pipeline
    moments: int  # two of AdamW
    copies: int  # of matrices in the precision of their products
    gathered: int  # of FSDP2: layers put together, and gradients on their way
    activations: int  # kept for the backward pass
    working: int  # of the backward pass: a layer computed again, and gradients on their way
    loss: int  # its gradients, and the logits of a chunk

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))


def memory(config: ModelConfig, recipe: Recipe, piece: Piece) -> Memory:
    """The fullest moment: behind the layers, in the loss and on the way back out of it, in some layer, or at the end."""
    moments = [_behind_layers(config, recipe, piece), *_at_layers(config, recipe, piece)]
    if piece.last:
        moments += [_at_loss(config, recipe, piece), _behind_loss(config, recipe, piece)]
    if piece.first:
        moments.append(_at_embedding(config, recipe, piece))
    return max(moments, key=lambda one: one.total)


def _behind_layers(config: ModelConfig, recipe: Recipe, piece: Piece) -> Memory:
    """Autocast remembers every cast until it ends, whatever is checkpointed; other passes in flight have their own."""
    copies = ceil((piece.in_flight - 1) * _copies_kept(config, recipe, piece))
    if _casts_kept(recipe, piece):
        copies += WIDTHS["bf16"] * piece.layers * _linear(config, recipe.parallel, ALL)
    kept = activations(config, recipe, piece) + ceil(piece.tokens * _end_bytes(config, recipe, piece))
    return _memory(config, recipe, piece, copies, kept, 0, _loss_kept(config, recipe, piece, piece.in_flight - 1))


def _at_loss(config: ModelConfig, recipe: Recipe, piece: Piece) -> Memory:
    """Within a chunk; the hidden states behind the final norm are there as long."""
    width = WIDTHS[recipe.precision] if recipe.parallel.tensor == 1 else WIDE
    kept = activations(config, recipe, piece)
    kept += ceil(piece.tokens * (_end_bytes(config, recipe, piece) + width * config.hidden_size))
    copies = ceil(piece.in_flight * _copies_kept(config, recipe, piece))
    loss = _loss_kept(config, recipe, piece, piece.in_flight) + _chunk(config, recipe, piece)
    return _memory(config, recipe, piece, copies, kept, 0, loss)


def _behind_loss(config: ModelConfig, recipe: Recipe, piece: Piece) -> Memory:
    """The gradient of the hidden states is scaled and cast; the matrix' is cast where FSDP2 has it in bf16."""
    kept = activations(config, recipe, piece) + ceil(piece.tokens * _end_bytes(config, recipe, piece))
    copies, narrow = ceil(piece.in_flight * _copies_kept(config, recipe, piece)), _narrow(recipe)
    loss = _loss_kept(config, recipe, piece, piece.in_flight)
    loss += piece.tokens * config.hidden_size * (WIDE + narrow)
    if _spread(recipe, piece):
        loss += narrow * _table(config, recipe) // WIDE
    return _memory(config, recipe, piece, copies, kept, 0, loss)


def _at_layers(config: ModelConfig, recipe: Recipe, piece: Piece) -> Iterator[Memory]:
    """In the last layer; with FSDP2 between that and the one before, and in that; in the first, where gradients are new."""
    kept, copies = activations(config, recipe, piece), ceil(piece.in_flight * _copies_kept(config, recipe, piece))
    loss = _loss_kept(config, recipe, piece, piece.in_flight - 1) + _head_waits(config, recipe, piece)
    working, within = _working(config, recipe, piece), _gathered_within(config, recipe, piece)
    yield _memory(config, recipe, piece, copies, kept, working, loss, within)
    one = ceil(kept / (piece.in_flight * max(1, piece.layers)))  # layer's, of one pass
    travelling = _travelling(config, recipe, piece)
    if travelling and piece.layers > 1:
        stream = WIDE * piece.tokens * config.hidden_size // recipe.parallel.tensor
        between = _between(config, recipe, piece)
        yield _memory(config, recipe, piece, copies, kept - one, stream, loss, between)
        yield _memory(config, recipe, piece, copies, kept - one, working, loss, within + travelling)
    if not piece.earlier:
        left = ceil(kept * (piece.in_flight - 1) / piece.in_flight) + one
        others = replace(piece, layers=max(0, piece.layers - 1), first=False, last=False)
        found = _memory(config, recipe, piece, copies, left, working, loss, within + travelling)
        yield replace(found, gradients=WIDE * parameters_here(config, others, recipe.parallel))


def _head_waits(config: ModelConfig, recipe: Recipe, piece: Piece) -> int:
    """The gradient of the head's matrix until the layers have theirs."""
    if not piece.last:
        return 0
    if _spread(recipe, piece) and recipe.parallel.pipeline == 1:
        return WIDTHS[recipe.precision] * _table(config, recipe) // WIDE  # FSDP2 shares it out with the embedding's
    waits = (piece.first and config.tied_embeddings) or not piece.earlier
    return _table(config, recipe) if waits else 0


def _at_embedding(config: ModelConfig, recipe: Recipe, piece: Piece) -> Memory:
    """When this pass's own activations and casts are gone, but for the stream's gradient."""
    others = piece.in_flight - 1
    kept, copies = (part * others / piece.in_flight for part in (
        activations(config, recipe, piece), piece.in_flight * _copies_kept(config, recipe, piece)))  # fmt: skip
    working, gathered = WIDE * piece.tokens * config.hidden_size, 0
    if _spread(recipe, piece) and recipe.parallel.pipeline == 1:
        gathered = _reducing(config, recipe, piece)
    else:
        gathered = _gathered_within(config, recipe, piece)
        working += (2 if piece.last and config.tied_embeddings else 1) * _table(config, recipe)
    loss = _loss_kept(config, recipe, piece, others)
    return _memory(config, recipe, piece, ceil(copies), ceil(kept), working, loss, gathered, complete=True)


def _memory(
    config: ModelConfig, recipe: Recipe, piece: Piece, copies: int, kept: int, working: int, loss: int,
    gathered: int | None = None, complete: bool = False,
) -> Memory:  # fmt: skip
    """gathered: by default what FSDP2 has between layers; complete: the gradients of this pass are there."""
    parallel = recipe.parallel
    weights, gradients = WIDE * parameters_here(config, piece, parallel), 0
    if piece.earlier and parallel.pipeline > 1:
        gradients = WIDE * parameters_here(config, piece, replace(parallel, shard=1, context=1))
    elif piece.earlier or complete:
        gradients = weights
    if gathered is None:
        gathered = _gathered_outside(config, recipe, piece)
    return Memory(
        weights=weights, gradients=gradients, moments=2 * weights, copies=copies, gathered=gathered, activations=kept,
        working=working, loss=loss,
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


def _spread(recipe: Recipe, piece: Piece) -> bool:
    """Whether FSDP2 has the weights."""
    return piece.copies * recipe.parallel.shard * recipe.parallel.context > 1


def _narrow(recipe: Recipe) -> int:
    """Bytes of a cast for a matrix product, where there are casts."""
    return WIDTHS[recipe.precision] if recipe.precision != "fp32" else 0


def _casts_kept(recipe: Recipe, piece: Piece) -> bool:
    """Whether autocast makes copies of matrices that autograd keeps: in the plain code, and of float32 matrices."""
    return recipe.precision == "bf16" and recipe.parallel.tensor > 1 and not _spread(recipe, piece)


def _copies_kept(config: ModelConfig, recipe: Recipe, piece: Piece) -> int:
    """Of one pass until its backward pass: casts of matrices, not of biases, whose products are not made again."""
    if not _casts_kept(recipe, piece):
        return 0
    parts = {"none": ALL, "selective": ATTENTION, "full": ()}[recipe.checkpointing]
    return WIDTHS["bf16"] * piece.layers * _linear(config, recipe.parallel, parts, (".weight",))


def _elements(config: ModelConfig, recipe: Recipe, piece: Piece) -> tuple[int, int]:
    """Of a layer and of what stands outside the layers, gathered."""
    tensor = recipe.parallel.tensor
    layer = sum(_share(name, shape, tensor, 1) for name, shape in layer_shapes(config).items())
    return layer, sum(_share(name, shape, tensor, 1) for name, shape in _outside(config, piece))


def _gathered_outside(config: ModelConfig, recipe: Recipe, piece: Piece) -> int:
    """Of FSDP2 between two layers: what stands outside them; PyTorch's stages keep all gathered."""
    if not _spread(recipe, piece):
        return 0
    layer, outside = _elements(config, recipe, piece)
    layers = piece.layers if recipe.parallel.pipeline > 1 else 0
    return WIDTHS[recipe.precision] * (layers * layer + outside)


def _gathered_within(config: ModelConfig, recipe: Recipe, piece: Piece) -> int:
    """Of FSDP2 within a layer: that and the next one too."""
    layer, _ = _elements(config, recipe, piece)
    layers = 0 if recipe.parallel.pipeline > 1 or not _spread(recipe, piece) else min(2, piece.layers)
    return _gathered_outside(config, recipe, piece) + WIDTHS[recipe.precision] * layers * layer


def _travelling(config: ModelConfig, recipe: Recipe, piece: Piece) -> int:
    """Of FSDP2: a layer's gradient in float32, on its way while the next layer works."""
    return WIDE * _elements(config, recipe, piece)[0] if _spread(recipe, piece) else 0


def _between(config: ModelConfig, recipe: Recipe, piece: Piece) -> int:
    """Of FSDP2 behind a layer's backward pass: the next one, the gradient, our share of it, and gloo's copy."""
    whole = _travelling(config, recipe, piece)
    share = ceil(whole / (recipe.parallel.shard * recipe.parallel.context))
    ahead = 0 if recipe.parallel.pipeline > 1 else WIDTHS[recipe.precision] * whole // WIDE
    return _gathered_outside(config, recipe, piece) + ahead + whole * (2 if piece.on_cpu else 1) + share


def _reducing(config: ModelConfig, recipe: Recipe, piece: Piece) -> int:
    """Of FSDP2 when the embedding and the head have their gradients: those, their float32 copy, and our shares of it."""
    layer, outside = _elements(config, recipe, piece)
    width, spread = WIDTHS[recipe.precision], recipe.parallel.shard * recipe.parallel.context
    reduced = WIDE * (2 if piece.on_cpu else 1) * outside + ceil(WIDE * outside / spread)
    return max(2 * width * outside + WIDE * layer, (width + WIDE) * outside, reduced)


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
    """A token's, of the final norm: its input and 1 / rms; the plain one keeps the same normalised too."""
    streams = 1 if recipe.parallel.tensor == 1 else 2
    return (streams * WIDE * config.hidden_size + WIDE) / recipe.parallel.tensor if piece.last else 0.0


def _norm_bytes(config: ModelConfig, recipe: Recipe, products: int) -> float:
    """A token's, of a norm whose output goes into so many products."""
    hidden, share, width = config.hidden_size, recipe.parallel.tensor, WIDTHS[recipe.precision]
    if share == 1:
        return WIDE * hidden + WIDE + width * hidden  # the stream, 1 / rms, and what goes into the products, once
    casts = products * width * hidden if width < WIDE else WIDE * hidden  # one for each product, or shared
    return (2 * WIDE * hidden + WIDE) / share + casts  # normalised too; `tensor` gathers what goes into the products


def attention_bytes(config: ModelConfig, recipe: Recipe) -> float:
    """A token's, of the first half of a layer."""
    c, width, share = config, WIDTHS[recipe.precision], recipe.parallel.tensor
    q, k = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    kept = width * (2 * q + 2 * k)  # rotated queries and keys, values, and the output, which goes into o_proj
    kept += WIDE * c.num_heads  # logarithms of the softmax' sums
    if c.qk_norm:  # as they come, 1 / rms, and in bf16, where the plain norm runs, the same normalised
        kept += (WIDE + _narrow(recipe)) * (q + k) + WIDE * (c.num_heads + c.num_kv_heads)
    if recipe.block_diagonal:
        kept += share * width * recipe.sequence  # the mask as numbers: the kernel makes its own in every layer
    return kept / share + _norm_bytes(c, recipe, 3)


def feed_forward_bytes(config: ModelConfig, recipe: Recipe) -> float:
    """A token's, of the second half of a layer: gate, up and their product, and the norm's."""
    inner = 3 * WIDTHS[recipe.precision] * config.ffn_size / recipe.parallel.tensor
    return inner + _norm_bytes(config, recipe, 2)


def _working(config: ModelConfig, recipe: Recipe, piece: Piece) -> int:
    """Where the backward pass is in the last layer's feed-forward, or in the norm behind it."""
    c, width, parallel, narrow = config, WIDTHS[recipe.precision], recipe.parallel, _narrow(recipe)
    stream, inner = WIDE * c.hidden_size / parallel.tensor, width * c.ffn_size / parallel.tensor
    again, casts = {
        "none": (0.0, ()),
        "selective": (feed_forward_bytes(c, recipe) - stream, FEED_FORWARD),  # the stream is kept
        "full": (attention_bytes(c, recipe) + feed_forward_bytes(c, recipe) - stream, ALL),
    }[recipe.checkpointing]
    matrix = c.hidden_size * c.ffn_size // parallel.tensor
    cast = narrow * c.hidden_size / parallel.tensor  # of the stream's gradient
    # down: the gradient of its input, its matrix cast, and that one's gradient, cast to float32.
    moments = [piece.tokens * (stream + cast + inner) + (2 * narrow + WIDE) * matrix]
    moments.append(piece.tokens * (stream + 3 * inner))  # the gate: gradients of three, and a fourth for the third kept
    if parallel.tensor == 1:  # gate and up: their own gradients, that of their input, and both matrices' at once
        moments.append(piece.tokens * (stream + width * c.hidden_size - inner) + (2 * narrow + 2 * WIDE) * matrix)
    fixed = narrow * _linear(c, parallel, casts) if _casts_kept(recipe, piece) else 0
    norm = _end_bytes(c, recipe, piece) + 4 * stream if piece.last else 0
    return ceil(max(piece.tokens * again + max(moments) + fixed, piece.tokens * norm))


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
    width, narrow, rows = WIDTHS[recipe.precision], _narrow(recipe), config.vocab_size // recipe.parallel.tensor
    tokens, hidden, shared = min(recipe.loss_chunk, piece.tokens), config.hidden_size, recipe.parallel.tensor > 1
    logits = tokens * rows
    block = logits if shared or not piece.on_cpu else min(logits, max(rows, BLOCK_ELEMENTS))
    # Logits in float32 where they are not, some rows at a time, and once more where processes share the vocabulary.
    summing = ((WIDE if narrow else 0) + (WIDE if shared else 0)) * block
    product = 0
    if narrow:  # a CPU widens the product before it adds it
        part = min(rows * hidden, max(hidden, PRODUCT_ELEMENTS))
        product = (narrow + (WIDE if piece.on_cpu and piece.tokens > tokens else 0)) * part
    cast = 0 if _spread(recipe, piece) else narrow * rows * hidden  # of the matrix
    return cast + width * logits + max(summing, product, width * tokens * hidden)
