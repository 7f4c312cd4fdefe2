"""POST /v1/completions: raw prompts of text or token ids, echo, and log-probabilities of prompt and answer.

Prompts of one request are answered side by side; choice i * n + j is answer j to prompt i. With `echo` and `logprobs`
the prompt's tokens are scored too, which is what evaluations by log-likelihood ask for.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from kiloq.core.errors import UsageError
from kiloq.generate.records import TokenLogprob
from kiloq.serve.errors import ApiError
from kiloq.serve.fields import CompletionBody, inputs_of
from kiloq.serve.openai_chat import usage_of
from kiloq.serve.runner import Job
from kiloq.serve.service import Prompt, Reader, Service
from kiloq.serve.stream import DONE, PING, PING_S, event

DEFAULT_MAX_TOKENS = 16  # OpenAI's, for this endpoint
MAX_PROMPTS = 128


class TextCall:
    """One request: its prompts and jobs, and how both forms of its answer are written."""

    def __init__(self, service: Service, body: CompletionBody) -> None:
        self._service, self._body = service, body
        self._tokenizer = service.model.tokenizer  # the service refuses once it ends, but this is still answered
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._name = service.check_name(body.model)
        if body.suffix:
            raise ApiError(400, "suffix is not supported: this model only continues texts", param="suffix")
        if body.best_of not in (None, 1, body.n):
            raise ApiError(400, f"best_of is {body.best_of}: it can only be n", param="best_of")
        if body.max_tokens == 0 and not body.echo:
            raise ApiError(400, "max_tokens is 0 without echo: nothing is asked for", param="max_tokens")
        if body.echo and body.stream:
            raise ApiError(400, "echo cannot be streamed: leave one of both out", param="echo")
        self._prompts = [self._prompt(ids) for ids in self._ids()]

    def _ids(self) -> list[list[int]]:
        given = self._body.prompt
        several = inputs_of(given)
        if not 1 <= len(several) <= MAX_PROMPTS:
            raise ApiError(400, f"prompt has {len(several)} prompts: it can have 1 to {MAX_PROMPTS}", param="prompt")
        model = self._service.model
        return [model.prompt_ids(each) for each in several]

    def _prompt(self, ids: list[int]) -> Prompt:
        body, sampling = self._body, self._body.sampling()
        sampling["max_new_tokens"] = DEFAULT_MAX_TOKENS if body.max_tokens is None else max(body.max_tokens, 1)
        if body.logprobs is not None:
            sampling["logprobs"] = body.logprobs
            if body.echo:
                sampling["prompt_logprobs"] = body.logprobs
        if not ids:
            raise UsageError("the prompt is empty: give at least one token")
        return self._service.text_prompt(ids, sampling)

    async def submit(self) -> list[Job]:
        """Queues all prompts, or none."""
        jobs: list[Job] = []
        try:
            for prompt in self._prompts:
                jobs.append(self._service.submit(prompt))
        except Exception:
            for job in jobs:
                job.cancel()
            raise
        self._jobs = jobs
        self._readers = [self._service.readers(prompt, job) for prompt, job in zip(self._prompts, jobs, strict=True)]
        return jobs

    async def whole(self) -> dict[str, Any]:
        """The answers at once."""
        async with asyncio.TaskGroup() as group:
            for job in self._jobs:
                group.create_task(job.finish())
        choices = [
            self._whole_choice(place, job, reader)
            for place, (job, readers) in enumerate(zip(self._jobs, self._readers, strict=True))
            for reader in readers
        ]
        return self._shape(choices) | {"usage": self._usage()}

    async def chunks(self) -> AsyncIterator[bytes]:
        """The answers in events: of one prompt after the other, all of which are being answered meanwhile."""
        try:
            for place, (job, readers) in enumerate(zip(self._jobs, self._readers, strict=True)):
                async for new in job.updates(PING_S):
                    if not new:
                        yield PING
                        continue
                    for reader in readers:
                        if (chunk := self._chunk(place, reader)) is not None:
                            yield event(chunk)
        finally:
            for job in self._jobs:
                job.cancel()
        if self._body.stream_options and self._body.stream_options.include_usage:
            yield event(self._shape([]) | {"usage": self._usage()})
        yield DONE

    def _chunk(self, place: int, reader: Reader) -> dict[str, Any] | None:
        if reader.ended:
            return None
        text = "".join(getattr(made, "text", "") for made in reader.read())
        new = reader.answer.logprobs[reader.logprobs_read :]
        if not text and not reader.ended:
            return None
        reader.logprobs_read += len(new)
        finish = reader.finish_reason if reader.ended else None
        logprobs = self._logprobs(list(new)) if self._body.logprobs is not None else None
        return self._shape([self._choice(place, reader, text, logprobs, finish)])

    def _whole_choice(self, place: int, job: Job, reader: Reader) -> dict[str, Any]:
        body, answer = self._body, reader.answer
        reader.read()
        text, entries = answer.text, list(answer.logprobs)
        finish = reader.finish_reason
        if body.max_tokens == 0:
            text, entries, finish = "", [], "length"
        before: list[TokenLogprob] = []
        if body.echo:
            prompt = list(job.request.prompt)
            text = self._tokenizer.decode(prompt) + text
            first = TokenLogprob(prompt[0], self._tokenizer.token_bytes(prompt[0]), 0.0)
            before = [first, *job.request.prompt_logprobs]
        shape = self._logprobs(entries, before) if body.logprobs is not None else None
        return self._choice(place, reader, text, shape, finish)

    def _choice(
        self, place: int, reader: Reader, text: str, logprobs: dict[str, Any] | None, finish: str | None
    ) -> dict[str, Any]:
        index = place * (self._body.n or 1) + reader.answer.index
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, entries: Sequence[TokenLogprob], prompt: Sequence[TokenLogprob] = ()) -> dict[str, Any]:
        """OpenAI's older shape. The first token of a prompt has no probability."""
        every = [*prompt, *entries]
        blank = 1 if prompt else 0
        offset, offsets = 0, []
        for entry in every:
            offsets.append(offset)
            offset += len(entry.token_bytes.decode("utf-8", errors="ignore"))
        return {
            "tokens": [_shown(entry) for entry in every],
            "token_logprobs": [None] * blank + [entry.logprob for entry in every[blank:]],
            "top_logprobs": [None] * blank + [{_shown(o): o.logprob for o in e.top} for e in every[blank:]],
            "text_offset": offsets,
        }

    def _shape(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._name,
            "system_fingerprint": self._service.fingerprint,
            "choices": choices,
        }

    def _usage(self) -> dict[str, Any]:
        total: dict[str, Any] = {}
        for job in self._jobs:
            for name, value in usage_of(job.request).items():
                if isinstance(value, int):
                    total[name] = total.get(name, 0) + value
        return total


def _shown(entry: TokenLogprob) -> str:
    """A token as text; as OpenAI writes it, where it is a part of a character."""
    try:
        return entry.token_bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in entry.token_bytes)
