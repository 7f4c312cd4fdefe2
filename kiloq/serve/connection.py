"""One connection: uvicorn's HTTP protocol, with the limits that it lacks.

Its parser is fast and takes headers of any size: 200 MB in one of them kept a whole server busy for 44 s. Here the bytes
between two events of the parser are counted, so that neither a head nor what follows a body can grow; a head must come
within its time, and so must the rest of a body that has been answered already; a connection that says nothing is closed.
Headers behind a chunked body are let fall: they could replace those that a proxy has set. There are no websockets.
"""

from __future__ import annotations

import asyncio

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kiloq.serve.errors import ApiError
from kiloq.serve.guard import MAX_HEADER_BYTES
from kiloq.serve.stream import compact

HEAD_S = 30.0  # ours; in which a head must come


class Connection(HttpToolsProtocol):
    """See the top of the file."""

    _quiet_bytes = 0  # since the parser knew something new
    _in_message = False
    _in_head = False
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a request."""
        super().connection_made(transport)
        self._be_patient()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits no more."""
        self._end_patience()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses what came, unless it is too much."""
        if self.transport.is_closing():  # refused a moment ago
            return
        self._quiet_bytes += len(data)
        super().data_received(data)
        if not self._busy and not self.transport.is_closing():
            self._be_patient()
        if self._quiet_bytes > MAX_HEADER_BYTES:
            self._refuse(ApiError(431, f"the request's head is larger than {MAX_HEADER_BYTES} bytes: send less"))

    def on_message_begin(self) -> None:
        """A head begins."""
        self._in_message = self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; not one that comes behind the body."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._quiet_bytes, self._in_head = 0, False
        self._end_patience()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._quiet_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there."""
        self._quiet_bytes, self._in_message = 0, False
        self._end_patience()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """It is answered, perhaps before its body was there."""
        super().on_response_complete()
        if self._in_message and not self.transport.is_closing():
            self._be_patient()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets an answer in the form of all others."""
        self._refuse(ApiError(400, "this is not an HTTP request: see /openapi.json for those that are answered"))

    def _unsupported_upgrade_warning(self) -> None:
        """Who asks for another protocol is answered in this one, and nothing is logged."""

    def _be_patient(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(HEAD_S, self._too_slow)

    def _end_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _too_slow(self) -> None:
        self._patience = None
        if self._busy:  # this is about the next request, and reading is paused until this one is answered
            self._be_patient()
        elif self._in_head:
            self._refuse(ApiError(408, f"the request's head did not come within {HEAD_S:g} s: send it at once"))
        else:
            self.transport.close()

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: ApiError) -> None:
        """Ends the connection; with a word, unless an answer is being sent."""
        if self.transport.is_closing():
            return
        if not self.pipeline and not (self._busy and self.cycle.response_started):
            body = compact(error.openai()).encode()
            head = f"HTTP/1.1 {error.status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()


def limit(config: uvicorn.Config) -> None:
    """Makes a server's connections such ones."""
    config.http, config.ws = Connection, "none"
