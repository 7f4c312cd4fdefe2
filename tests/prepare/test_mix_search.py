"""The search for a mix: laws against what made the losses, a source that is planted as useful, kills and hostile input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from shards import write_shards

from kiloq.core.errors import BusyError, FormatError, KiloqError, UsageError
from kiloq.core.manifest import verify_manifest
from kiloq.core.work import WorkFolder
from kiloq.prepare.mix_search.command import mix_search_command
from kiloq.prepare.mix_search.law import LEAST, fit, rank_correlation
from kiloq.prepare.mix_search.mixtures import sample, within
from kiloq.prepare.mix_search.proxies import Proxies
from kiloq.prepare.mix_search.search import Found, Search, search
from kiloq.tokenize.corpus.shards import Corpus
from kiloq.train.batches import training_batches

END, WORDS = 63, 60
PROXY = """steps = 30
sequence = 16
batch = 8
precision = "fp32"
evaluate_every = 30
save_every = 30
evaluate_sequences = 64
held_out = 10
[model]
hidden_size = 16
num_layers = 1
num_heads = 2
ffn_size = 32
[optimizer]
peak_rate = 1e-2
warmup_steps = 3
"""


# Mixtures


def test_mixtures_keep_to_their_limits_and_never_change() -> None:
    natural, limits = np.array([0.7, 0.25, 0.05]), np.array([1.0, 0.5, 0.2])
    found = sample(natural, limits, 2000, 7, 0)
    assert np.allclose(found.sum(axis=1), 1) and (found >= 0).all() and (found <= limits + 1e-12).all()
    assert (found[:, 2] > 0.199).any() and (found[:, 2] < 0.01).any(), "rare sources get large and small shares"
    assert (sample(natural, limits, 5, 7, 0) == found[:5]).all() and (
        sample(natural, limits, 5, 7, 1) != found[:5]
    ).all()
    first = sample(natural, np.ones(3), 1, 0, 0)[0]
    assert first == pytest.approx([0.039051, 0.491053, 0.469896], abs=1e-6), "what a kiloq before this one drew"


def test_what_a_source_cannot_take_goes_to_the_others_in_their_proportion() -> None:
    found = within(np.array([[8.0, 1.0, 1.0], [1.0, 2.0, 0.1]]), np.array([0.5, 0.3, 1.0]))
    assert found == pytest.approx(np.array([[0.5, 0.25, 0.25], [0.5, 0.3, 0.2]]))
    exact = within(np.array([[3.0, 1.0]]), np.array([0.75, 0.25]))  # limits that leave no room
    assert exact[0] == pytest.approx([0.75, 0.25])


# The law


def planted(shares: Any) -> Any:
    return 2.0 + np.exp(shares @ np.array([-1.5, 0.2, 0.7]))


def test_a_law_finds_what_made_the_losses() -> None:
    shares = sample(np.array([0.5, 0.3, 0.2]), np.ones(3), 60, 0, 0)
    law = fit(shares[:30], planted(shares[:30]))
    assert law.loss(shares[30:]) == pytest.approx(planted(shares[30:]), abs=2e-2)  # of 1.5 between the extremes
    assert law.left_out < 1e-2
    noisy = planted(shares) + np.random.default_rng(0).normal(0, 0.02, 60)
    assert fit(shares[:30], noisy[:30]).loss(shares[30:]) == pytest.approx(planted(shares[30:]), abs=0.08)


def test_the_error_of_a_sample_left_out_is_what_fitting_without_it_gives() -> None:
    """Leaving out is done by a formula; here it is done by hand, with the floor and ridge that were chosen."""
    shares = sample(np.array([0.6, 0.4]), np.ones(2), 12, 3, 0)
    losses = 3 - 0.4 * shares[:, 0] + np.random.default_rng(1).normal(0, 0.05, 12)
    law = fit(shares, losses)
    errors = []
    x = shares - shares.mean(axis=0)
    spread = np.trace(x.T @ x) / 2
    z = np.log(losses - law.floor)
    slopes = np.array(law.slopes)
    ridge = next(r for r in np.geomspace(1e-4, 1e1, 11)
                 if np.allclose(np.linalg.solve(x.T @ x + r * spread * np.eye(2), x.T @ (z - z.mean())), slopes))  # fmt: skip
    for out in range(12):
        stay = np.arange(12) != out
        design = np.column_stack([np.ones(11), x[stay]])
        penalty = np.diag([0, ridge * spread, ridge * spread])
        b = np.linalg.solve(design.T @ design + penalty, design.T @ z[stay])
        errors.append(losses[out] - law.floor - np.exp(b[0] + x[out] @ b[1:]))
    assert law.left_out == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-6)


def test_losses_that_do_not_depend_on_shares_and_too_few_samples() -> None:
    shares = sample(np.array([0.5, 0.5]), np.ones(2), 8, 0, 0)
    assert fit(shares, np.full(8, 3.0)).loss(shares) == pytest.approx(np.full(8, 3.0))
    with pytest.raises(UsageError, match=f"at least {LEAST} samples, and there are 3"):
        fit(shares[:3], np.ones(3))


def test_rank_correlation_is_spearmans() -> None:
    one = np.array([1.0, 2, 2, 4, 9])
    assert rank_correlation(one, one**3) == pytest.approx(1)
    assert rank_correlation(one, -one) == pytest.approx(-1)
    assert rank_correlation(one, np.array([2.0, 1, 3, 5, 4])) == pytest.approx(0.718184846)  # scipy.stats.spearmanr
    assert rank_correlation(one, np.ones(5)) == 0


# The search, with trainings that are planted


class Planted(Proxies):
    """Losses by formula: what is wanted of a is known best where b is learned, a loss for c never changes."""

    def train(self, name: str, shares: Any, seed: int) -> dict[str, float]:
        noise = np.random.default_rng([seed, *name.encode()]).normal(0, 0.002, 2)
        return {"a": 3 + float(np.exp(-3 * shares["b"] - shares["a"]) + noise[0]), "c": 5 + float(noise[1])}


def plan(**more: Any) -> Search:
    values: dict[str, Any] = {
        "natural": {"a": 0.6, "b": 0.1, "c": 0.3},
        "limits": {"a": 1.0, "b": 0.4, "c": 1.0},
        "targets": {},
    }
    return Search(**values | more)


def test_the_proposal_takes_what_helps_up_to_its_limit(tmp_path: Path) -> None:
    found = search(plan(), Planted(tmp_path, tmp_path, tmp_path), 2, lambda what, done, of: None)
    assert 0.36 < found.shares["b"] <= 0.4 and found.shares["a"] > 2 * found.shares["c"]
    assert sum(found.shares.values()) == pytest.approx(1) and max(found.weights.values()) == 1
    assert found.weights["b"] / found.weights["a"] == pytest.approx(found.shares["b"] / 0.1 / (found.shares["a"] / 0.6))
    assert found.better and found.gain > 0.1 and found.correlation > 0.9 and found.error < 0.01
    assert found.predicted == pytest.approx(np.mean(found.after), abs=0.01)


def test_chance_is_not_called_better(tmp_path: Path) -> None:
    found = search(plan(targets={"c": 1.0}), Planted(tmp_path, tmp_path, tmp_path), 2, lambda what, done, of: None)
    assert not found.better and abs(found.gain) < 0.01


def test_better_is_what_students_t_says() -> None:
    """Differences of 0.1, 0.2 and 0.3: their mean over its standard error is 3.46, and 2.92 is the limit."""
    rest: Any = (0.0, 0.0, [], {}, {})
    found = Found({}, {}, 0.0, [3.1, 3.3, 3.6], [3.0, 3.1, 3.3], *rest)
    assert found.gain / found.noise == pytest.approx(12**0.5) and found.better
    assert not Found({}, {}, 0.0, [3.1, 3.3, 3.7], [3.0, 3.1, 3.3], *rest).better


def test_a_target_without_held_out_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"target 'b': no text of it is held out: choose among a, c"):
        search(plan(targets={"b": 1.0}), Planted(tmp_path, tmp_path, tmp_path), 2, lambda what, done, of: None)


# The command, with real trainings


def write_corpus(folder: Path) -> Path:
    """Four sources in one shard: sentences of a grammar, the same grammar with noise, noise, and one too small."""
    random = np.random.default_rng(0)
    after = random.permutation(WORDS)
    documents = []
    for source, count, noise in ((0, 80, 0.0), (1, 80, 0.5), (2, 200, 1.0), (3, 1, 1.0)):
        for _ in range(count):
            words = [int(random.integers(WORDS))]
            for _ in range(40 if source < 3 else 5):
                words.append(int(random.integers(WORDS)) if random.random() < noise else int(after[words[-1]]))
            documents.append((source, [*words, END]))
    return write_shards(folder, [documents], ["grammar", "half", "noise", "tiny"], 64, END)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    write_corpus(folder / "corpus")
    (folder / "proxy.toml").write_text(PROXY)
    return folder


def arguments(place: Path, out: Path, *more: str) -> list[str]:
    few = ["--mixtures", "4", "--held-out", "3", "--target", "grammar=2", "--jobs", "2"]
    return [str(place / "corpus"), "--proxy", str(place / "proxy.toml"), "--out", str(out), *few, *more]


def refused(place: Path, out: Path, *more: str) -> BaseException:
    found = CliRunner().invoke(mix_search_command, arguments(place, out, *more))
    assert isinstance(found.exception, KiloqError) and not out.exists(), found.output
    return found.exception


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def test_a_search_that_is_killed_goes_on_and_finds_the_same(place: Path, tmp_path: Path) -> None:
    """Killed after its second proxy; the rerun keeps those that are done, and a whole run elsewhere has the same bytes."""
    out, work = tmp_path / "mix", tmp_path / ".mix.searching" / "proxies"
    command = [sys.executable, "-m", "kiloq", "prepare", "mix-search", *arguments(place, out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        while len(list(work.glob("*/result.json"))) < 2 and process.poll() is None:
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()
        os.killpg(process.pid, signal.SIGKILL)
    done = {path: path.stat().st_mtime_ns for path in work.glob("*/result.json")}
    assert len(done) < 13 and not out.exists()
    rerun = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert rerun.returncode == 0, rerun.stderr
    report = json.loads(rerun.stdout)
    assert rerun.stdout.count("\n") == 1 and report["out"] == str(out) and not work.parent.exists()
    assert set(report["targets"]) == {"grammar"} and len(report["loss_before"]) == 3
    verify_manifest(out)
    again = subprocess.run(
        [*command[:-2], "--jobs", "3", "--out", str(tmp_path / "again")], capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert contents(out) == contents(tmp_path / "again")
    shares = {row["name"]: row["share"] for row in json.loads((out / "mix.json").read_text())["sources"]}
    assert sum(shares.values()) == pytest.approx(1) and list(shares) == ["grammar", "half", "noise", "tiny"]
    weights = tomllib.loads((out / "weights.toml").read_text())["mix"]["weights"]
    assert max(weights.values()) == 1 and set(weights) == set(shares)
    page = (out / "report.html").read_text()
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert len(training_batches(Corpus(place / "corpus"), 16, 0, out / "mix.json", None).rows([0, 1]).documents) == 2


def test_another_search_in_the_same_place_waits(place: Path, tmp_path: Path) -> None:
    with WorkFolder.beside(tmp_path / "mix", "searching").locked():
        found = CliRunner().invoke(mix_search_command, arguments(place, tmp_path / "mix"))
    assert isinstance(found.exception, BusyError)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--target", "x"], "--target 'x': give a source and a weight above 0"),
        (["--target", "x=-1"], "--target 'x=-1': give a source and a weight above 0"),
        (["--target", "x=nan"], "--target 'x=nan'"),
        (["--target", "=1"], "--target '=1'"),
        (["--without", "x"], "--without 'x': the corpus has grammar, half, noise, tiny"),
        (["--without", "half", "--without", "noise"], "has 1 source to mix, and a mix needs two"),
        (["--tokens", "1000000"], "4 epochs of all of it are fewer"),
    ],
)
def test_wrong_options_are_answered_before_anything_is_trained(
    place: Path, tmp_path: Path, more: list[str], sentence: str
) -> None:
    error = refused(place, tmp_path / "mix", *more)
    assert isinstance(error, UsageError) and sentence in str(error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["--set", "stepps=3"], "did you mean 'steps'"),
        (["--set", "sequence=50000"], "has no sequence of 50000 tokens"),
        (["--set", "held_out=5000"], "was evaluated on nothing: give the recipe of the proxies a smaller held_out"),
    ],
)
def test_what_stops_a_training_is_its_own_sentence(
    place: Path, tmp_path: Path, settings: list[str], sentence: str
) -> None:
    error = refused(place, tmp_path / "mix", "--set", "steps=1", *settings)
    assert sentence in str(error) and "\n" not in str(error)


def test_files_that_are_none(place: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = CliRunner().invoke(mix_search_command, [str(tmp_path / "empty"), *arguments(place, tmp_path / "mix")[1:]])
    assert isinstance(found.exception, KiloqError)
    record = tmp_path / "proxies" / "one"
    record.mkdir(parents=True)
    (record / "result.json").write_text("[")  # what a full disk leaves
    proxies = Proxies(tmp_path / "proxies", place / "proxy.toml", place / "corpus", ["steps=1"])
    losses = proxies.train("one", {"grammar": 0.5, "half": 0.5, "noise": 0.0, "tiny": 0.0}, 0)
    assert set(losses) == {"grammar", "half", "noise"} and json.loads((record / "result.json").read_text())
    with pytest.raises(FormatError, match="evaluated on nothing"):
        proxies._run = lambda place, seed: {"evaluation_losses": {}}  # type: ignore[method-assign]
        proxies.train("two", {"grammar": 1.0}, 0)
