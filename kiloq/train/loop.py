"""Pretraining, top to bottom: data, forward, loss, backward, clip, AdamW, schedule, log.

The step that reads like the formula is `Trainer.step`; everything else is what makes a run worth leaving alone:
evaluation, checkpoints, going on after a kill with the same bits, and steps that are not taken when their gradient is
not finite. Source: Qwen technical report, section 2.4.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kiloq.core.errors import KiloqError, UsageError
from kiloq.model.config import ModelConfig
from kiloq.model.init import init_weights
from kiloq.model.network import Network
from kiloq.tokenize.corpus.shards import Corpus
from kiloq.train import checkpoint
from kiloq.train.activations import keep_activations
from kiloq.train.batches import Batches, Sequences, evaluation_rows, training_batches
from kiloq.train.checkpoint import Progress
from kiloq.train.export import load_weights, open_start
from kiloq.train.loss import chunked_cross_entropy
from kiloq.train.metrics import Metrics
from kiloq.train.optimizer import make_optimizer, rate, set_rate
from kiloq.train.settings import Recipe

Say = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Step:
    """What one step came to."""

    loss: float  # nats a token
    norm: float  # of the gradient, before clipping
    taken: bool  # False: the gradient was not finite and the weights are as before


@dataclass(frozen=True)
class Evaluation:
    """Nats a token on text that is not learned from."""

    loss: float
    by_source: dict[str, float]


class Trainer:
    """One run in this process."""

    def __init__(self, recipe: Recipe, out: Path, device: str = "cpu") -> None:
        if recipe.data is None:
            raise UsageError("recipe: has no data: give data = a folder that `kiloq tokenize corpus` wrote")
        self.recipe, self.out, self.device = recipe, out, device
        self.corpus = Corpus(recipe.data)
        held_out = recipe.held_out if recipe.evaluation is None else None
        self.batches: Batches = training_batches(
            self.corpus, recipe.sequence, recipe.seed, Path(recipe.mix) if recipe.mix else None, held_out
        )
        judged = self.corpus if recipe.evaluation is None else Corpus(recipe.evaluation)
        self.judged = evaluation_rows(judged, recipe.sequence, recipe.evaluate_sequences, held_out)
        self.network = make_network(recipe, self.corpus).to(device)
        keep_activations(self.network, recipe.checkpointing)
        if recipe.compile:
            for block in self.network.layers:
                block.compile()
        self.optimizer = make_optimizer(self.network, recipe.optimizer)
        self.progress = Progress()
        self.evaluation: Evaluation | None = None  # the last one of this run
        self._stopping = False

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"

    def run(self, say: Say) -> Progress:
        """Train to the end, or to the signal to stop; the last checkpoint then has everything."""
        self.out.mkdir(parents=True, exist_ok=True)
        for name in self.batches.left_out:
            say({"note": f"the source {name} has no sequence of {self.recipe.sequence:,} tokens and is left out"})
        self._resume(say)
        metrics = Metrics(self.out, self.progress.step)
        before = signal.signal(signal.SIGTERM, self._stop)
        try:
            while self.progress.step < self.recipe.steps and not self._stopping:
                began = time.monotonic()
                found = self.step()
                row = self._row(found, time.monotonic() - began)
                judged = self._due(self.recipe.evaluate_every)
                if judged and (evaluation := self.evaluate()) is not None:
                    row |= {"evaluation_loss": evaluation.loss, "evaluation_losses": evaluation.by_source}
                metrics.add(row)
                say(row)
                if judged:
                    metrics.draw()
                if self._due(self.recipe.save_every):
                    self.save()
            if self._stopping:
                self.save()
        finally:
            signal.signal(signal.SIGTERM, before)
        return self.progress

    def _due(self, every: int) -> bool:
        """Whether the step just done is one of those, or the last."""
        return self.progress.step % every == 0 or self.progress.step == self.recipe.steps

    def step(self) -> Step:
        """One step of the optimizer on the batch that belongs to it."""
        recipe, at = self.recipe, self.progress.step
        self.network.train()
        set_rate(self.optimizer, rate(recipe.optimizer, at, recipe.steps))
        numbers = range(at * recipe.batch, (at + 1) * recipe.batch)
        tokens, total = recipe.batch * recipe.sequence, 0.0
        for begin in range(0, recipe.batch, recipe.micro_batch or recipe.batch):
            rows = self.batches.rows(numbers[begin : begin + (recipe.micro_batch or recipe.batch)])
            loss = self.loss(rows) / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(self.network.parameters(), recipe.optimizer.clip))
        taken = math.isfinite(norm) and math.isfinite(total)
        if taken:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._count(taken, tokens)
        return Step(total, norm, taken)

    def loss(self, rows: Sequences) -> Tensor:
        """The sum of the losses of some sequences."""
        ids_BT = torch.from_numpy(rows.ids_BT).to(self.device)
        segments_BT = torch.from_numpy(rows.segments_BT).to(self.device)
        inside = segments_BT[:, :-1] if self.recipe.block_diagonal else None
        return self._loss(ids_BT, inside, self.recipe.optimizer.z_loss)

    def _loss(self, ids_BT: Tensor, segments_BT: Tensor | None, z_loss: float) -> Tensor:
        with self._precision():
            x_BTC = self.network.hidden(ids_BT[:, :-1], segments_BT=segments_BT)
            head = self.network.lm_head
            matrix_VC = self.network.embed_tokens.weight if head is None else head.weight
            return chunked_cross_entropy(
                x_BTC.flatten(0, 1), matrix_VC, ids_BT[:, 1:].flatten(), self.recipe.loss_chunk, z_loss
            )

    def _precision(self) -> AbstractContextManager[Any]:
        if self.recipe.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.split(":")[0], torch.bfloat16)

    @torch.no_grad()
    def evaluate(self) -> Evaluation | None:
        """The loss on the sequences that are kept apart; None where there are none."""
        self.network.train()  # as in training: no stretching of positions
        sums = {name: sum(self._losses(rows_BT)) for name, rows_BT in self.judged.items()}
        tokens = {name: len(rows_BT) * self.recipe.sequence for name, rows_BT in self.judged.items()}
        if tokens:
            by_source = {name: total / tokens[name] for name, total in sums.items()}
            self.evaluation = Evaluation(sum(sums.values()) / sum(tokens.values()), by_source)
        return self.evaluation

    def _losses(self, rows_BT: Any) -> Iterator[float]:
        """The summed loss of one forward pass after the other."""
        width = self.recipe.micro_batch or self.recipe.batch
        for begin in range(0, len(rows_BT), width):
            yield float(self._loss(torch.from_numpy(rows_BT[begin : begin + width]).to(self.device), None, 0.0))

    def save(self) -> None:
        """Write a checkpoint, then delete those that are too old."""
        checkpoint.save(self.checkpoints, self.network, self.optimizer, self.progress, self.recipe.resolved())
        checkpoint.forget_old(self.checkpoints, self.recipe.keep)

    def _resume(self, say: Say) -> None:
        newest, passed_over = checkpoint.newest_good(self.checkpoints)
        for sentence in passed_over:
            say({"note": f"passed over: {sentence}"})
        if newest is not None:
            self.progress = checkpoint.load(newest, self.network, self.optimizer)
            say({"note": f"going on after step {self.progress.step:,} ({newest})"})

    def _count(self, taken: bool, tokens: int) -> None:
        """Book a step. Too many in a row that were not taken end the run."""
        at, self.progress.step = self.progress.step, self.progress.step + 1
        if taken:
            self.progress.tokens += tokens
            self.progress.bad_in_a_row = 0
            return
        self.progress.skipped.append(at)
        self.progress.bad_in_a_row += 1
        if self.progress.bad_in_a_row >= self.recipe.max_bad_steps:
            raise KiloqError(
                f"step {at:,}: the gradient was not finite {self.progress.bad_in_a_row} times in a row: go on from the "
                "last checkpoint with a lower peak_rate, or look at the documents of these steps"
            )

    def _row(self, found: Step, seconds: float) -> dict[str, Any]:
        recipe = self.recipe
        return {
            "step": self.progress.step,
            "loss": round(found.loss, 6),
            "norm": round(found.norm, 6),
            "rate": rate(recipe.optimizer, self.progress.step - 1, recipe.steps),
            "taken": found.taken,
            "tokens": self.progress.tokens,
            "tokens_per_second": round(recipe.batch * recipe.sequence / seconds, 1),
        }

    def _stop(self, number: int, frame: Any) -> None:
        self._stopping = True


def make_network(recipe: Recipe, corpus: Corpus) -> Network:
    """The network of a recipe: with random weights, or those of the model that it starts from."""
    if recipe.start is None:
        network = Network(model_config(recipe, corpus))
        init_weights(network, recipe.seed)
        return network
    source = open_start(recipe.start)
    if source.config.vocab_size < corpus.vocab_size:
        raise UsageError(
            f"{recipe.start}: knows {source.config.vocab_size:,} tokens, and the corpus has ids up to "
            f"{corpus.vocab_size - 1:,}: encode it with the model's own vocabulary"
        )
    network = Network(source.config)
    load_weights(network, source)
    return network


def model_config(recipe: Recipe, corpus: Corpus) -> ModelConfig:
    """The shape for the corpus' vocabulary, padded to a multiple of 128 rows as the original's."""
    config = recipe.model.config(-(-corpus.vocab_size // 128) * 128, recipe.sequence)
    if config.vocab_size < corpus.vocab_size:
        raise UsageError(
            f"model: {recipe.model.like} has {config.vocab_size:,} rows, and the corpus {corpus.vocab_size:,} ids"
        )
    return config
