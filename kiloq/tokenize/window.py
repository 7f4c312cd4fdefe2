"""What to do when a conversation is longer than the window: ours, and exactly what the original did.

Ours (`fit`): the oldest whole turns go first; the system message and everything from the last user message on always
stay; if these alone are too long it is an error with both numbers, never a silent cut.

The original's (`qwen1_context`, `qwen1_decode`): from the newest turn back, a turn of the history stays
while system + kept + turn < max_window_size, the first that does not fit ends the walk, and the current query is not
counted. Two mistakes of its decoding are not repeated: it lost the last token of an answer cut by length, and cut
the prompt off by the length of its un-normalised text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from kiloq.core.errors import ContextError, UsageError
from kiloq.core.files import shown
from kiloq.tokenize.chatml import Message, Turn, turn_segments
from kiloq.tokenize.vocabulary import END_OF_TEXT, IM_END, IM_START

if TYPE_CHECKING:
    from kiloq.tokenize.tokenizer import Special, Tokenizer

ChatFormatName = Literal["chatml", "raw"]
DEFAULT_WINDOW_TOKENS = 6144  # the original's max_window_size: generation_config.json of Qwen-7B-Chat
RAW_STOP = "Human:"  # stops the original's raw format, beside <|endoftext|>


def fit(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    budget_tokens: int,
    *,
    tools: Sequence[Any] | None = None,
) -> tuple[list[Message], list[Message]]:
    """(kept, dropped): `messages` without its oldest turns, so that `tokenizer.chat` gives at most `budget_tokens` ids.

    A turn begins with a user message. Raises ContextError if system message and current turn do not fit.
    """
    system = [message for message in messages[:1] if message.get("role") == "system"]
    rest = list(messages[len(system) :])
    starts = [at for at, message in enumerate(rest) if message.get("role") == "user"]
    cuts = [0, *(at for at in starts if at > 0)]  # where the kept part may begin; the last one is the current turn

    def cost(cut: int) -> int:
        return len(tokenizer.chat([*system, *rest[cut:]], tools=tools))

    least = cost(cuts[-1])
    if least > budget_tokens:
        raise ContextError(
            f"the system message and the current turn take {least:,} tokens, but there is room for {budget_tokens:,}: "
            "shorten them or choose a longer context"
        )
    low, high = 0, len(cuts) - 1  # cuts[high] fits; find the first that does
    while low < high:
        middle = (low + high) // 2
        if cost(cuts[middle]) <= budget_tokens:
            high = middle
        else:
            low = middle + 1
    return [*system, *rest[cuts[high] :]], rest[: cuts[high]]


def qwen1_context(
    tokenizer: Tokenizer,
    query: str,
    history: Sequence[tuple[str, str]] = (),
    system: str = "",
    max_window_size: int = DEFAULT_WINDOW_TOKENS,
    chat_format: ChatFormatName = "chatml",
    special: Special = "none",
) -> tuple[str, list[int]]:
    """(text, ids) of the original's prompt for a query and its history of (query, answer).

    `special` is for the raw format only, where the original recognised control tokens in the query ("all").
    """
    if chat_format == "raw":
        return query, tokenizer.encode(query, special=special)
    if chat_format != "chatml":
        raise UsageError(f"the chat format is {shown(chat_format)}: it can be 'chatml' or 'raw'")
    newline = tokenizer.encode("\n")
    system_text, system_ids = _turn(tokenizer, "system", system)
    kept_text = ""
    kept_ids: list[int] = []
    for question, answer in reversed(history):
        asked_text, asked_ids = _turn(tokenizer, "user", question)
        said_text, said_ids = _turn(tokenizer, "assistant", answer)
        turn_ids = newline + asked_ids + newline + said_ids
        if len(system_ids) + len(turn_ids) + len(kept_ids) >= max_window_size:
            break
        kept_text, kept_ids = f"\n{asked_text}\n{said_text}{kept_text}", turn_ids + kept_ids
    asked_text, asked_ids = _turn(tokenizer, "user", query)
    opened = [token_id for segment in turn_segments(tokenizer, Turn("assistant", None)) for token_id in segment.ids]
    text = f"{system_text}{kept_text}\n{asked_text}\n{IM_START}assistant\n"
    return text, [*system_ids, *kept_ids, *newline, *asked_ids, *newline, *opened]


def _turn(tokenizer: Tokenizer, role: str, text: str) -> tuple[str, list[int]]:
    """A closed turn without the newline after it."""
    segments = turn_segments(tokenizer, Turn(role, text))[:-1]
    return f"{IM_START}{role}\n{text}{IM_END}", [token_id for segment in segments for token_id in segment.ids]


def qwen1_decode(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    chat_format: ChatFormatName = "chatml",
    *,
    context_length: int = 0,
    errors: Literal["replace", "ignore", "strict"] = "replace",
) -> tuple[str, str]:
    """(answer, end reason) of generated `ids` (without the prompt's), as the original words them.

    The reason is "Gen" with the stop token in quotes, or "Gen length N" where N counts `context_length` in.
    """
    reason = f"Gen length {context_length + len(ids)}"
    if chat_format == "raw":
        text = tokenizer.decode(ids, errors=errors)
        for stop in (RAW_STOP, END_OF_TEXT):
            text = text.replace(stop, "").strip()
        return text, reason
    stops = {tokenizer.id_of(IM_START), tokenizer.id_of(IM_END)}
    end = next((at for at, token_id in enumerate(ids) if token_id in stops), len(ids))
    if end < len(ids):
        reason = f"Gen {tokenizer.decode([ids[end]])!r}"
    return tokenizer.decode(ids[:end], errors=errors).strip(), reason
