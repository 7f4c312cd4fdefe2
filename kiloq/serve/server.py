"""uvicorn, told when to stop by the service: new requests are refused while the running ones are finished.

Those that are not finished in time, or when a second signal comes, are ended by the service first, so that who waits
for them is told; uvicorn alone would cut their connections, and log a traceback for each.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn

from kiloq.core.errors import UsageError
from kiloq.serve.connection import limit
from kiloq.serve.service import Service

LAST_WORDS_S = 2  # ours; for the ends of answers that are given up


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UsageError where there can be none."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, proto)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen()  # now, and not with the first request: two servers may bind to a port, but not listen to it
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host} port {port} ({error.strerror or error}): choose another --port or --host"
        ) from None
    return made


class Server(uvicorn.Server):
    """A server whose service knows that it ends."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        limit(config)
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits for running requests, as long as the configuration allows, then ends them."""
        self._service.draining = True
        drain_s = self.config.timeout_graceful_shutdown
        if drain_s is not None:
            asyncio.get_running_loop().call_later(drain_s, self._service.give_up)
            self.config.timeout_graceful_shutdown = drain_s + LAST_WORDS_S
        await super().shutdown(sockets)
        if self.force_exit:
            self._service.give_up()
            if self.server_state.tasks:
                await asyncio.wait(self.server_state.tasks, timeout=LAST_WORDS_S)
        self._service.end()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A second signal ends it at once. uvicorn would raise the first again at the end; here an asked end is none."""
        self._service.draining = True
        self.force_exit = self.should_exit
        self.should_exit = True
