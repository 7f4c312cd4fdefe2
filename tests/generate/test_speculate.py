"""Guessing from repeated text changes the time of an answer and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from support import shared

import kiloq
from kiloq.generate.model import Model
from kiloq.generate.speculate import FIRST_GUESS, PromptLookup

PARROT = [7, 8, 9, 10, 11, 12, 13, 14] * 4  # a prompt that invites guesses


@pytest.fixture(scope="module", params=["fp32", "int8"])
def model(request: pytest.FixtureRequest) -> Model:
    if kiloq.native.engine() is None:
        pytest.skip("the native engine is not built")
    return kiloq.load(shared("goldens", "model", "m18b"), weights="fp32", kv=request.param, engine="native")


@pytest.mark.parametrize(
    "sampling",
    [
        dict(temperature=0),
        dict(temperature=0.2, seed=5),
        dict(temperature=1.0, seed=6, top_k=5, top_p=0.9),
        dict(temperature=0, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2),
        dict(temperature=0.3, seed=7, min_new_tokens=20, stop_ids=(3,)),
        dict(temperature=0.3, seed=8, logit_bias={5: 4.0}),
        dict(temperature=0.2, seed=9, ntk="frozen"),
        dict(temperature=0.2, seed=10, n=3),
        dict(temperature=0.2, seed=11, logprobs=2),
    ],
    ids=str,
)
def test_the_answer_is_the_same_to_the_token(model: Model, sampling: dict) -> None:
    """150 tokens from 32 cross two boundaries of dynamic NTK (64 and 128) in this model."""
    plain = model.generate(PARROT, max_new_tokens=150, max_draft_tokens=0, ignore_eos=True, **sampling)
    for most in (1, 4, 15, 64):
        guessed = model.generate(PARROT, max_new_tokens=150, max_draft_tokens=most, ignore_eos=True, **sampling)
        for one, other in zip(*(x if isinstance(x, list) else [x] for x in (plain, guessed)), strict=True):
            assert (one.ids, one.text, one.finish_reason) == (other.ids, other.text, other.finish_reason)
            assert one.logprobs == other.logprobs


def test_guesses_are_made_and_kept(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias makes the answer one token over and over: all guesses are right, and grow."""
    rows = []
    whole = model.engine.backend.step
    monkeypatch.setattr(model.engine.backend, "step", lambda given: rows.append(len(given[0].ids)) or whole(given))
    answer = model.generate(
        [5, 6, 7], max_new_tokens=120, temperature=0, ignore_eos=True, ntk="frozen", logit_bias={9: 1000.0}
    )
    assert answer.ids == (9,) * 120
    assert len(rows) < 30
    assert max(rows) > FIRST_GUESS + 1


def test_a_batch_of_guessers_equals_each_alone(model: Model) -> None:
    prompts = [PARROT, PARROT[3:], [1, 2, 3], [5] * 40]
    alone = [model.generate(p, max_new_tokens=60, temperature=0.5, seed=1, ignore_eos=True).ids for p in prompts]
    requests = [
        model.engine.submit(p, model.params(max_new_tokens=60, temperature=0.5, seed=1, ignore_eos=True))
        for p in prompts
    ]
    while model.engine.step():
        pass
    assert [request.answers[0].completion.ids for request in requests] == alone


def test_a_guess_is_what_followed_before() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 6, 7, 1, 2, 3])
    assert lookup.guess(10) == [4, 5, 6][:FIRST_GUESS]
    assert lookup.guess(2) == [4, 5]
    assert lookup.guess(0) == []
    lookup.push(99)
    assert lookup.guess(10) == []


def test_a_guesser_that_is_wrong_falls_silent_and_one_that_is_right_grows() -> None:
    text = [*range(50), 0, 1, 2]
    wrong, right = PromptLookup(text), PromptLookup(text)
    made = 0
    for _ in range(1000):
        if guess := wrong.guess(15):
            made += 1
            wrong.learn(len(guess), 0)
    assert made < 25  # 2, 4, 8 ... 64 chances pass between two of them
    for length in (3, 6, 12, 24):
        guess = right.guess(40)
        assert guess == list(range(3, 3 + length))
        right.learn(length, length)


def test_uniform_numbers_belong_to_tokens_not_to_steps(model: Model) -> None:
    """A guess that is rejected gives its number back: the next token of the answer uses it."""
    kinds = [
        model.generate(PARROT, max_new_tokens=80, temperature=1.5, seed=3, max_draft_tokens=m).ids for m in (0, 15)
    ]
    np.testing.assert_array_equal(*kinds)
