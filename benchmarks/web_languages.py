"""How often the language step is right: sentences of news, sentences in parallel, and a handbook's pages.

Sentences have a label. The handbook's pages have the language of their folder, but what nobody has translated stands
there in English; so of them is said which share got the folder's language, English, or another one, which is wrong. No
paragraph has a label: there the same three shares are given, and how often the peer says the same as kiloq. What is
called another language there is output of programs, which stands in every folder alike.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kiloq.core.unpack import lines, open_unpacked
from kiloq.prepare.documents import batch_of, strings_of, texts_of
from kiloq.prepare.extract import Extract, decode_page
from kiloq.prepare.language import CHINESE, Language, identify

DATA = Path(__file__).parents[2] / "shared" / "data"
MAIN = [
    "ar",
    "de",
    "en",
    "es",
    "fr",
    "he",
    "id",
    "it",
    "ja",
    "ko",
    "nl",
    "pl",
    "pt",
    "ru",
    "th",
    "tr",
    "vi",
    "zh",
]  # 18 languages
MOST_CHARS = 4_000  # of a paragraph or sentence that peers get; ours, kiloq's step looks at 1,000
LEAST_CHARS = 60  # of a paragraph that is asked about: shorter ones are headings and names of programs
FLORES = {
    "arb": "ar", "ben": "bn", "bod": "bo", "bul": "bg", "ces": "cs", "deu": "de", "ell": "el", "eng": "en", "fra": "fr",
    "heb": "he", "hin": "hi", "ind": "id", "ita": "it", "jpn": "ja", "khk": "mn", "khm": "km", "kor": "ko", "lao": "lo",
    "mya": "my", "nld": "nl", "pes": "fa", "pol": "pl", "por": "pt", "rus": "ru", "spa": "es", "swe": "sv", "swh": "sw",
    "tam": "ta", "tel": "te", "tgl": "tl", "tha": "th", "tur": "tr", "uig": "ug", "ukr": "uk", "urd": "ur", "vie": "vi",
    "yue": "zh", "zho": "zh", "zsm": "ms", "amh": "am",
}  # fmt: skip

Labelled = list[tuple[str, str]]  # (code, text)
Identify = Callable[[str], str]


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    with open_unpacked(path) as file:
        yield from (json.loads(line.data) for line in lines(file, 1 << 26))


def plain(code: str) -> str:
    """A code as the sets write it: one for all Chinese, one for Norwegian in its usual form."""
    return {**dict.fromkeys(CHINESE, "zh"), "no": "nb"}.get(code, code)


def sentences() -> Labelled:
    """News in 75 languages."""
    return [(row["lang"], row["text"]) for row in rows(DATA / "language_sentences" / "sentences.jsonl.zst")]


def parallel() -> Labelled:
    """FLORES-200, dev, 41 languages; Cantonese counts as Chinese."""
    return [
        (FLORES[code.split("_")[0]], text)
        for row in rows(DATA / "flores200" / "dev.jsonl.zst")
        for code, text in row["text"].items()
    ]


def peers() -> dict[str, Identify]:
    """kiloq and what else is installed."""
    found: dict[str, Identify] = {"kiloq": lambda text: identify(text)[0]}
    if importlib.util.find_spec("py3langid"):
        import py3langid

        found["py3langid"] = lambda text: str(py3langid.classify(text[:MOST_CHARS])[0])
    if importlib.util.find_spec("lingua"):
        from lingua import LanguageDetectorBuilder

        detector = LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().build()

        def lingua(text: str) -> str:
            language = detector.detect_language_of(text[:MOST_CHARS])
            return language.iso_code_639_1.name.lower() if language else ""

        found["lingua, low"] = lingua
    return found


def accuracy(identified: Identify, labelled: Labelled) -> dict[str, Any]:
    """Share of right answers, of all and of the language with the fewest, and texts for a second of processor time."""
    identified(labelled[0][1])  # loads its model
    start = time.process_time()
    answers = [plain(identified(text)) for _, text in labelled]
    took = time.process_time() - start
    asked = Counter(code for code, _ in labelled)
    right = Counter(code for (code, _), answer in zip(labelled, answers, strict=True) if plain(code) == answer)
    shares = {code: right[code] / count for code, count in asked.items()}
    worst = min(shares, key=lambda code: (shares[code], code))
    return {
        "accuracy": round(right.total() / len(labelled), 4),
        "languages": len(shares),
        "languages_from_95_percent": sum(share >= 0.95 for share in shares.values()),
        "worst": {worst: round(shares[worst], 4)},
        "texts_per_cpu_s": round(len(labelled) / took),
    }


def pages(handbook: Path, step: int) -> Iterator[tuple[str, str]]:
    """(code of the folder, page) of every `step`-th page."""
    for folder in sorted(path for path in handbook.rglob("*-*") if path.is_dir() and (path / "index.html").exists()):
        for path in sorted(folder.glob("*.html"))[::step]:
            yield folder.name.split("-")[0], decode_page(path.read_bytes())


def shares_of(answers: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Of (folder's code, answer): which share is the folder's language, which English, which another."""
    found = Counter("folder" if plain(code) == plain(answer) else "English" if answer == "en" else "another"
                    for code, answer in answers)  # fmt: skip
    return {"count": found.total(), **{name: round(found[name] / max(1, found.total()), 4) for name in ("folder", "English", "another")}}  # fmt: skip


def handbook_figures(handbook: Path, step: int) -> dict[str, Any]:
    """Documents by the step, paragraphs by its function and by the peer."""
    labels, texts = zip(*pages(handbook, step), strict=True)
    read = Extract().apply(batch_of([{"text": text, "format": "html"} for text in texts])).batch
    judged = Language(least=None).apply(read).batch
    answers = [code or "" for code in strings_of(judged, "language")]
    found = texts_of(judged)
    long = [at for at, text in enumerate(found) if len(text) >= LEAST_CHARS]
    parts: Labelled = [
        (labels[at], line) for at in long for line in found[at].split("\n") if len(line.strip()) >= LEAST_CHARS
    ]
    figures: dict[str, Any] = {"documents": shares_of((labels[at], answers[at]) for at in long)}
    figures["wrong_documents"] = _wrong((labels[at], answers[at]) for at in long)
    own = [identify(line)[0] for _, line in parts]
    figures["paragraphs"] = shares_of((code, answer) for (code, _), answer in zip(parts, own, strict=True))
    for name, function in peers().items():
        if name == "py3langid":
            other = [function(line) for _, line in parts]
            figures[f"paragraphs, {name}"] = shares_of((code, answer) for (code, _), answer in zip(parts, other, strict=True))  # fmt: skip
            figures[f"paragraphs, agreement with {name}"] = round(_equal(own, other), 4)
    return figures


def _equal(one: Sequence[str], other: Sequence[str]) -> float:
    return sum(plain(a) == plain(b) for a, b in zip(one, other, strict=True)) / max(1, len(one))


def _wrong(answers: Iterable[tuple[str, str]]) -> dict[str, int]:
    """The commonest confusions, folder to answer."""
    wrong = Counter(f"{code} as {answer}" for code, answer in answers if answer != "en" and plain(code) != plain(answer))  # fmt: skip
    return dict(wrong.most_common(8))
