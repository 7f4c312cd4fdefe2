"""What each filter of `kiloq prepare` catches of planted bad documents, what good ones it costs, and how fast models apply.

    python benchmarks/filters.py

Good documents are web pages, encyclopaedia articles and novels, in English and in Chinese. Bad ones are made of them or
taken from other sets, ten kinds. The trained filters learn from one half of all and everything is measured on the
other; "unseen" is the classifier that has learned from every kind but the one it is asked about. Each step judges by
itself, with its default settings, after the language step has named the language.
With `pip install alt-profanity-check==1.9.1` that package judges the comments too; it was trained on others.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import record

from kiloq.core.unpack import lines, open_unpacked
from kiloq.prepare.decontaminate import Decontaminate
from kiloq.prepare.documents import batch_of, strings_of
from kiloq.prepare.language import Language
from kiloq.prepare.models.classifier import Classifier, save_classifier
from kiloq.prepare.models.items import read_items
from kiloq.prepare.models.linear import Shape, area, train
from kiloq.prepare.models.perplexity import Perplexity
from kiloq.prepare.models.scorer import PERCENTILES, estimate_scorer, load_scorer, save_scorer, vocabulary
from kiloq.prepare.models.vote import Vote
from kiloq.prepare.pii import PersonalData
from kiloq.prepare.rules.c4 import C4
from kiloq.prepare.rules.chinese import Chinese
from kiloq.prepare.rules.fineweb import FineWeb
from kiloq.prepare.rules.gopher import Gopher, GopherRepetition
from kiloq.prepare.words import BadWords

DATA = Path(__file__).parents[2] / "shared" / "data"
PAGE_CHARS = 2_000
EACH = 240  # documents of a kind
MENU = (
    "Home",
    "About us",
    "Contact",
    "Log in",
    "Sign up",
    "Cart (0)",
    "Search",
    "Next »",
    "首页",
    "登录",
    "更多",
    "下一页",
)
SPAM = ("cheap", "best", "buy", "online", "discount", "free", "shipping", "pills", "casino", "bonus", "loan", "deal")

Documents = dict[str, list[str]]  # by kind


def rows(*parts: str) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    import json

    with open_unpacked(DATA.joinpath(*parts)) as file:
        yield from (json.loads(line.data) for line in lines(file, 1 << 26))


def pages(*parts: str) -> list[str]:
    """A text in pages that end where a line or sentence ends."""
    with open_unpacked(DATA.joinpath(*parts)) as file:
        text = file.read().decode("utf-8-sig")
    found, held = [], ""
    for piece in re.split(r"(?<=\n)|(?<=[.!?] )", text):
        held += piece
        if len(held) >= PAGE_CHARS:
            found.append(held.strip())
            held = ""
    return found


def good_documents() -> Documents:
    """Prose as it is published."""
    wikipedia = [
        row["context"] for name in ("cmrc2018_dev", "drcd_dev") for row in rows("zh_wikipedia", f"{name}.jsonl.zst")
    ]
    return {
        "web pages": [row["text"] for row in rows("pretrain_text", "c4_demo.jsonl.zst")][:EACH],
        "encyclopaedia": pages("pretrain_text", "wiki_demo.txt.zst")[:EACH],
        "novel": pages("long_documents", "en_moby_dick.txt.zst")[20 : 20 + EACH],
        "Chinese encyclopaedia": wikipedia[:: len(wikipedia) // EACH][:EACH],
        "Chinese novel": pages("long_documents", "zh_honglou_meng.txt.zst")[:EACH],
    }


def bad_documents(good: Documents) -> Documents:
    """Ten kinds of documents that nobody wants to learn from."""
    order = np.random.default_rng(0)
    english = good["web pages"] + good["encyclopaedia"]
    chinese = good["Chinese encyclopaedia"]
    foreign = [
        row["text"] for row in rows("language_sentences", "sentences.jsonl.zst") if row["lang"] not in ("en", "zh")
    ]
    code = [row["code"] for row in rows("mbpp", "mbpp.jsonl.gz")]

    def some(count: int, choices: Sequence[str], joint: str = " ") -> str:
        return joint.join(order.choice(np.array(choices, object), count))

    def directory(n: int) -> str:
        return "\n".join(f"User{k} mail{k}@example-{n}.org +1 415 555 {1000 + k + n}" for k in range(n % 9, n % 9 + 20))

    return {
        "word salad": [" ".join(order.permutation(page.split())) for page in english[::2]],
        "repeated lines": ["\n".join([page.split("\n")[0][:300]] * 12) for page in english[1::2]],
        "menu": ["\n".join(f"* {some(1, MENU)}" for _ in range(30)) for _ in range(EACH)],
        "code dump": ["\n\n".join(code[n : n + 4]) for n in range(0, 3 * EACH, 3)],
        "wrong decoding": [page.encode().decode("latin-1") for page in chinese],
        "another language": [
            some(8, foreign[at : at + 300]) for at in range(0, len(foreign) - 300, len(foreign) // EACH)
        ],
        "keyword spam": [some(200, SPAM) for _ in range(EACH)],
        "personal data": [directory(n) for n in range(EACH)],
        "toxic comment": [
            row["text"] for row in rows("toxicity", "toxicity_en.jsonl.gz") if row["is_toxic"] == "Toxic"
        ][:EACH],
        "nearly empty": [page[: 8 + n % 30] for n, page in enumerate((english + chinese)[:EACH])],
    }


def half(documents: Documents, which: int) -> Documents:
    """Every second document of each kind, from the first or the second on."""
    return {kind: texts[which::2] for kind, texts in documents.items()}


def classifier(good: Sequence[str], bad: Sequence[str], path: Path) -> str:
    """A trained classifier's file."""
    texts = [(text, side) for side, group in ((False, bad), (True, good)) for text in group]
    counts = (len(bad), len(good))
    save_classifier(train(lambda: texts, counts, Shape(), epochs=10, rate=0.1, decay=1e-5, seed=0), path, {})
    return str(path)


