"""Events of tool calls, and what they add up to."""

from __future__ import annotations

import re

from kiloq.chat.calls import CallArguments, CallStart, TextDelta, ToolCall, gather, may_be_called, new_call_id


def test_ids_have_the_form_of_openai_and_differ() -> None:
    ids = [new_call_id() for _ in range(1000)]
    assert all(re.fullmatch(r"call_[a-zA-Z0-9]{24}", each) for each in ids)
    assert len(set(ids)) == len(ids)


def test_events_add_up_to_text_and_calls() -> None:
    events = [
        TextDelta("Let me "),
        TextDelta("look."),
        CallStart(0, "call_a", "f"),
        CallArguments(0, '{"x": '),
        CallArguments(0, "1}"),
        CallStart(1, "call_b", "g"),
        CallArguments(1, "{}"),
    ]
    assert gather(events) == ("Let me look.", [ToolCall("call_a", "f", '{"x": 1}'), ToolCall("call_b", "g", "{}")])


def test_no_text_is_none_only_beside_calls() -> None:
    assert gather([]) == ("", [])
    assert gather([CallStart(0, "call_a", "f")]) == (None, [ToolCall("call_a", "f", "")])


def test_any_name_may_be_called_where_none_is_known() -> None:
    assert may_be_called("传感器", None)
    assert may_be_called("f", {"f"})
    assert not any(may_be_called(name, None) for name in ("", None, 3, ["f"], {}))
    assert not any(may_be_called(name, {"f"}) for name in ("F", "", None, ["f"]))
    assert not may_be_called("f", ())
