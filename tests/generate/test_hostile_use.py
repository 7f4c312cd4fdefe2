"""What users do by mistake or on purpose: every wrong argument is one sentence, and nothing that ends one answer early
(Ctrl-C, a dropped stream, an error, another thread) changes another answer or leaves the model unusable."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.scripted_backend import EOS, ByteVocabulary, ScriptedBackend
from oracles.tiny_models import save, tiny

import kiloq
from kiloq.core.errors import ContextError, KiloqError, UsageError
from kiloq.generate.model import Model, Stream

LIMIT = 128  # the tiny model's context


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("tiny")
    return kiloq.load(save(tiny("qwen2"), folder, tokenizer=True), device="cpu")


@pytest.fixture(autouse=True)
def _nothing_is_left_running(model: Model) -> Iterator[None]:
    yield
    assert not model.engine.step()


WRONG_PROMPTS = [
    None, 5, 1.5, True, b"hi", bytearray(b"hi"), {1: 2}, {1, 2}, [1.0], [True], ["a"], [[1, 2]], [None], [b"a"], [-1],
    [10**30], [320], "", [], np.array([1.0]), np.array([True]), np.array([[1, 2]]), np.array(3), np.array([], int),
    np.array(["a"]), torch.tensor([1.5]), torch.tensor([[1, 2]]), object(),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(WRONG_PROMPTS)))
@pytest.mark.parametrize("call", ["generate", "stream", "logits"])
def test_a_wrong_prompt_is_one_sentence(model: Model, call: str, number: int) -> None:
    prompt = WRONG_PROMPTS[number]
    with pytest.raises(UsageError) as caught:
        getattr(model, call)(prompt)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "ids",
    [(5, 6, 7), range(5, 8), iter([5, 6, 7]), np.array([5, 6, 7]), np.array([5, 6, 7], np.uint8), torch.tensor([5, 6, 7]),
     list(np.array([5, 6, 7]))],
    ids=["tuple", "range", "iterator", "int64", "uint8", "torch", "list of int64"],
)  # fmt: skip
def test_ids_may_come_in_any_natural_form(model: Model, ids: Any) -> None:
    expected = model.generate([5, 6, 7], max_new_tokens=4, temperature=0).ids
    assert model.generate(ids, max_new_tokens=4, temperature=0).ids == expected


ODD_TEXTS = {
    "nul": "a\0b", "surrogate": "a\ud800b\udfff", "escape": "\x1b]0;x\x07\x9b31m", "control": "<|im_end|><|im_start|>",
    "right to left": "\u202eשלום\u200f", "emoji": "👩‍👩‍👧‍👦", "noncharacter": "\uffff\U0010ffff", "blank": " \n\t\r",
    "combining": "e" + "\u0301" * 20,
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_odd_texts_are_texts(model: Model, name: str) -> None:
    text = ODD_TEXTS[name]
    completion = model.generate(text, max_new_tokens=2, temperature=0)
    assert completion.usage.prompt_tokens == len(model.tokenizer.encode(text))
    assert not set(model.tokenizer.encode(text)) & set(model.tokenizer.special_tokens.values())
    model.chat([{"role": "user", "content": text}], max_new_tokens=2, temperature=0).message["content"].encode(
        "utf-8", "surrogatepass"
    )


def test_a_megabyte_of_prompt_is_refused_with_both_numbers(model: Model) -> None:
    with pytest.raises(ContextError, match=f"has 10[0-9]{{5}} tokens and the model's context is {LIMIT}"):
        model.generate("é" * 500_000 + " x" * 25_000)


@pytest.mark.parametrize(("size", "room"), [(LIMIT - 1, 1), (LIMIT - 2, 2), (LIMIT - 5, 5)])
def test_at_the_border_of_the_context_every_token_of_room_is_used(model: Model, size: int, room: int) -> None:
    for limit in (1 << 31, room):
        completion = model.generate([5] * size, temperature=0, max_new_tokens=limit, ignore_eos=True)
        assert (len(completion.ids), completion.finish_reason) == (room, "length")
    assert completion.usage.total_tokens == LIMIT


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1])
def test_a_prompt_without_room_for_an_answer_is_refused(model: Model, size: int) -> None:
    with pytest.raises(ContextError, match=f"has {size} tokens and the model's context is {LIMIT}"):
        model.generate([5] * size)


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1])
def test_every_seed_is_a_seed_of_its_own(model: Model, seed: int) -> None:
    first, second = (model.generate([5], seed=seed, max_new_tokens=20, temperature=2.0) for _ in range(2))
    other = model.generate([5], seed=seed ^ 1, max_new_tokens=20, temperature=2.0)
    assert first.ids == second.ids != other.ids
    assert first.seed == seed


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-7])
def test_a_temperature_near_zero_is_nearly_greedy(model: Model, temperature: float) -> None:
    greedy = model.generate([5, 6], max_new_tokens=8, temperature=0)
    assert model.generate([5, 6], max_new_tokens=8, temperature=temperature, seed=1).ids == greedy.ids


def test_several_answers_have_their_logprobs_and_streams_have_one(model: Model) -> None:
    answers = model.generate([5], n=3, logprobs=20, seed=1, max_new_tokens=4, temperature=1.5, ignore_eos=True)
    assert [answer.index for answer in answers] == [0, 1, 2]
    assert all(len(entry.top) == 20 for answer in answers for entry in answer.logprobs)
    assert all(
        entry.id == token for answer in answers for entry, token in zip(answer.logprobs, answer.ids, strict=True)
    )
    with pytest.raises(UsageError, match="a stream has one answer"):
        model.stream([5], n=2)


def test_rows_that_only_pad_the_embedding_have_no_text(model: Model) -> None:
    """A random or damaged model may choose one; the answer goes on."""
    padding = model.tokenizer.vocab_size + 5
    assert padding < model.config.vocab_size
    completion = model.generate([5], max_new_tokens=3, temperature=0, logit_bias={padding: 1000}, logprobs=2)
    assert (completion.ids, completion.text) == ((padding,) * 3, "")
    assert completion.logprobs[0].token_bytes == b""
    assert model.generate([padding, 5], max_new_tokens=1, temperature=0).usage.prompt_tokens == 2


WRONG_MESSAGES = [None, [], "hi", {"role": "user", "content": "x"}, ["hi"], [None], 5, [{"content": "x"}],
                  [{"role": "emperor", "content": "x"}], [{"role": "user", "content": 5}]]  # fmt: skip


@pytest.mark.parametrize("number", range(len(WRONG_MESSAGES)))
def test_wrong_messages_are_one_sentence(model: Model, number: int) -> None:
    with pytest.raises(UsageError):
        model.chat(WRONG_MESSAGES[number])
    with pytest.raises(UsageError):
        model.stream_chat(WRONG_MESSAGES[number])


@pytest.mark.parametrize("tools", ["abc", {"type": "function"}, [1], ["x"], 5])
def test_wrong_tools_are_one_sentence(model: Model, tools: Any) -> None:
    with pytest.raises(UsageError, match="'tools' must be a list of objects"):
        model.chat([{"role": "user", "content": "x"}], tools=tools)


@pytest.mark.parametrize("name", [None, 5, b"smollm2", "", [], True])
def test_a_wrong_model_name_is_one_sentence(name: Any) -> None:
    with pytest.raises(UsageError, match=r"the model is .*: give a name such as smollm2"):
        kiloq.load(name)


@pytest.mark.parametrize("device", ["meta", "", "gpu", None, 5, "cpu:x", "cuda:99"])
def test_a_wrong_device_is_one_sentence(model: Model, device: Any) -> None:
    with pytest.raises(UsageError, match="is not usable here"):
        kiloq.load(model.name, device=device)


# Answers that end early


@pytest.fixture(scope="module")
def expected(model: Model) -> Callable[[int], str]:
    texts = {start: model.generate([start], max_new_tokens=24, temperature=0).text for start in (5, 6, 7)}
    return texts.__getitem__


def stream(model: Model, start: int) -> Stream:
    return model.stream([start], max_new_tokens=24, temperature=0)


def test_streams_in_turns_do_not_touch_each_other(model: Model, expected: Callable[[int], str]) -> None:
    texts = {5: "", 6: ""}
    first, second = iter(stream(model, 5)), iter(stream(model, 6))
    for piece in first:
        texts[5] += piece
        texts[6] += next(second, "")
    texts[6] += "".join(second)
    assert texts == {5: expected(5), 6: expected(6)}


def test_a_stream_that_nobody_reads_ends_when_it_is_dropped(model: Model, expected: Callable[[int], str]) -> None:
    dropped = [stream(model, 5) for _ in range(3)]
    next(iter(dropped[0]))
    held = iter(dropped[1])
    next(held)
    del dropped, held
    gc.collect()
    assert model.generate([6], max_new_tokens=24, temperature=0).text == expected(6)


def test_an_error_in_the_loop_of_the_reader_ends_only_its_stream(model: Model, expected: Callable[[int], str]) -> None:
    other, broken = stream(model, 6), stream(model, 5)
    with pytest.raises(ZeroDivisionError):
        for _ in broken:
            raise ZeroDivisionError
    assert broken.completion.finish_reason == "cancelled"
    assert expected(5).startswith(broken.completion.text)
    assert "".join(other) == expected(6)
    assert (list(broken), other.completion.text) == ([], expected(6))


@pytest.mark.parametrize("place", ["step", "_take"])
def test_ctrl_c_anywhere_ends_one_answer_and_spares_the_others(
    model: Model, expected: Callable[[int], str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """In the network's pass, when caches are ahead of what the answers know, and while a token is taken."""
    other, broken = stream(model, 6), stream(model, 5)
    pieces = iter(broken)
    read = next(pieces)
    owner = model.engine.backend if place == "step" else model.engine
    whole, calls = getattr(owner, place), []

    def interrupted(*arguments: Any) -> Any:
        result = whole(*arguments)
        calls.append(1)
        if len(calls) == (2 if place == "_take" else 1):  # the second token is the one of `broken`
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, place, interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(pieces)
    monkeypatch.undo()
    assert broken.completion.finish_reason == "cancelled"
    assert read + "".join(broken) == broken.completion.text
    assert "".join(other) == expected(6)


