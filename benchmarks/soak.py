"""A server under four times the load that it can take, from clients of every kind: what must hold, counted.

    python benchmarks/soak.py [--seconds 1200] [--out FILE]

Clients stream, wait, leave in the middle, send half a request, nonsense, too much, bad schemas, wrong keys, all at random
and all at once. It must hold: the server lives and serves afterwards; its memory grows by at most 5 % from the first
third to the end; refusals take at most 50 ms (95 of 100); a client that leaves gives its place in the cache back within
100 ms; and every greedy answer that was completed is the one of a server without load. Exit code 1 where one does not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import record
import servers

from kiloq.serve.load import percentiles

KEY = "the-key-of-the-soak"
CONCURRENCY, QUEUE, CACHE_GIB = 8, 16, 0.05
CLIENTS = 4 * (CONCURRENCY + QUEUE)
MOST_GROWTH, MOST_REFUSAL_S, MOST_FREEING_S = 0.05, 0.05, 0.1
QUESTIONS = [
    f"Tell me {count} facts about {what}."
    for count in ("two", "three")
    for what in ("rain", "bread", "stars", "trains")
]
ANSWER = 24


@dataclass
class Tally:
    """What has been seen."""

    outcomes: Counter[str] = field(default_factory=Counter)
    refusals_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Clients:
    """All the ways to use a server."""

    def __init__(self, url: str, seed: int) -> None:
        self.tally = Tally()
        self.expected: dict[str, str] = {}
        self._address = urlsplit(url)
        self._random = random.Random(seed)

    async def ask(self, question: str, *, stream: bool) -> tuple[int, str]:
        """The status, and the text of the answer or the body of the refusal."""
        status, body = await self._exchange(self._body(question, stream=stream))
        if status != 200:
            return status, body.decode("utf-8", "replace")
        if not stream:
            return status, str(json.loads(body)["choices"][0]["message"]["content"])
        text = ""
        for line in body.decode().splitlines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    return 500, line
                text += "".join((choice["delta"].get("content") or "") for choice in chunk["choices"])
        return status, text

    async def one(self) -> None:
        """Something at random."""
        ways: list[tuple[int, str, Callable[[], Awaitable[str]]]] = [
            (6, "stream", lambda: self._answered(True)), (4, "whole", lambda: self._answered(False)),
            (4, "leave", self._leave), (1, "half", self._half), (3, "nonsense", self._nonsense), (1, "intruder", self._intruder),
        ]  # fmt: skip
        _, name, way = self._random.choices(ways, [weight for weight, _, _ in ways])[0]
        try:
            outcome = await asyncio.wait_for(way(), 120)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            outcome = type(error).__name__
        self.tally.outcomes[f"{name}: {outcome}"] += 1

    async def _answered(self, stream: bool) -> str:
        question = self._random.choice(QUESTIONS)
        began = time.perf_counter()
        status, text = await self.ask(question, stream=stream)
        if status == 429:
            self.tally.refusals_s.append(time.perf_counter() - began)
            await asyncio.sleep(self._random.random())
        elif status == 200 and text != self.expected[question]:
            self.tally.wrong.append(f"{question} -> {text!r}")
        return str(status)

    async def _leave(self) -> str:
        reader, writer = await self._connect()
        body = self._body(self._random.choice(QUESTIONS), stream=self._random.random() < 0.7, tokens=400)
        writer.write(self._head(len(body)) + body)
        await asyncio.sleep(self._random.random() * 0.5)
        if self._random.random() < 0.5:
            await asyncio.wait_for(reader.read(100), 30)
        writer.transport.abort()
        return "left"

    async def _half(self) -> str:
        _, writer = await self._connect()
        writer.write(self._head(1000) + b'{"messages": [')
        await asyncio.sleep(self._random.random())
        writer.transport.abort()
        return "left"

    async def _nonsense(self) -> str:
        bodies: list[bytes] = [
            b"{", b"", b"[]", b'{"messages":' + b"[" * 3000, b"\xff\xfe\x00", b'{"messages":[{"role":"king","content":"x"}]}',
            self._body("word " * 20_000, stream=False), self._body("x", stream=False, n=17), self._body("x", stream=True, temperature="hot"),
            self._body("x", stream=False, response_format={"type": "json_schema", "json_schema": {"schema": {"type": "no"}}}),
            self._body("x", stream=False, logit_bias={"99999999": 5}), self._body("x", stream=False, stop=["a"] * 99),
            self._body("x", stream=False, tools=[{"type": "function", "function": {"name": "\x00"}}]), b"x" * (5 << 20),
        ]  # fmt: skip
        body = self._random.choice(bodies)
        began = time.perf_counter()
        status, _ = await self._exchange(body)
        if status != 413 and b"json_schema" not in body and len(body) < 50_000:  # those have more to do than refuse
            self.tally.refusals_s.append(time.perf_counter() - began)
        return str(status) if 400 <= status < 500 else f"{status} for {body[:60]!r}"

    async def _intruder(self) -> str:
        began = time.perf_counter()
        status, _ = await self._exchange(self._body("x", stream=False), key="wrong")
        self.tally.refusals_s.append(time.perf_counter() - began)
        return str(status)

    def _body(self, question: str, *, stream: bool, tokens: int = ANSWER, **fields: Any) -> bytes:
        body = {
            "messages": [{"role": "user", "content": question}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": stream,
        }
        return json.dumps(body | fields).encode()

    def _head(self, length: int, key: str = KEY) -> bytes:
        return (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._address.netloc}\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        ).encode()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._address.hostname, self._address.port, limit=1 << 22)

    async def _exchange(self, body: bytes, key: str = KEY) -> tuple[int, bytes]:
        reader, writer = await self._connect()
        try:
            writer.write(self._head(len(body), key) + body)
            return await self._answer(reader)
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        status = int((await reader.readline()).split()[1])
        chunked = False
        while (line := await reader.readline()) not in (b"\r\n", b""):
            chunked |= line.lower().startswith(b"transfer-encoding: chunked")
        if not chunked:
            return status, await reader.read()
        parts = []
        while size := int((await reader.readline()).strip() or b"0", 16):
            parts.append(await reader.readexactly(size))
            await reader.readline()
        return status, b"".join(parts)

    async def gauge(self, name: str) -> float:
        """One of the server's numbers."""
        reader, writer = await self._connect()
        writer.write(
            f"GET /metrics HTTP/1.1\r\nHost: {self._address.netloc}\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\r\n".encode()
        )
        _, page = await self._answer(reader)
        writer.close()
        return next(float(line.split()[1]) for line in page.decode().splitlines() if line.startswith(name + " "))

    async def freeing_s(self) -> float:
        """How long the cache stays in use behind a client that leaves a long answer."""
        _, writer = await self._connect()
        body = self._body("Tell me a very long story.", stream=True, tokens=1500, ignore_eos=True)
        writer.write(self._head(len(body)) + body)
        while await self.gauge("kiloq:num_requests_running") < 1:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        writer.transport.abort()
        began = time.perf_counter()
        while await self.gauge("kiloq:kv_cache_usage_perc") > 0:
            await asyncio.sleep(0.002)
        return time.perf_counter() - began


