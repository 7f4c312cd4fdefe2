"""Batches are a pure function of (seed, step), and a run that was stopped ends with the bits of one that was not."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kiloq.convert.source import open_model
from kiloq.core.errors import MissingError, UsageError
from kiloq.tokenize.corpus.shards import Corpus
from kiloq.train import checkpoint
from kiloq.train.batches import training_batches
from kiloq.train.checkpoint import Parts
from kiloq.train.export import export
from kiloq.train.optimizer import rate
from kiloq.train.plan import check_layout
from kiloq.train.settings import Optimizer, Parallel, Recipe, Shape, read_recipe

from .runs import END, SEQUENCE, make_corpus, recipe, trainer_of, weights_at


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


def test_every_token_is_seen_once_an_epoch(corpus: Path) -> None:
    opened = Corpus(corpus, verify=True)
    batches = training_batches(opened, SEQUENCE, 1, None, held_out=None)
    stream = batches._streams[0]
    documents = opened.documents_of("a")
    wanted = np.sort(np.concatenate([opened.document(number) for number in documents]))
    for epoch in (0, 1):
        rows = [(np.empty(SEQUENCE + 1, np.int64), np.empty(SEQUENCE + 1, np.int32)) for _ in range(stream.sequences)]
        found = [stream.read(epoch, at, *row) for at, row in enumerate(rows)]
        joined = np.concatenate([rows[0][0][:1], *(ids[1:] for ids, _ in rows)])
        assert len(wanted) - len(joined) < SEQUENCE  # what is left is shorter than a sequence
        assert {number for row in found for number in row} <= set(documents.tolist())
        counts = np.bincount(wanted, minlength=100) - np.bincount(joined, minlength=100)
        assert counts.min() >= 0
        for ids, segments in rows:
            ends = np.flatnonzero(ids == END)
            assert (np.flatnonzero(np.diff(segments)) == ends[ends < SEQUENCE]).all()


def test_rows_do_not_depend_on_what_was_read_before(corpus: Path) -> None:
    opened = Corpus(corpus)
    first, second = (training_batches(opened, SEQUENCE, 1, None, held_out=10) for _ in range(2))
    whole = first.rows(range(40))
    parts = [second.rows([number]) for number in reversed(range(40))]
    assert (np.concatenate([part.ids_BT for part in parts[::-1]]) == whole.ids_BT).all()
    other = training_batches(opened, SEQUENCE, 2, None, held_out=10).rows(range(40))
    assert (other.ids_BT != whole.ids_BT).any()
    held_out = np.concatenate([opened.documents_of(name)[9::10] for name in opened.sources])
    assert not {number for row in whole.documents for number in row} & set(held_out.tolist())


def test_a_mix_gives_sources_their_shares(corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "mix.json"
    path.write_text(json.dumps({"sources": [{"name": "a", "share": 0.25}, {"name": "b", "share": 0.75}]}))
    batches = training_batches(Corpus(corpus), SEQUENCE, 1, path, held_out=None)
    assert batches._mixture.places == (1 << 14, 3 << 14)
    path.write_text(json.dumps({"sources": [{"name": "c", "share": 1}]}))
    with pytest.raises(UsageError, match="mixes the source c, and the corpus has a, b"):
        training_batches(Corpus(corpus), SEQUENCE, 1, path, held_out=None)


def trained(recipe: Recipe, out: Path) -> dict[str, bytes]:
    trainer_of(recipe, out).run(lambda row: None)
    return weights_at(out)


def test_a_run_that_goes_on_has_the_bits_of_one_that_never_stopped(corpus: Path, tmp_path: Path) -> None:
    whole = trained(recipe(corpus), tmp_path / "whole")
    stopped = trainer_of(recipe(corpus), tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        stopped.run(interrupt)
    stopped.saver.finish()
    assert trained(recipe(corpus), tmp_path / "stopped") == whole
    rows = [json.loads(line) for line in (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "stopped" / "curves.svg").read_text().startswith("<svg")


def interrupt(row: Any) -> None:
    if row.get("step") == 5:
        raise KeyboardInterrupt


def test_a_signal_to_stop_saves_first(corpus: Path, tmp_path: Path) -> None:
    trainer = trainer_of(recipe(corpus, save_every=100), tmp_path)

    def stop(row: Any) -> None:
        if row.get("step") == 2:  # heard in the step after
            os.kill(os.getpid(), signal.SIGTERM)

    assert trainer.run(stop).step == 3
    assert [path.name for path in trainer.saver.folder.iterdir()] == ["step-0000003"]


def test_a_damaged_checkpoint_is_passed_over(corpus: Path, tmp_path: Path) -> None:
    whole = trained(recipe(corpus), tmp_path)
    newest = next((tmp_path / "checkpoints" / "step-0000006").glob("*.safetensors"))
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    found, notes = checkpoint.newest_good(tmp_path / "checkpoints")
    assert found is not None and found.name == "step-0000004" and "it is damaged" in notes[0]
    assert trained(recipe(corpus), tmp_path) == whole


@pytest.mark.parametrize("change", [{"micro_batch": 1}, {"checkpointing": "full"}, {"checkpointing": "selective"}])
def test_what_saves_memory_changes_no_loss(corpus: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    losses = []
    for at, more in enumerate([{}, change]):
        trainer = trainer_of(recipe(corpus, **more), tmp_path / str(at))
        losses.append([trainer.step().loss for _ in range(4)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)  # float32 sums in another order


def test_documents_of_a_packed_row_do_not_see_each_other(corpus: Path, tmp_path: Path) -> None:
    trainer = trainer_of(recipe(corpus, block_diagonal=True), tmp_path)
    network = trainer.engine.passes.networks[0]
    rows = trainer.batches.rows([next(n for n in range(50) if trainer.batches.rows([n]).segments_BT[0, SEQUENCE - 4])])
    ids, segments = rows.ids_BT[:, :-1], rows.segments_BT[:, :-1]
    assert len(set(segments[0].tolist())) > 1
    packed = network.hidden(torch.from_numpy(ids), segments_BT=torch.from_numpy(segments))[0]
    for segment in set(segments[0].tolist()):
        own = torch.from_numpy(ids[:, segments[0] == segment])
        torch.testing.assert_close(packed[segments[0] == segment], network.hidden(own)[0], rtol=0, atol=1e-5)


def test_a_loss_that_falls_and_a_folder_that_opens(corpus: Path, tmp_path: Path) -> None:
    trainer = trainer_of(recipe(corpus, steps=30, save_every=30), tmp_path)
    before = trainer.evaluate()
    trainer.run(lambda row: None)
    after = trainer.evaluate()
    assert before is not None and after is not None and after.loss < before.loss - 0.05
    rows = {name: len(rows_BT) for name, rows_BT in trainer.judged.items()}
    mean = sum(after.by_source[name] * count for name, count in rows.items()) / sum(rows.values())
    assert set(rows) == set(trainer.corpus.sources) and after.loss == pytest.approx(mean)
    newest, _ = checkpoint.newest_good(trainer.saver.folder)
    assert newest is not None
    export(Parts(newest), trainer.config, tmp_path / "model", None, END, {})
    source = open_model(tmp_path / "model")
    assert source.config.vocab_size == 128 and source.generation.eos_ids == (END,)
    for name, parameter in trainer.engine.named:
        assert np.abs(source.tensor(name).astype(np.float32) - parameter.detach().numpy()).max() < 4e-3
    again = trainer_of(recipe(corpus, start=str(tmp_path / "model")), tmp_path / "again")
    found = again.evaluate()
    assert found is not None and found.loss == pytest.approx(after.loss, abs=0.01)  # bf16 weights


def test_the_rate_rises_in_a_line_and_falls_in_a_cosine() -> None:
    settings = Optimizer(peak_rate=1.0, warmup_steps=10, final_share=0.1)
    rates = [rate(settings, step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55) and rates[-1] == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stepps = 1", "did you mean 'steps'"),
        ("steps = 0", "steps is 0: give 1 or more"),
        ("precision = 'fp8'", "choose one of bf16, fp32"),
        ("[optimizer]\nadam = 'x'", "choose one of seed, report"),
        ("[model]\nlike = 'qwen-7'", "did you mean 'qwen-7b'"),
        ("[model]\nhidden_size = 8", "lacks num_layers, num_heads, ffn_size"),
    ],
)
def test_a_wrong_recipe_is_answered_with_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=sentence):
        read_recipe(path).model.config(100, 16)


def test_a_run_without_data_says_so(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(UsageError, match="has no data"):
        trainer_of(replace(recipe(corpus), data=None), tmp_path)
    with pytest.raises(UsageError, match="has no sequence of 100000 tokens"):
        trainer_of(recipe(corpus, sequence=100_000), tmp_path)


def test_samples_need_a_tokenizer_and_boards_a_package(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="samples need a tokenizer and a single process"):
        trainer_of(recipe(corpus, samples=("a",)), tmp_path)
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(MissingError, match="pip install tensorboard"):
            trainer_of(recipe(corpus, tensorboard=True), tmp_path).run(lambda row: None)


@pytest.mark.parametrize(
    ("parallel", "more", "sentence"),
    [
        ({"context": 2}, {"block_diagonal": True}, "context is 2, and block_diagonal"),
        ({"pipeline": 2}, {}, "pipeline is 2, and tied embeddings would be in two stages"),
    ],
)
def test_what_cannot_go_together(parallel: dict[str, int], more: dict[str, Any], sentence: str) -> None:
    tied = Shape(hidden_size=32, num_layers=2, num_heads=2, ffn_size=64, tied_embeddings=True)
    found = Recipe(parallel=Parallel(**parallel), model=tied, **more)
    with pytest.raises(UsageError, match=sentence):
        check_layout(tied.config(128, 16), found, 2)