def perplexity(good: Sequence[str], path: Path) -> str:
    """A language model's file, of nine tenths of the texts; its percentiles are those of the rest."""
    learned = [text for at, text in enumerate(good) if at % 10]
    scorer = estimate_scorer(learned, vocabulary(learned, 20_000), 6, 8 << 20)
    held = [value for value in scorer.perplexities(good[::10]) if value is not None]
    points = np.percentile(held, np.arange(PERCENTILES)).astype(np.float32)
    save_scorer(replace(scorer, percentiles=points), path, {})
    return str(path)


def flat(documents: Documents) -> list[str]:
    """The documents of all kinds."""
    return [text for texts in documents.values() for text in texts]


@cache
def batch(texts: tuple[str, ...]) -> Any:
    """The texts as rows whose language is known."""
    return Language(least=None).apply(batch_of([{"text": text} for text in texts])).batch


def caught(step: Any, texts: Sequence[str]) -> list[bool]:
    """Which documents a step drops; of one that masks, those that it changes."""
    result = step.apply(batch(tuple(texts)))
    if isinstance(step, PersonalData):
        return [was != now for was, now in zip(texts, strings_of(result.batch, "text"), strict=True)]
    return [reason is not None for reason in result.reasons]


def chinese_only(texts: Sequence[str]) -> list[bool]:
    """The Chinese rules, for rows that the language step calls Chinese."""
    found = strings_of(batch(tuple(texts)), "language")
    return [code == "zh" and drop for code, drop in zip(found, caught(Chinese(), texts), strict=True)]