async def soak(server: servers.ServerProcess, seconds: float, seed: int) -> dict[str, Any]:
    """The figures."""
    clients = Clients(server.url, seed)
    for question in QUESTIONS:
        status, clients.expected[question] = await clients.ask(question, stream=False)
        assert status == 200, clients.expected[question]
    end = time.monotonic() + seconds
    resident: list[int] = []

    async def client() -> None:
        while time.monotonic() < end and server.alive():
            await clients.one()

    async def watch() -> None:
        while time.monotonic() < end:
            await asyncio.sleep(seconds / 60)
            resident.append(server.resident_bytes())

    await asyncio.gather(watch(), *(client() for _ in range(CLIENTS)))
    while await clients.gauge("kiloq:num_requests_running") + await clients.gauge("kiloq:num_requests_waiting"):
        await asyncio.sleep(0.1)
    after = [await clients.ask(question, stream=True) for question in QUESTIONS]
    tally, third = clients.tally, len(resident) // 3
    return {
        "seconds": seconds,
        "clients": CLIENTS,
        "alive": server.alive(),
        "outcomes": dict(sorted(tally.outcomes.items())),
        "wrong_answers": tally.wrong[:10],
        "right_afterwards": all(text == clients.expected[q] for q, (_, text) in zip(QUESTIONS, after, strict=True)),
        "resident_bytes": {"first_third": max(resident[: third or 1]), "end": resident[-1]},
        "growth": resident[-1] / max(resident[: third or 1]) - 1,
        "refusals": len(tally.refusals_s),
        "refusal_s": percentiles(tally.refusals_s),
        "freeing_s": sorted([await clients.freeing_s() for _ in range(5)]),
        "blocks_in_use": await clients.gauge("kiloq:kv_cache_usage_perc"),
    }


def verdicts(figures: dict[str, Any], *, timed: bool = True) -> list[str]:
    """A sentence for everything that does not hold; timed: of times and memory, too."""
    failures = sum(count for name, count in figures["outcomes"].items() if ": 5" in name and ": 503" not in name)
    checks = {
        "the server has ended": figures["alive"],
        f"{failures} answers were server errors": failures == 0,
        f"answers differ from those without load: {figures['wrong_answers']}": not figures["wrong_answers"],
        "answers after the load differ": figures["right_afterwards"],
        "blocks are in use while nothing runs": figures["blocks_in_use"] == 0,
    }
    if timed:
        freeing, refusal = figures["freeing_s"], figures["refusal_s"]["p95"]
        checks |= {
            f"memory grew by {figures['growth']:.1%}": figures["growth"] <= MOST_GROWTH,
            f"refusals took {refusal} s": refusal <= MOST_REFUSAL_S,
            f"freeing took {freeing} s": freeing[len(freeing) // 2] <= MOST_FREEING_S,
        }
    return [sentence for sentence, holds in checks.items() if not holds]


def main() -> int:
    """Prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1200.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--untimed", action="store_true", help="judge neither times nor memory, for shared machines")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    server = servers.kiloq(
        "smollm2", "--concurrency", str(CONCURRENCY), "--queue", str(QUEUE), "--cache", str(CACHE_GIB), "--api-key", KEY
    )
    try:
        figures = asyncio.run(soak(server, options.seconds, options.seed))
    finally:
        code = server.stop()
    figures["exit_code"] = code
    print(json.dumps(figures, indent=1))
    failed = verdicts(figures, timed=not options.untimed) + ([f"its exit code was {code}"] if code else [])
    for sentence in failed:
        print(f"DOES NOT HOLD: {sentence}")
    print(record.write("soak", figures, options.out))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
