"""The model behind all dialects: what may be asked of it, and how a conversation becomes a job of the engine.

A dialect checks its own fields and hands over messages, tools and sampling; what comes back is a job whose answers give
text and tool calls, in the same way whether they are streamed or not.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from kiloq import __version__
from kiloq.chat import react
from kiloq.chat.calls import CallStart, Event, TextDelta, ToolParser
from kiloq.chat.definitions import Tool, ToolChoice, offered_tools
from kiloq.chat.hermes import HermesParser
from kiloq.chat.react_parser import ReactParser
from kiloq.core.errors import ContextError, UsageError
from kiloq.generate.arguments import conversation
from kiloq.generate.model import Model
from kiloq.generate.params import SamplingParams
from kiloq.generate.requests import Answer
from kiloq.serve.errors import not_found, unavailable
from kiloq.serve.runner import Job, Runner
from kiloq.tokenize.chatml import ChatML

MAX_CHOICES = 16  # a request's answers; ours: 16,384 have been a way to stop other servers
MAX_STOPS = 16
MAX_FORMS = 64  # that are compiled or, which takes next to nothing, wait for it (constrain.py bounds both)


@dataclass(frozen=True)
class Prompt:
    """What the model reads, and how what it writes is to be read."""

    ids: list[int]
    params: SamplingParams
    continues: bool = False
    tools: tuple[Tool, ...] = ()
    react: bool = False
    in_thought: bool = False

    def parser(self) -> ToolParser | None:
        """A fresh parser for one answer; None where all of it is text."""
        if not self.tools:
            return None
        known = frozenset(tool.name for tool in self.tools)
        return ReactParser(known, in_thought=self.in_thought) if self.react else HermesParser(known)


@dataclass
class Reader:
    """What an answer gives, as events; `calls` counts the tool calls among them."""

    answer: Answer
    parser: ToolParser | None
    single_call: bool = False  # only the first call counts
    calls: int = 0
    logprobs_read: int = 0
    ended: bool = field(default=False)

    def read(self) -> list[Event]:
        """What is new. The answer is complete once `ended`."""
        if self.ended:
            return []
        completed = self.answer.completion is not None  # asked first: what comes meanwhile is not lost
        pieces = []
        while self.answer.pieces:
            pieces.append(self.answer.pieces.popleft())
        text = "".join(pieces)
        events: list[Event]
        if self.parser is None:
            events = [TextDelta(text)] if text else []
        else:
            events = self.parser.push(text) if text else []
            if completed:
                events += self.parser.finish()
        self.calls += sum(isinstance(event, CallStart) for event in events)
        self.ended = completed
        return [e for e in events if isinstance(e, TextDelta) or not self.single_call or e.index == 0]

    @property
    def finish_reason(self) -> str:
        """OpenAI's word; `tool_calls` exactly when there are some, also where one was asked for by name."""
        assert self.answer.completion is not None
        return "tool_calls" if self.calls else str(self.answer.completion.finish_reason)


