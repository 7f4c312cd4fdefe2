"""uvicorn, told when to stop by the service: new requests are refused while the running ones are finished."""

from __future__ import annotations

import socket
from typing import Any

import uvicorn

from kiloq.core.errors import UsageError
from kiloq.serve.service import Service


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UsageError where there can be none."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, proto)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host} port {port} ({error.strerror or error}): choose another --port or --host"
        ) from None
    return made


class Server(uvicorn.Server):
    """A server whose service knows that it ends."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits for running requests, as long as the configuration allows, then ends them."""
        self._service.draining = True
        await super().shutdown(sockets)
        self._service.end()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A second signal ends it at once. uvicorn would raise the first again at the end; here an asked end is none."""
        self._service.draining = True
        self.force_exit = self.should_exit
        self.should_exit = True
