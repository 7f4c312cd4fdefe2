"""Chat templates of other models: recognised as ChatML where they are, rendered in a sandbox where they are not.

A template that writes probe conversations exactly as ChatML does is replaced by the segment builder of `chatml.py`
(its default system message is read off). Any other is rendered; to keep what people say from becoming control tokens,
a random mark is put into every control token's name that occurs in a message, and around a message's text where its
edge could complete a name together with the template's text. The rendered text is cut at the control tokens that are
left, which are the template's own, and the marks are taken out of the rest before it is encoded.
Variables as in transformers' apply_chat_template.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kiloq.core.errors import FormatError, UsageError
from kiloq.core.files import shown
from kiloq.tokenize.chatml import ROLES, ChatFormat, ChatML, Message, Segment, Turn, render, role_of
from kiloq.tokenize.vocabulary import IM_END, IM_START

if TYPE_CHECKING:
    from kiloq.tokenize.tokenizer import Tokenizer

MAX_DEPTH = 32  # of messages and tools; ours
TEMPLATE_ROLES = (*ROLES, "developer", "function")

_ASKED, _SAID = {"role": "user", "content": " Who?\n"}, {"role": "assistant", "content": "\tMe, {{ }} & <b>.  "}
_SYSTEM = {"role": "system", "content": "Be brief. "}
PROBES: tuple[list[dict[str, str]], ...] = (
    [_ASKED],
    [_SYSTEM, _ASKED],
    [_ASKED, _SAID, _ASKED],
    [_SYSTEM, _ASKED, _SAID, _ASKED, _SAID, {"role": "user", "content": ""}],
    [_ASKED, _SAID],
)


def recognise(tokenizer: Tokenizer) -> ChatFormat:
    """ChatML with its default system message, or the model's template as it is."""
    template = Template(tokenizer.vocabulary.chat_template or "", tuple(tokenizer.special_tokens))
    if {IM_START, IM_END} <= tokenizer.special_tokens.keys():
        try:
            found = _as_chatml(template, tokenizer)
        except (FormatError, UsageError):  # the template refuses a probe; it is asked again with real messages
            found = None
        if found is not None:
            return _WithTools(found, template) if "tools" in template.source else found
    return template


def _as_chatml(template: Template, tokenizer: Tokenizer) -> ChatML | None:
    asked = render([Turn("user", _ASKED["content"])])
    alone = template.render(tokenizer, [_ASKED], None, add_generation_prompt=False)
    head = alone.removesuffix(asked)
    if head == alone:
        return None
    default = re.fullmatch(f"{re.escape(IM_START)}system\n(.*){re.escape(IM_END)}\n", head, re.DOTALL)
    chatml = ChatML(default.group(1) if default else None)
    for probe in PROBES:
        turns = list(chatml.turns(probe))
        for opened in (False, True):
            expected = render([*turns, Turn("assistant", None)] if opened else turns)
            if template.render(tokenizer, probe, None, add_generation_prompt=opened) != expected:
                return None
    return chatml


# What Python raises for wrong operands, missing keys, deep recursion or too large numbers in a template.
_FAILURES = (
    ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class _WithTools:
    """A model that writes plain conversations as ChatML and has its own words for tools."""

    chatml: ChatML
    template: Template

    def segments(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Segment]:
        plain = not tools and all(m.get("role") != "tool" and not m.get("tool_calls") for m in messages)
        form: ChatFormat = self.chatml if plain else self.template
        return form.segments(tokenizer, messages, add_generation_prompt=add_generation_prompt, tools=tools)


@dataclass(frozen=True)
class Template:
    """A Jinja chat template and the names of the control tokens that only it may write."""

    source: str
    names: tuple[str, ...]

    def segments(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Segment]:
        """The segments of a conversation. Raises FormatError for a template that fails or takes too much."""
        mark = f"\ue000{secrets.randbelow(10**24):024d}\ue001"
        for message in messages:
            role_of(message, TEMPLATE_ROLES)  # a template may build a control token from the role
        marked = self._marked(list(messages), mark, MAX_DEPTH)
        tools = self._marked(list(tools), mark, MAX_DEPTH) if tools else None
        text = self.render(tokenizer, marked, tools, add_generation_prompt=add_generation_prompt)
        segments: list[Segment] = []
        for part in self._control.split(text) if self.names else [text]:
            if part in tokenizer.special_tokens:
                segments.append(Segment(part, (tokenizer.id_of(part),), control=True))
            elif plain := part.replace(mark, ""):
                segments.append(Segment(plain, tuple(tokenizer.encode(plain, continues=bool(segments)))))
        return segments

    def render(
        self, tokenizer: Tokenizer, messages: Sequence[Any], tools: Sequence[Any] | None, *, add_generation_prompt: bool
    ) -> str:
        """The text of a conversation."""
        from jinja2 import TemplateError

        from kiloq.tokenize.sandbox import Sandbox

        vocabulary = tokenizer.vocabulary
        tokens = {"bos_token": vocabulary.bos_id, "eos_token": vocabulary.eos_id, "pad_token": vocabulary.pad_id}
        variables: dict[str, Any] = {
            name: tokenizer.decode([token_id]) if token_id is not None else "" for name, token_id in tokens.items()
        }
        variables |= {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        try:
            return Sandbox(_chars(messages) + _chars(tools)).render_text(self.source, variables)
        except TemplateError as error:
            raise FormatError(f"chat template: {_sentence(error)}") from None
        except _FAILURES as error:
            raise FormatError(f"chat template: fails with {type(error).__name__}: {_sentence(error)}") from None

    @cached_property
    def _control(self) -> re.Pattern[str]:
        return re.compile("(" + "|".join(map(re.escape, sorted(self.names, key=len, reverse=True))) + ")")

    @cached_property
    def _endings(self) -> tuple[str, ...]:
        return tuple({name[at:] for name in self.names for at in range(1, len(name))})

    @cached_property
    def _beginnings(self) -> tuple[str, ...]:
        return tuple({name[:at] for name in self.names for at in range(1, len(name))})

    def _marked(self, value: Any, mark: str, depth: int) -> Any:
        """A copy of messages or tools in which no text is, or can complete, the name of a control token."""
        if depth == 0:
            raise UsageError(f"messages or tools are nested more than {MAX_DEPTH} deep")
        if isinstance(value, str):
            return self._marked_text(value, mark)
        if isinstance(value, Mapping):
            return {
                self._marked(key, mark, depth - 1): self._marked(item, mark, depth - 1) for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self._marked(item, mark, depth - 1) for item in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        raise UsageError(f"a message or tool holds a {type(value).__name__}: it can hold what JSON holds")

    def _marked_text(self, text: str, mark: str) -> str:
        if not self.names:
            return text
        text = self._control.sub(lambda found: found.group()[0] + mark + found.group()[1:], text)
        core = text.strip()
        if not core:
            return text
        at = text.index(core)
        before, after = core.startswith(self._endings), core.endswith(self._beginnings)
        return text[:at] + mark * before + core + mark * after + text[at + len(core) :]


def _chars(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_chars(key) + _chars(item) for key, item in value.items())
    return sum(map(_chars, value)) if isinstance(value, (list, tuple)) else 1


def _sentence(error: Exception) -> str:
    return shown(" ".join(str(error).split()), 200)[1:-1]