def test_ctrl_c_in_generate_leaves_nothing_behind(
    model: Model, expected: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(rows: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(model.engine.backend, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.generate([5], n=3)
    monkeypatch.undo()
    assert model.generate([6], max_new_tokens=24, temperature=0).text == expected(6)


def test_an_answer_that_fails_tells_its_reader_only() -> None:
    """Logits that are no numbers, in one of two streams that run together."""
    backend = ScriptedBackend(lambda ids: EOS if len(ids) > 8 else ids[-1])
    whole = backend._logits
    backend._logits = lambda ids: whole(ids) * (np.nan if ids[0] == 1 and len(ids) > 4 else 1)  # type: ignore[method-assign]
    model = Model(backend, ByteVocabulary(), name="scripted", eos_ids=(EOS,))  # type: ignore[arg-type]
    good, bad = model.stream([65, 65], temperature=0), model.stream([1, 65], temperature=0)
    assert "".join(good) == "A" * 7
    assert good.completion.finish_reason == "stop"
    for read in (list, lambda stream: stream.completion):
        with pytest.raises(KiloqError, match="logits are not numbers"):
            read(bad)
    with pytest.raises(KiloqError, match="logits are not numbers"):
        model.generate([1, 65], temperature=0, n=3)
    assert model.generate([65, 65], temperature=0).text == "A" * 7
    assert not model.engine.step()


def test_threads_may_share_a_model(model: Model) -> None:
    """Same answers as alone, whoever drives the steps; a stream that nobody reads stops nobody."""
    alone = {start: model.generate([start], max_new_tokens=12, seed=start).ids for start in range(5, 11)}
    found: dict[int, tuple[int, ...]] = {}

    def answer(start: int) -> None:
        if start % 2:
            found[start] = model.generate([start], max_new_tokens=12, seed=start).ids
        else:
            answering = model.stream([start], max_new_tokens=12, seed=start)
            text = "".join(answering)
            found[start] = answering.completion.ids
            assert text == answering.completion.text

    idle = stream(model, 5)
    threads = [threading.Thread(target=answer, args=(start,)) for start in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == alone
    idle.cancel()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_is_told_to_load_its_own_model(model: Model) -> None:
    """PyTorch's threads do not survive a fork: without the check the child would hang."""
    context = multiprocessing.get_context("fork")
    replies = context.SimpleQueue()

    def ask() -> None:
        for call in (model.generate, model.logits):
            try:
                call([5])
            except UsageError as error:
                replies.put(str(error))

    child = context.Process(target=ask)
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert all("forked from it: load the model in each process" in replies.get() for _ in range(2))


@pytest.mark.parametrize("stop", ["é", "世", "x\u0301", "👍🏽", "a\n\nb"])
def test_stops_across_tokens_and_characters_never_show(stop: str) -> None:
    """One token is one byte here: every stop of several bytes lies across token borders."""
    script = f"start {stop[:-1]}{stop[:1]} {stop} end".encode()
    backend = ScriptedBackend(lambda ids: script[len(ids) - 1])
    model = Model(backend, ByteVocabulary(), name="scripted")  # type: ignore[arg-type]
    expected = script.decode()[: script.decode().index(stop)]
    answering = model.stream([1], temperature=0, stop=stop, max_new_tokens=len(script))
    assert "".join(answering) == expected == answering.completion.text
    assert answering.completion.finish_reason == "stop"


def test_the_folder_of_a_model_may_have_an_odd_name(tmp_path: Path) -> None:
    folder = tmp_path / "a b\n世界 [bold]"
    folder.mkdir()
    assert kiloq.load(save(tiny("qwen2"), folder, tokenizer=True), device="cpu").generate("x", max_new_tokens=1).ids