class Service:
    """One model, or the promise of one while it is loaded."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.created = int(time.time())
        self.draining = False
        self.failure: str | None = None  # why there is no model, or no longer
        self._model: Model | None = None
        self._runner: Runner | None = None
        self._compiler: Any = None
        self.embedding_turn = asyncio.Lock()
        self.form_threads = ThreadPoolExecutor(MAX_FORMS, "kiloq-forms")

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self._model is not None and not self.draining

    def begin(self, model: Model) -> None:
        """The model is loaded."""
        self._runner = Runner(model.engine)
        self._model = model
        what = f"{__version__} {model.name} {model.dtype} {model.backend} {model.config}"
        self.fingerprint = "kiloq_" + hashlib.sha256(what.encode()).hexdigest()[:16]

    def give_up(self) -> None:
        """Ends everything that still runs, and tells those who wait for it."""
        if self._runner is not None:
            self._runner.give_up(unavailable("the server is shutting down: send the request to another one"))

    def end(self) -> None:
        """Ends everything that still runs, and the engine."""
        self.draining = True
        if self._runner is not None:
            self._runner.stop()

    def compiler(self) -> Any:
        """Makes constraints for this model."""
        if self._compiler is None:
            from kiloq.generate.constrain import Compiler

            model = self.model
            self._compiler = Compiler(model.tokenizer, model.eos_ids, model.config.vocab_size)
        return self._compiler

    @property
    def model(self) -> Model:
        """The model. Raises ApiError while there is none."""
        if self.draining:
            raise unavailable("the server is shutting down: send the request to another one")
        if self.failure is not None and self._model is not None:
            raise unavailable(self.failure)
        if self.failure is not None:
            raise unavailable("the model could not be loaded: see the server's log")
        if self._model is None:
            raise unavailable("Loading model")
        return self._model

    @property
    def runner(self) -> Runner:
        """The engine's thread; only after `model` was there."""
        assert self._runner is not None
        return self._runner

    def check_name(self, name: str | None) -> str:
        """The name to answer with. Raises ApiError for a model that is not here."""
        if name is None or name in self.names:
            return name or self.names[0]
        raise not_found(f"the model {name!r:.100} is not served here: ask for {self.names[0]!r}")

    def submit(self, prompt: Prompt, constraint: Any = None) -> Job:
        """Queues a prompt."""
        return self.runner.submit(prompt.ids, prompt.params, continues=prompt.continues, constraint=constraint)

    def readers(self, prompt: Prompt, job: Job, *, single_call: bool = False) -> list[Reader]:
        """One for each answer."""
        return [Reader(answer, prompt.parser(), single_call) for answer in job.answers]

    def text_prompt(self, ids: list[int], sampling: Mapping[str, Any]) -> Prompt:
        """A raw prompt that the answer continues."""
        return Prompt(ids, self._params(ids, sampling), continues=True)

    def chat_prompt(
        self,
        messages: object,
        sampling: Mapping[str, Any],
        tools: tuple[Tool, ...] = (),
        choice: ToolChoice | None = None,
        *,
        continue_final: bool = False,
    ) -> Prompt:
        """A conversation. continue_final: the last message is the assistant's, and the model goes on in it."""
        model = self.model
        given = [_plain_roles(message) for message in conversation(messages)]
        offered = offered_tools(tools, choice) if choice is not None else tools
        if model.react and (offered or any(message.get("role") in ("tool", "function") for message in given)):
            rendered = react.render(given, offered)
            ids = self._chat_ids(rendered.messages, None, open_last=rendered.continues)
            stops = (*sampling.get("stop", ()), react.OBSERVATION)
            params = self._params(ids, {**sampling, "stop": stops})
            return Prompt(ids, params, rendered.continues, offered, True, rendered.in_thought)
        described = [tool.openai() for tool in offered] or None
        ids = self._chat_ids([_newer_calls(m) for m in given], described, open_last=continue_final)
        return Prompt(ids, self._params(ids, sampling), continue_final, offered)

    def _chat_ids(self, messages: Sequence[Mapping[str, Any]], tools: Any, *, open_last: bool) -> list[int]:
        tokenizer = self.model.tokenizer
        if not open_last:
            return tokenizer.chat(messages, tools=tools)
        if messages[-1].get("role") != "assistant":
            raise UsageError("continue_final_message is true and the last message is not the assistant's: leave it out")
        (last,) = ChatML(default_system=None).turns(messages[-1:])  # whose text may be in parts
        ids = tokenizer.chat(messages[:-1], tools=tools) if len(messages) > 1 else tokenizer.chat([], tools=tools)
        return [*ids, *tokenizer.encode(last.text or "", continues=True)]

    def _params(self, ids: Sequence[int], sampling: Mapping[str, Any]) -> SamplingParams:
        """Checked sampling; without a limit of its own an answer may fill the room that is left."""
        limit, fields = self.model.engine.max_length, dict(sampling)
        asked = fields.get("max_new_tokens")
        room = limit - len(ids)
        if room < 1 or (asked is not None and asked > room):
            answer = f" and {asked} for the answer" if asked is not None else ""
            raise ContextError(
                # litellm knows by OpenAI's own first words, and by nothing else, that a larger model would have done
                f"this model's maximum context length is {limit} tokens, and this request asks for {len(ids)} in the "
                f"prompt{answer}: shorten the messages or lower max_tokens"
            )
        fields["max_new_tokens"] = room if asked is None else asked
        if (least := fields.get("min_new_tokens", 0)) > fields["max_new_tokens"]:
            most = fields["max_new_tokens"]
            raise UsageError(f"min_tokens is {least} and the answer can have {most}: lower it, or raise max_tokens")
        return self.model.params(**fields)


def _plain_roles(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """`developer` is what newer clients call `system`."""
    return {**message, "role": "system"} if message.get("role") == "developer" else message


def _newer_calls(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Calls and results of the older API in the form of the newer one."""
    if message.get("role") == "function":
        return {**message, "role": "tool"}
    if message.get("function_call") and not message.get("tool_calls"):
        return {**message, "tool_calls": [{"type": "function", "function": message["function_call"]}]}
    return message