def judges(good: Documents, bad: Documents, folder: Path) -> dict[str, Callable[[Sequence[str]], list[bool]]]:
    """The filters by name; the trained ones have learned from these documents."""
    toxic = classifier(flat(good), bad["toxic comment"], folder / "toxic")
    quality = classifier(flat(good), flat(bad), folder / "quality")
    models = {
        code: perplexity(
            [t for kind, texts in good.items() if (code == "zh") == ("Chinese" in kind) for t in texts], folder / code
        )
        for code in ("en", "zh")
    }
    steps = {
        "language": Language(keep=("en", "zh")),
        "c4": C4(),
        "gopher": Gopher(),
        "gopher_repetition": GopherRepetition(),
        "fineweb": FineWeb(),
        "words": BadWords(path=str(DATA / "toxicity" / "bad_words.jsonl.gz")),
        "pii (changed)": PersonalData(),
        "classifier": Classifier(path=quality, least=0.5),
        "toxicity": Classifier(path=toxic, side="bad", column="toxicity", most=0.5),
    }
    found: dict[str, Callable[[Sequence[str]], list[bool]]] = {
        name: lambda texts, step=step: caught(step, texts) for name, step in steps.items()
    }
    surprise = [
        Perplexity(path=path, languages=(code,), column=code, most_percentile=95.0) for code, path in models.items()
    ]
    vote = Vote(
        columns=("quality", "toxicity", "en", "zh"),
        thresholds=(0.5, 0.5, *(float(load_scorer(path).percentiles[95]) for path in models.values())),
        low=("toxicity", "en", "zh"),
        least=0.6,
    )

    def voted(texts: Sequence[str]) -> list[bool]:
        scored = batch(tuple(texts))
        for step in (Classifier(path=quality), Classifier(path=toxic, side="bad", column="toxicity"), *surprise):
            scored = step.apply(scored).batch
        return [reason is not None for reason in vote.apply(scored).reasons]

    def surprised(texts: Sequence[str]) -> list[bool]:
        return [any(found) for found in zip(*(caught(step, texts) for step in surprise), strict=True)]

    return {**found, "perplexity": surprised, "chinese (of zh)": chinese_only, "vote": voted}


def table(good: Documents, bad: Documents, folder: Path) -> dict[str, Any]:
    """By filter: the share of each kind that it drops, and precision and recall where every kind counts the same."""
    learned_good, learned_bad = half(good, 0), half(bad, 0)
    asked_good, asked_bad = half(good, 1), half(bad, 1)
    judge = judges(learned_good, learned_bad, folder)
    shares: dict[str, dict[str, float]] = {}
    drops: dict[str, dict[str, np.ndarray]] = {}
    for name, drop in judge.items():
        drops[name] = {kind: np.array(drop(texts)) for kind, texts in {**asked_good, **asked_bad}.items()}
    unseen = {}
    for kind, texts in asked_bad.items():
        rest = [text for other, known in learned_bad.items() if other != kind for text in known]
        step = Classifier(path=classifier(flat(learned_good), rest, folder / f"without {kind}"), least=0.5)
        unseen[kind] = np.array(caught(step, texts))
    drops["classifier, unseen"] = {**drops["classifier"], **unseen}
    rules = ("language", "c4", "gopher", "gopher_repetition", "fineweb", "words", "chinese (of zh)")
    for name, parts in (("any rule", rules), ("any rule or the vote", (*rules, "vote"))):
        drops[name] = {kind: np.any([drops[part][kind] for part in parts], axis=0) for kind in drops["c4"]}
    for name, kinds in drops.items():
        shares[name] = {kind: round(float(values.mean()), 4) for kind, values in kinds.items()}
        recall = float(np.mean([kinds[kind].mean() for kind in asked_bad]))
        cost = float(np.mean([kinds[kind].mean() for kind in asked_good]))
        shares[name] |= {"recall": round(recall, 4), "good dropped": round(cost, 4)}
        shares[name]["precision"] = round(recall / (recall + cost), 4) if recall + cost else 0.0
    return shares


