"""A load generator for servers with OpenAI's chat completions, ours or others: what clients see under load.

Closed loop: so many clients, each sends its next request when its last is answered. Open loop: requests come at random
moments (Poisson) at a given rate, whether the server keeps up or not. Times are taken by the client, of every token's
arrival: to the first token, between tokens, to the end. Goodput counts the requests that kept both limits of time.

Plain asyncio sockets: an HTTP client that does more would be measured with the server, on the same cores.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Load:
    """What is sent."""

    url: str  # of the server, without /v1
    model: str
    prompts: Sequence[str]
    max_tokens: int
    concurrency: int = 1  # closed loop
    rate: float = 0.0  # requests a second; above 0: open loop
    key: str | None = None
    ignore_eos: bool = True  # answers of equal length, where the server knows the field
    first_s: float = 1.0  # limits of goodput: to the first token
    between_s: float = 0.1  # and between tokens, on average


@dataclass
class Seen:
    """One request as its client saw it."""

    began_s: float
    arrivals_s: list[float] = field(default_factory=list)  # of events with text
    tokens: int = 0
    ended_s: float = 0.0
    error: str | None = None
    text: str = ""


async def run(load: Load) -> tuple[list[Seen], float]:
    """Sends all prompts; gives what was seen, and the seconds that all of it took."""
    began = time.perf_counter()
    if load.rate > 0:
        tasks = []
        for prompt in load.prompts:
            tasks.append(asyncio.create_task(_one(load, prompt)))
            await asyncio.sleep(random.expovariate(load.rate))
        return list(await asyncio.gather(*tasks)), time.perf_counter() - began
    waiting = list(reversed(load.prompts))
    seen: list[Seen] = []

    async def client() -> None:
        while waiting:
            seen.append(await _one(load, waiting.pop()))

    await asyncio.gather(*(client() for _ in range(load.concurrency)))
    return seen, time.perf_counter() - began


async def _one(load: Load, prompt: str) -> Seen:
    body: dict[str, Any] = {
        "model": load.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": load.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if load.ignore_eos:
        body["ignore_eos"] = True
    seen = Seen(time.perf_counter())
    try:
        await _exchange(load, json.dumps(body).encode(), seen)
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        seen.error = type(error).__name__
    seen.ended_s = time.perf_counter()
    return seen


async def _exchange(load: Load, body: bytes, seen: Seen) -> None:
    address = urlsplit(load.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port or 80, limit=1 << 20)
    try:
        key = f"Authorization: Bearer {load.key}\r\n" if load.key else ""
        writer.write(
            f"POST {address.path}/v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\n{key}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            + body
        )
        status = (await reader.readline()).split()
        if len(status) < 2 or status[1] != b"200":
            seen.error = f"status {status[1].decode() if len(status) > 1 else 'none'}"
            return
        async for line in reader:
            if line.startswith(b"data: {"):
                _note(json.loads(line[6:]), seen)
            elif line.startswith((b"data: [DONE]", b"data:[DONE]")):
                return
        seen.error = seen.error or "the stream broke off"
    finally:
        writer.close()


def _note(chunk: dict[str, Any], seen: Seen) -> None:
    if "error" in chunk:
        seen.error = "an error in the stream"
    for choice in chunk.get("choices") or ():
        if text := (choice.get("delta") or {}).get("content"):
            seen.arrivals_s.append(time.perf_counter())
            seen.text += text
    if usage := chunk.get("usage"):
        seen.tokens = int(usage["completion_tokens"])


def report(load: Load, seen: Sequence[Seen], seconds: float) -> dict[str, Any]:
    """The figures, seconds all of them."""
    good = [one for one in seen if one.error is None and one.arrivals_s]
    first = [one.arrivals_s[0] - one.began_s for one in good]
    between = [b - a for one in good for a, b in zip(one.arrivals_s, one.arrivals_s[1:], strict=False)]
    kept = [
        one
        for one in good
        if one.arrivals_s[0] - one.began_s <= load.first_s
        and (one.arrivals_s[-1] - one.arrivals_s[0]) / max(1, one.tokens - 1) <= load.between_s
    ]
    errors: dict[str, int] = {}
    for one in seen:
        if one.error is not None:
            errors[one.error] = errors.get(one.error, 0) + 1
    tokens = sum(one.tokens or len(one.arrivals_s) for one in good)
    return {
        "requests": len(seen),
        "answered": len(good),
        "errors": errors,
        "seconds": round(seconds, 3),
        "tokens": tokens,
        "tokens_per_s": round(tokens / seconds, 2),
        "requests_per_s": round(len(good) / seconds, 3),
        "goodput_requests_per_s": round(len(kept) / seconds, 3),
        "time_to_first_token_s": percentiles(first),
        "inter_token_s": percentiles(between),
        "end_to_end_s": percentiles([one.ended_s - one.began_s for one in good]),
    }


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p95 and p99, by the nearest rank."""
    ordered = sorted(values)
    return {
        f"p{p}": round(ordered[min(len(ordered) - 1, -(-len(ordered) * p // 100) - 1)], 5) if ordered else None
        for p in PERCENTILES
    }


def make_prompts(count: int, words: int, shared: float, seed: int = 0) -> list[str]:
    """Prompts of so many words, of which a share at the beginning is the same in all of them."""
    source = random.Random(seed)
    stock = [
        "time",
        "water",
        "people",
        "garden",
        "number",
        "market",
        "paper",
        "letter",
        "river",
        "music",
        "story",
        "winter",
        "table",
        "color",
        "engine",
        "door",
    ]
    head = [source.choice(stock) for _ in range(int(words * shared))]
    return [
        " ".join([*head, *(source.choice(stock) for _ in range(words - len(head)))]) + f" ({number}). Tell me a story."
        for number in range(count)
    ]
