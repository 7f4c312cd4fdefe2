"""How a network is split over processes, and where they meet: decided and checked before anything is loaded.

The layers are split evenly by their number: with 22 layers and 4 stages they are 6, 6, 5 and 5. The first stage also has
the embedding, the last one the final norm and the output head.

The processes of one machine meet in a file of a folder that only its owner can read: no port is opened for it. A
rendezvous address opens one (torch.distributed's TCPStore), which nothing protects: whoever reaches it takes part.
TCPStore would listen on all interfaces; here it is given a socket that listens on the one address, and an address that
others can reach is refused unless that is asked for. No torch here: the command line checks its options with this.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from kiloq.core.errors import UsageError

MAX_STAGES = 64  # ours: each has connections to all others


@dataclass(frozen=True)
class StagePlan:
    """The stages that are asked for."""

    count: int  # processes; 1: no other than this
    rendezvous: str | None = None  # HOST:PORT; port 0: any free one
    anywhere: bool = False  # the rendezvous may be one that other machines can reach

    def __post_init__(self) -> None:
        if type(self.count) is not int or not 1 <= self.count <= MAX_STAGES:
            raise UsageError(f"stages is {self.count!r:.60}: it must be a whole number from 1 to {MAX_STAGES}")
        if self.rendezvous is None:
            return
        if self.count == 1:
            raise UsageError(f"rendezvous is {self.rendezvous!r:.100} and there is one stage: it takes two to meet")
        host, _ = self.address()
        if not self.loopback and not self.anywhere:
            raise UsageError(
                f"rendezvous {self.rendezvous!r:.100} is {host}, which others can reach, and torch.distributed lets "
                "everyone in: take 127.0.0.1, or say --rendezvous-anywhere on a network that is only yours"
            )

    @property
    def loopback(self) -> bool:
        """Whether nobody outside this machine can take part."""
        return self.rendezvous is None or ipaddress.ip_address(self.address()[0]).is_loopback

    def address(self) -> tuple[str, int]:
        """The rendezvous as a numeric address, resolved once, and a port."""
        host, colon, port = str(self.rendezvous).rpartition(":")
        if not colon or not port.isdecimal() or not port.isascii() or int(port) > 65535 or not host:
            raise UsageError(f"rendezvous is {self.rendezvous!r:.100}: write HOST:PORT, such as 127.0.0.1:29500")
        try:
            found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0][4]
        except (OSError, UnicodeError):
            raise UsageError(
                f"rendezvous {self.rendezvous!r:.100}: there is no such host here: use 127.0.0.1"
            ) from None
        return str(found[0]).partition("%")[0], int(port)

    def listen(self) -> socket.socket:
        """A socket that listens at the rendezvous and nowhere else. Raises UsageError where it cannot."""
        host, port = self.address()
        made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((host, port))
            made.listen(MAX_STAGES)
        except OSError as error:
            made.close()
            raise UsageError(
                f"cannot listen at rendezvous {self.rendezvous} ({error.strerror}): choose another port, or leave it out"
            ) from None
        return made

    def check_engine(self, engine: str) -> None:
        """Raises UsageError where another engine than PyTorch is asked for together with stages."""
        if self.count > 1 and engine == "native":
            raise UsageError(
                f"stages is {self.count} and engine is native, which runs in one process: leave engine out, or stages"
            )

    def places(self, device: str, gpus: int) -> list[str]:
        """The torch device of each stage, given the kind of device and how many GPUs there are."""
        kind, _, first = device.partition(":")
        if kind == "cpu":
            return ["cpu"] * self.count
        begin = int(first or 0)
        if kind != "cuda" or gpus - begin < self.count:
            found = f"{gpus - begin} GPUs from {device} on" if kind == "cuda" else f"device {device}"
            raise UsageError(
                f"stages is {self.count} and there is {found}: each stage needs a GPU of its own, or device cpu for all"
            )
        return [f"cuda:{begin + stage}" for stage in range(self.count)]


@dataclass(frozen=True)
class Share:
    """What one stage has of the network: layers [begin, end), and the ends where it is the first or the last."""

    stage: int  # from 0
    stages: int
    begin: int
    end: int

    @property
    def first(self) -> bool:
        """Whether it has the embedding."""
        return self.stage == 0

    @property
    def last(self) -> bool:
        """Whether it has the final norm and the output head."""
        return self.stage == self.stages - 1

    def __str__(self) -> str:
        return f"stage {self.stage + 1} of {self.stages} (layers {self.begin} to {self.end - 1})"


def shares(layers: int, stages: int) -> list[Share]:
    """An even split by number of layers; the first stages have the ones that are left over."""
    if not 2 <= stages <= layers:
        raise UsageError(f"stages is {stages} and the model has {layers} layers: give 2 to {layers}, or leave it out")
    size, more = divmod(layers, stages)
    starts = [stage * size + min(stage, more) for stage in range(stages + 1)]
    return [Share(stage, stages, starts[stage], starts[stage + 1]) for stage in range(stages)]
