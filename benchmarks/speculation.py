"""Prompt-lookup speculation on and off: the same answers, token by token, and how much sooner.

    python benchmarks/speculation.py            about five minutes; wants the machine for itself

The default model with the prompts of `speculation_tasks.py`, greedy and sampled with a seed. Copying is asked for as
one does, without a penalty on repetition and at a low temperature; elsewhere the model's own penalty stands, because
greedy answers of so small a model turn in circles without it, which would make guessing look good. A ratio is that of
tokens per second behind the first token; steps of the engine are counted too, which no neighbour on the machine moves.
Ends with 1 where answers differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import models
import record
import rounds
from peers import THREADS
from ratios import Ratio, compare, records, table
from speculation_tasks import COPYING, OTHER, Task

import kiloq
from kiloq.generate.model import Model
from kiloq.generate.records import Completion

PENALTY = 1.1  # the default model's own
SETTINGS: dict[tuple[str, bool], dict[str, Any]] = {  # how, and whether the task is copying
    ("greedy", True): {"temperature": 0.0},
    ("greedy", False): {"temperature": 0.0, "repetition_penalty": PENALTY},
    ("sampled", True): {"temperature": 0.3, "top_p": 0.9, "seed": 1},
    ("sampled", False): {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": PENALTY, "seed": 1},
}
COPYING_FLOOR, OTHER_FLOOR = 1.5, 0.97
QUICK_TOKENS = 12


class Asked:
    """One task with one way to answer it."""

    def __init__(self, model: Model, task: Task, how: str, most_tokens: int) -> None:
        self.task, self.how = task, how
        self._model = model
        talk = [{"role": "user", "content": task.prompt}]
        self._ids = model.tokenizer.chat(talk) if task.chat else model.tokenizer.encode(task.prompt)
        self._settings = SETTINGS[how, task.copies] | {"max_new_tokens": min(task.tokens, most_tokens)}

    def answer(self, guesses: bool) -> tuple[Completion, int]:
        """The answer, and the engine's steps behind the first token."""
        engine = self._model.engine
        off = {} if guesses else {"max_draft_tokens": 0}
        request = engine.submit(self._ids, self._model.params(**self._settings, **off))
        steps = 0
        while engine.step():
            steps += bool(request.answers[0].ids)
        completion = request.answers[0].completion
        assert completion is not None
        return completion, steps - 1

    def rate(self, guesses: bool) -> float:
        """Tokens per second behind the first."""
        timings = self.answer(guesses)[0].timings
        return timings.decode_tokens / timings.decode_s


def measured(asked: Asked, options: argparse.Namespace) -> tuple[Ratio, dict[str, Any]]:
    """The ratio of speeds, and what the answers are; raises SystemExit where they differ."""
    (with_guesses, fewer), (without, steps) = asked.answer(True), asked.answer(False)
    if with_guesses.ids != without.ids or with_guesses.finish_reason != without.finish_reason:
        print(f"{asked.how}, {asked.task.name}: the answers differ:\n{with_guesses.text}\n---\n{without.text}")
        raise SystemExit(1)
    slices = rounds.timed({guesses: partial(asked.rate, guesses) for guesses in (True, False)}, options)
    ratio = compare("default", asked.how, asked.task.name, "no guesses", slices[True], slices[False])
    floor = COPYING_FLOOR if asked.task.copies else OTHER_FLOOR
    facts = {"how": asked.how, "task": asked.task.name, "copies": asked.task.copies, "tokens": len(without.ids),
             "steps": steps, "steps_with_guesses": fewer, "steps_ratio": steps / max(fewer, 1),
             "settings": SETTINGS[asked.how, asked.task.copies], "answer": without.text}  # fmt: skip
    return replace(ratio, floor=floor), facts


def everything(model: Model, options: argparse.Namespace) -> Iterator[Asked]:
    """All tasks in all ways; of --quick one of each kind."""
    count, tokens = (1, QUICK_TOKENS) if options.quick else (None, sys.maxsize)
    for how in ("greedy", "sampled"):
        for task in (*COPYING[:count], *OTHER[:count]):
            yield Asked(model, task, how, tokens)


def main() -> None:
    """Measures, prints the worst first and keeps all."""
    options = rounds.parse(rounds.parser(__doc__))
    file = models.model_file("default", "int4", options.cache)
    model = kiloq.load(file, threads=THREADS)
    found, answers = [], []
    for asked in everything(model, options):
        ratio, facts = measured(asked, options)
        found.append(ratio)
        answers.append(facts)
        print(f"{asked.how:8} {asked.task.name:18} {facts['tokens']:4} tokens in {facts['steps_with_guesses']:3} steps: "
              f"{facts['steps_ratio']:.2f}x fewer, {ratio.ratio:.2f}x as fast", file=sys.stderr, flush=True)  # fmt: skip
    print(table(found))
    print(f"copying: floor {COPYING_FLOOR}; elsewhere: floor {OTHER_FLOOR}; all {len(found)} answers are equal")
    print(record.write("speculation", {"ratios": records(found), "answers": answers}, options.out))


if __name__ == "__main__":
    main()