def comments(folder: Path) -> dict[str, Any]:
    """Labelled comments: accuracy and area under the curve on those not learned from, in three folds."""
    found = list(rows("toxicity", "toxicity_en.jsonl.gz"))
    polite = np.array([row["is_toxic"] != "Toxic" for row in found])
    texts = [row["text"] for row in found]
    scores = np.zeros(len(texts))
    for fold in range(3):
        sides = [
            [text for at, text in enumerate(texts) if at % 3 != fold and polite[at] == side] for side in (True, False)
        ]
        step = Classifier(path=classifier(sides[0], sides[1], folder / f"fold {fold}"))
        scores[fold::3] = step.apply(batch_of([{"text": text} for text in texts[fold::3]])).batch.column("quality")
    figures = {"kiloq, 3 folds": {"accuracy": float(((scores >= 0.5) == polite).mean()), "area": area(scores, polite)}}
    try:
        from profanity_check import predict_prob
    except ImportError:
        return figures
    other = 1 - np.array(predict_prob(texts))
    return {**figures, "alt-profanity-check": {"accuracy": float(((other >= 0.5) == polite).mean()), "area": area(other, polite)}}  # fmt: skip


def speeds(good: Documents, folder: Path) -> dict[str, Any]:
    """MB of text for a second of processor time, medians of five interleaved rounds; the index of all test sets."""
    names = (
        "bbh", "bfcl", "gsm8k/test.jsonl.gz", "humaneval", "ifeval", "mbpp", "mmlu", "flores200", "noncommercial/ceval",
        "noncommercial/cmmlu", "noncommercial/math", "noncommercial/wmt22",
    )  # fmt: skip
    paths = tuple(str(DATA / name) for name in names)
    start = time.process_time()
    decontaminate = Decontaminate(paths=paths).prepared(folder)
    building = time.process_time() - start
    size = sum(len(text.encode()) for item in read_items(paths) for text in item.texts)
    steps = {
        "classifier": Classifier(path=str(folder / "quality")),
        "decontaminate": decontaminate,
    }
    tasks = {}
    for language, code, kinds in (("English", "en", ("web pages", "encyclopaedia", "novel")), ("Chinese", "zh", ("Chinese novel", "Chinese encyclopaedia"))):  # fmt: skip
        texts = [text for kind in kinds for text in good[kind]]
        for name, step in steps.items():
            tasks[f"{name}, {language}"] = _speed(step, texts)
        tasks[f"perplexity, {language}"] = _speed(Perplexity(path=str(folder / code)), texts)
    return {
        "MB per CPU second": record.interleaved(tasks),
        "index": {"cpu_s": building, "text_mb": size / 1e6, "file_mb": Path(str(decontaminate.index_path)).stat().st_size / 1e6},
    }  # fmt: skip


def _speed(step: Any, texts: Sequence[str]) -> Callable[[], float]:
    documents = batch_of([{"text": text} for text in texts])
    size = sum(len(text.encode()) for text in texts) / 1e6

    def run() -> float:
        start = time.process_time()
        step.apply(documents)
        return size / (time.process_time() - start)

    return run


def printed(shares: dict[str, dict[str, float]]) -> None:
    """The table, a row for each kind and a column for each filter."""
    print(" " * 22 + " ".join(f"{name[:9]:>9}" for name in shares))
    for kind in next(iter(shares.values())):
        print(f"{kind:22}" + " ".join(f"{row[kind]:9.1%}" for row in shares.values()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file instead of one in benchmarks/results")
    options = parser.parse_args()
    every = good_documents()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        made = table(every, bad_documents(every), place)
        figures = {"dropped": made, "comments": comments(place), "speed": speeds(every, place)}
    printed(made)
    print(figures["comments"])
    print({task: round(speed["median"], 1) for task, speed in figures["speed"]["MB per CPU second"].items()})
    print(figures["speed"]["index"])
    print(record.write("filters", figures, options.out))
