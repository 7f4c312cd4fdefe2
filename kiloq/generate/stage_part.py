"""What all stages have in common: a part of the network, the caches of its layers, and the wires between processes.

A part is the reference network itself with fewer layers. Where its embedding would be, a later stage has what the stage
before it sends; an earlier stage than the last has no final norm. So the same operations run in the same order as in
one process, on the same numbers, and the logits are the same to the last bit.

The first stage keeps its caches by the same numbers and the same messages as all others.

Shapes: B rows (one), T new tokens, C hidden width, N logits wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import FileStore, Store, TCPStore  # type: ignore[attr-defined, unused-ignore]

from kiloq.convert.source import ModelSource
from kiloq.generate.load import read_state
from kiloq.generate.stage_plan import Share
from kiloq.model.cache import KVCache
from kiloq.model.network import Network

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
POOLED = -1  # as `wanted`: the mean over all positions instead of logits
FOREVER = timedelta(days=365)  # who waits too long is ended from outside, by the first process


class Piece(NamedTuple):
    """One row of a call, as all stages see it."""

    sequence: int | None  # number of its cache; None: an uncached pass
    tokens: int
    alpha: float | None  # dynamic-NTK stretch; None: that of its length
    wanted: int  # logits of so many of the last tokens, or POOLED


class LostError(Exception):
    """Another process is not there any more; who it was, the first process knows."""


class Received(nn.Module):
    """Stands where the embedding does and gives what the stage before has made of the ids."""

    x_BTC: Tensor

    def forward(self, ids_BT: Tensor) -> Tensor:
        """The hidden states [B, T, C] of these ids."""
        return self.x_BTC


class Part:
    """The layers of one stage, with the caches of all sequences."""

    def __init__(
        self, network: Network, share: Share, received: Received, *, width: int, cache_dtype: torch.dtype
    ) -> None:
        self.share = share
        self._network, self._received = network.eval(), received
        first = next(network.parameters())
        self.dtype, self.device = first.dtype, first.device
        self._width, self._vocabulary = width, network.config.vocab_size
        self._cache_dtype = cache_dtype
        self._caches: dict[int, KVCache] = {}

    @torch.inference_mode()
    def keep(self, message: Mapping[str, Any]) -> None:
        """Does what a message says about caches: forgets some, and makes one."""
        for number in message.get("drop", ()):
            self._caches.pop(number, None)
        kind = message["do"]
        if kind == "open":
            made = KVCache(self._network.config, 1, dtype=self._cache_dtype, device=self.device)
            for page in message["pages"]:
                made.append(self._caches[page])
        elif kind == "fork":
            made = self._caches[message["of"]].fork()
        elif kind == "part":
            made = self._caches[message["of"]].part(message["begin"], message["end"])
        else:
            return
        self._caches[message["new"]] = made

    @torch.inference_mode()
    def run(self, piece: Piece, given: Tensor) -> Tensor:
        """[1, T] ids, or what the stage before has sent, to what the next one needs, [1, T, C]."""
        cache = None if piece.sequence is None else self._caches[piece.sequence]
        if not self.share.first:
            self._received.x_BTC, given = given, torch.zeros(1, piece.tokens, dtype=torch.long, device=self.device)
        return self._network.hidden(given, cache=cache, alpha=None if piece.alpha is None else [piece.alpha])

    @torch.inference_mode()
    def answer(self, piece: Piece, out_1TC: Tensor) -> Tensor:
        """What the last stage sends back, float32 in the shape of `answer_shape`."""
        if piece.wanted == POOLED:
            return out_1TC[0].double().mean(0, keepdim=True).float()
        if piece.wanted:
            return self._network.head(out_1TC[:, -piece.wanted :])[0]
        return torch.zeros(self.answer_shape(piece), device=self.device)

    def answer_shape(self, piece: Piece) -> tuple[int, int]:
        """Logits [N, V] or the mean [1, C]; one number where nothing is wanted, so that nobody runs ahead."""
        if piece.wanted == POOLED:
            return 1, self._width
        return (piece.wanted, self._vocabulary) if piece.wanted else (1, 1)

    def sent_shape(self, piece: Piece) -> tuple[int, int, int]:
        """Of what goes from stage to stage."""
        return 1, piece.tokens, self._width


def load_part(
    source: ModelSource, share: Share, place: str, dtype: str, cache_dtype: str, tell: Callable[[float], None]
) -> tuple[Part, list[str]]:
    """(the part of the network that a stage runs, names of its tensors that hold NaN or infinity).

    Only the stage's own tensors are read. The last stage's head has a name of its own here, tied or not.
    """
    config = source.config
    with torch.device("meta"):
        network = Network(
            config.replace(
                num_layers=share.end - share.begin,
                windows=config.windows[share.begin : share.end],
                tied_embeddings=not share.last,
            )
        )
    received = Received()
    if not share.first:
        network.register_module("embed_tokens", received)
    if not share.last:
        network.register_module("norm", nn.Identity())
    names = _own_names(source, share)
    state, broken = read_state(source, names, torch.device(place), DTYPES[dtype], tell)
    network.load_state_dict(state, assign=True)
    network.requires_grad_(False)
    return Part(network, share, received, width=config.hidden_size, cache_dtype=DTYPES[cache_dtype]), broken


def _own_names(source: ModelSource, share: Share) -> dict[str, str]:
    """Names of parameters in the stage's network, and of the source's tensors for them."""
    names = {}
    for name in source.names():
        kind, _, rest = name.partition(".")
        if kind == "layers":
            layer, _, rest = rest.partition(".")
            if share.begin <= int(layer) < share.end:
                names[f"layers.{int(layer) - share.begin}.{rest}"] = name
        elif kind != "embed_tokens":
            if share.last:
                names[name] = name
        else:
            if share.first:
                names[name] = name
            if share.last and source.config.tied_embeddings:
                names["lm_head.weight"] = name
    return names


class Wires:
    """Tensors between processes: gloo for CPUs, NCCL for GPUs.

    A process group of its own, not torch.distributed's global one: several models may be split in one process, and
    one that trains may use the global one. Gloo listens on the address that it is given, and on no other.
    """

    def __init__(self, store: Store, share: Share, place: str, host: str) -> None:
        self.rank, self.size = share.stage, share.stages
        self._group: Any
        try:
            if place == "cpu":
                options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
                options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
                options._timeout = FOREVER
                self._group = dist.ProcessGroupGloo(store, self.rank, self.size, options)
            else:
                torch.cuda.set_device(place)
                gpus = dist.ProcessGroupNCCL.Options()
                gpus._timeout = FOREVER
                self._group = dist.ProcessGroupNCCL(store, self.rank, self.size, gpus)
        except RuntimeError as error:
            raise LostError(str(error)) from None

    def send(self, x: Tensor, to: int) -> Transfer:
        """Begins to send; tensors arrive in the order in which they were sent."""
        return self._begin(self._group.send, x.contiguous(), to)

    def receive(self, shape: tuple[int, ...], like: Part, source: int, dtype: torch.dtype | None = None) -> Transfer:
        """Begins to receive a tensor of the part's type, or another, on its device."""
        return self._begin(self._group.recv, torch.empty(shape, dtype=dtype or like.dtype, device=like.device), source)

    def _begin(self, call: Callable[..., Any], x: Tensor, other: int) -> Transfer:
        try:
            return Transfer(x, call([x], other, 0))
        except RuntimeError as error:
            raise LostError(str(error)) from None


class Transfer:
    """A tensor on its way, which stays in memory so long."""

    def __init__(self, x: Tensor, work: Any) -> None:
        self._x, self._work = x, work

    def wait(self) -> Tensor:
        """The tensor, once it has been sent or has arrived. Raises LostError where the other process is gone."""
        try:
            self._work.wait()
        except RuntimeError as error:
            raise LostError(str(error)) from None
        return self._x


def meet(where: Mapping[str, Any], *, listener: int | None = None) -> Store:
    """The store in which the processes find each other.

    where: {"file": path, "size": processes}, or {"host": address, "port": number, "size": processes}.
    listener: of the first process: its listening socket's number.
    """
    try:
        if "file" in where:
            return FileStore(where["file"], where["size"])
        return TCPStore(
            where["host"], where["port"], where["size"], listener is not None,
            wait_for_workers=False, master_listen_fd=listener,
        )  # fmt: skip
    except RuntimeError as error:
        raise LostError(str(error)) from None
