"""Pretraining, top to bottom: data, forward, loss, backward, clip, AdamW, schedule, log.

The step that reads like the formula is `Trainer.step`; everything else is what makes a run worth leaving alone:
evaluation, checkpoints, going on after a kill with the same bits, and steps that are not taken. The same lines run in
one process and in many: what is different there is in kiloq.train.parallel. Source: Qwen technical report, section 2.4.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kiloq.core.errors import KiloqError, UsageError
from kiloq.model.config import ModelConfig
from kiloq.model.flops import training_flops
from kiloq.model.init import drawn
from kiloq.tokenize.corpus.shards import Corpus
from kiloq.tokenize.tokenizer import Tokenizer
from kiloq.train import checkpoint, faults
from kiloq.train.batches import Batches, evaluation_rows, training_batches
from kiloq.train.checkpoint import Progress, Saver
from kiloq.train.export import open_start, values_of
from kiloq.train.metrics import Metrics, peak_memory
from kiloq.train.optimizer import rate
from kiloq.train.parallel.build import Value
from kiloq.train.parallel.engine import make_engine
from kiloq.train.parallel.world import World
from kiloq.train.plan import check_layout, planned_config
from kiloq.train.samples import continued
from kiloq.train.settings import Recipe
from kiloq.train.watchdog import Watchdog

Say = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Step:
    """What one step came to."""

    loss: float  # nats a token
    norm: float  # of the gradient, before clipping
    bad: str | None  # why it was not taken: the weights are as before


@dataclass(frozen=True)
class Evaluation:
    """Nats a token on text that is not learned from."""

    loss: float
    by_source: dict[str, float]


class Trainer:
    """One run, as this process takes part in it."""

    def __init__(self, recipe: Recipe, out: Path, world: World) -> None:
        if recipe.data is None:
            raise UsageError("recipe: has no data: give data = a folder that `kiloq tokenize corpus` wrote")
        self.recipe, self.out, self.world = recipe, out, world
        self.corpus = Corpus(recipe.data)
        held_out = recipe.held_out if recipe.evaluation is None else None
        self.batches: Batches = training_batches(
            self.corpus, recipe.sequence, recipe.seed, Path(recipe.mix) if recipe.mix else None, held_out
        )
        judged = self.corpus if recipe.evaluation is None else Corpus(recipe.evaluation)
        self.judged = evaluation_rows(judged, recipe.sequence, recipe.evaluate_sequences, held_out)
        self.config, value = first_values(recipe, self.corpus)
        check_layout(self.config, recipe, world.size)
        self.engine = make_engine(recipe, self.config, value, world)
        self.saver = Saver(out / "checkpoints", world, recipe.keep, recipe.resolved())
        self.progress = Progress()
        self.evaluation: Evaluation | None = None  # the last one of this run
        self._metrics: Metrics | None = None
        self._samples = self._sampler() if recipe.samples else None
        self._asked = False  # this process was told to stop
        self._stopping = False  # all know it, after the same step

    def run(self, say: Say) -> Progress:
        """Train to the end, or to the signal to stop; the last checkpoint then has everything."""
        for name in self.batches.left_out:
            say({"note": f"the source {name} has no sequence of {self.recipe.sequence:,} tokens and is left out"})
        self._resume(say)
        watchdog = Watchdog(self.out / "processes", self.world, self.recipe.hang_minutes * 60)
        before = signal.signal(signal.SIGTERM, self._stop)
        try:
            with watchdog.watching():
                while self.progress.step < self.recipe.steps and not self._stopping:
                    self._round(say)
                    watchdog.step()
                if self._stopping and self.progress.step < self.recipe.steps:
                    self.save()
                self.saver.finish()
        finally:
            signal.signal(signal.SIGTERM, before)
            if self._metrics is not None:
                self._metrics.close()
        return self.progress

    def _round(self, say: Say) -> None:
        """A step and what is due after it."""
        began = time.monotonic()
        found = self.step()
        row = self._row(found, time.monotonic() - began)
        judged = self._due(self.recipe.evaluate_every)
        if judged and (evaluation := self.evaluate()) is not None:
            row |= {"evaluation_loss": evaluation.loss, "evaluation_losses": evaluation.by_source}
        if judged and self._samples is not None:
            row["samples"] = self._samples()
        if self._metrics is not None:
            self._metrics.add(row)
            if judged:
                self._metrics.draw()
        say(row)
        if self.progress.bad_in_a_row >= self.recipe.max_bad_steps:
            self._go_back(say)
        elif self._due(self.recipe.save_every) and self._worth_keeping():
            self.save()

    def _due(self, every: int) -> bool:
        """Whether the step just done is one of those, or the last."""
        return self.progress.step % every == 0 or self.progress.step == self.recipe.steps

    def _worth_keeping(self) -> bool:
        """Not among bad steps, to which nobody wants to go back, but for the end."""
        return not self.progress.bad_in_a_row or self.progress.step == self.recipe.steps

    @property
    def batch(self) -> int:
        """The number of the batch that the next step learns from."""
        return self.progress.step + self.progress.passed

    def step(self) -> Step:
        """One step of the optimizer on the batch that belongs to it."""
        recipe, batch = self.recipe, self.batch
        self.engine.set_rate(rate(recipe.optimizer, self.progress.step, recipe.steps))
        tokens = recipe.batch * recipe.sequence
        here = self.engine.gradients(self.batches.rows(self._numbers(batch)), tokens)
        loss, square, stopping = self.world.sum(
            [here / self.world.ranks("tensor"), self.engine.squares(), float(self._asked)]
        )
        norm = math.sqrt(square)
        bad = faults.bad(loss, norm, self.progress, recipe.spikes)
        if bad is None:
            norm = self.engine.update(norm)
        else:
            self.engine.discard()
        faults.book(self.progress, batch, loss, norm, tokens, bad is None, recipe.spikes)
        self._stopping = stopping > 0
        return Step(loss, norm, bad)

    def _sampler(self) -> Callable[[], list[str]]:
        """What continues the recipe's prompts. Raises UsageError where that cannot be."""
        if self.world.size > 1 or self.recipe.tokenizer is None:
            raise UsageError("recipe: samples need a tokenizer and a single process: give tokenizer, or no samples")
        network, tokenizer = self.engine.networks[0], Tokenizer.load(self.recipe.tokenizer)
        return partial(continued, network, tokenizer, self.recipe.samples)

    def _numbers(self, batch: int) -> range:
        """The numbers of the sequences of a batch that this process reads."""
        here = self.recipe.batch // self.world.readers
        begin = batch * self.recipe.batch + self.world.reader * here
        return range(begin, begin + here)

    def evaluate(self) -> Evaluation | None:
        """The loss on the sequences that are kept apart; None where there are none."""
        here = [self.engine.losses(rows_BT) for rows_BT in self.judged.values()]
        alike = self.world.ranks("tensor") * self.world.readers  # processes that compute the same
        sums = dict(zip(self.judged, (total / alike for total in self.world.sum(here)), strict=True))
        tokens = {name: len(rows_BT) * self.recipe.sequence for name, rows_BT in self.judged.items()}
        if tokens:
            by_source = {name: total / tokens[name] for name, total in sums.items()}
            self.evaluation = Evaluation(sum(sums.values()) / sum(tokens.values()), by_source)
        return self.evaluation

    def save(self) -> None:
        """Begin to write a checkpoint."""
        self.saver.begin(self.engine.tensors(), self.progress)

    def _resume(self, say: Say) -> None:
        progress = self._newest(say)
        if progress is not None:
            self.progress = progress
            say({"note": f"going on after step {progress.step:,}"})
        if self.world.main:
            self.out.mkdir(parents=True, exist_ok=True)
            self._metrics = Metrics(self.out, self.progress.step, self.recipe.tensorboard)

    def _newest(self, say: Say) -> Progress | None:
        """Take the newest good checkpoint into the network and say which were not; None where there is none."""
        found, passed_over = self.world.share(checkpoint.newest_good(self.saver.folder) if self.world.main else None)
        for sentence in passed_over:
            say({"note": f"passed over: {sentence}"})
        if found is None:
            return None
        progress = checkpoint.progress_of(found)
        self.engine.load(found, progress)
        return progress

    def _go_back(self, say: Say) -> None:
        """To the newest good checkpoint, and past the data of the bad steps. Raises KiloqError where that does not help."""
        at, count = self.progress.step, self.progress.bad_in_a_row
        self.saver.finish()
        earlier = self._newest(say)
        if earlier is None:
            raise KiloqError(
                f"step {at:,}: {count} steps in a row could not be taken, and there is no checkpoint to go back to: "
                "give a lower peak_rate, or look at the documents that metrics.jsonl names"
            )
        self.progress = faults.went_back(self.progress, earlier)
        say({"note": f"{count} bad steps in a row: back to step {self.progress.step:,}, past the data of those steps"})

    def _row(self, found: Step, seconds: float) -> dict[str, Any]:
        recipe = self.recipe
        row: dict[str, Any] = {
            "step": self.progress.step,
            "loss": round(found.loss, 6),
            "norm": round(found.norm, 6),
            "rate": rate(recipe.optimizer, self.progress.step - 1, recipe.steps),
            "tokens": self.progress.tokens,
            "tokens_per_second": round(recipe.batch * recipe.sequence / seconds, 1),
            "teraflops": round(training_flops(self.config, recipe.sequence) * recipe.batch / seconds / 1e12, 4),
            "memory_gb": round(peak_memory(self.world.device) / 1e9, 3),
            "seconds_left": round(seconds * (recipe.steps - self.progress.step), 1),
        }
        if found.bad is not None and self.world.main:
            first = (self.batch - 1) * recipe.batch
            documents = self.batches.rows(range(first, first + recipe.batch)).documents
            row |= {"bad": found.bad, "documents": sorted({number for some in documents for number in some})}
        return row

    def _stop(self, number: int, frame: Any) -> None:
        self._asked = True


def first_values(recipe: Recipe, corpus: Corpus) -> tuple[ModelConfig, Value]:
    """The shape of a recipe's network, and its first values: random, or those of the model that it starts from."""
    if recipe.start is None:
        config = model_config(recipe, corpus)
        return config, partial(drawn, config=config, seed=recipe.seed)
    source = open_start(recipe.start)
    if source.config.vocab_size < corpus.vocab_size:
        raise UsageError(
            f"{recipe.start}: knows {source.config.vocab_size:,} tokens, and the corpus has ids up to "
            f"{corpus.vocab_size - 1:,}: encode it with the model's own vocabulary"
        )
    return source.config, values_of(source)


def model_config(recipe: Recipe, corpus: Corpus) -> ModelConfig:
    """The shape for the corpus' vocabulary."""
    config = planned_config(recipe, corpus.vocab_size)
    if config.vocab_size < corpus.vocab_size:
        raise UsageError(
            f"model: {recipe.model.like} has {config.vocab_size:,} rows, and the corpus {corpus.vocab_size:,} ids"
        )
    return config
