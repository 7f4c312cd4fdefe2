"""`kiloq tokenize corpus` against its peers on real text: megabytes of text for a second of processor time, ids equal.

    python -m venv ENV && ENV/bin/pip install -e '.[data]' -c constraints.txt
    ENV/bin/pip install -c constraints.txt tokenizers
    ENV/bin/python benchmarks/encoding.py          about five minutes; what is not installed is left out

The text is fresh, as a corpus is: no document comes twice, and every turn begins with a newly loaded vocabulary, as
most of these programs keep whole words. It is the prose of the data folder, English, Chinese and many languages, and
the Python sources that are installed here. kiloq is measured from a Parquet file to the finished folder (reading, NFC,
encoding, checking, writing, hashing), with its start, which takes the same time for any corpus, and without; and
between the two, from strings to ids, NFC included. Its peers get strings that are in NFC and give ids, all in memory.
One thread each; tokenizers gets a tenth of the text. The second half is what training does: windows of 2,049 tokens at
random places, through `Corpus` and through numpy's memmap of the same file.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"  # read when a package starts its threads
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import record
import zstandard
from click.testing import CliRunner

from kiloq.tokenize.command import command
from kiloq.tokenize.corpus.encode import Encoder
from kiloq.tokenize.corpus.shards import Corpus
from kiloq.tokenize.export import tokenizer_json
from kiloq.tokenize.normalize import nfc, well_formed
from kiloq.tokenize.texts import Text

TEXTS = Path(__file__).parents[2] / "shared" / "data"
PROSE = ("long_documents", "zh_wikipedia", "pretrain_text", "flores200", "language_sentences")
MEGABYTES = 60.0  # of text
DOCUMENT_CHARS = 4_000  # of prose
BATCH_CHARS = 4 << 20  # given to a peer at once
WINDOW, READS = 2_049, 20_000
SLOW_SHARE = 10  # tokenizers gets one document of so many

Ids = np.ndarray[Any, np.dtype[np.uint32]]
Encode = Callable[[Sequence[str]], Ids]


def real_texts(folder: Path, megabytes: float) -> list[str]:
    """Different documents: a third of prose, if there is so much, and Python sources."""
    made: dict[str, None] = {}
    size = 0
    for documents, share in ((_prose(folder), 1 / 3), (_sources(), 1.0)):
        for text in documents:
            if size >= share * megabytes * 1e6:
                break
            if text not in made:
                made[text] = None
                size += len(text.encode())
    if size < 0.9 * megabytes * 1e6:
        raise SystemExit(f"there are {size / 1e6:.0f} MB of text here: give another folder by --texts")
    return list(made)


def _prose(folder: Path) -> Iterator[str]:
    files = [path for part in PROSE for path in (folder / part).rglob("*")] if (folder / PROSE[0]).is_dir() else []
    for path in sorted(files or folder.rglob("*")):
        unpack = {".gz": gzip.decompress, ".zst": lambda data: zstandard.decompress(data, 1 << 28)}.get(path.suffix)
        if path.is_file() and not {".md", ".json"} & {path.suffix, *path.suffixes}:
            text = (unpack or bytes)(path.read_bytes()).decode("utf-8", "replace")
            yield from _documents(text)


def _documents(text: str) -> Iterator[str]:
    """Lines together, as many as a page of the web has."""
    held: list[str] = []
    for line in text.splitlines(keepends=True):
        held.append(line)
        if sum(map(len, held)) >= DOCUMENT_CHARS:
            yield "".join(held)
            held = []
    yield "".join(held)


def _sources() -> Iterator[str]:
    for name in ("stdlib", "purelib"):
        for path in sorted(Path(sysconfig.get_paths()[name]).rglob("*.py")):
            yield path.read_text(encoding="utf-8", errors="replace")


def batches(texts: Sequence[str]) -> list[list[str]]:
    """Documents together, as kiloq gives them to fastokens."""
    made: list[list[str]] = [[]]
    size = 0
    for text in texts:
        made[-1].append(text)
        size += len(text)
        if size >= BATCH_CHARS:
            made.append([])
            size = 0
    return made


def kiloq(encoder: Encoder) -> Encode:
    """NFC and fastokens, in batches."""

    def run(texts: Sequence[str]) -> Ids:
        return np.concatenate([encoder.encode([Text("", text) for text in batch])[0] for batch in batches(texts)])

    assert len(encoder.encode([Text("", "loads the library")])[0])
    return run


def fastokens(encoder: Encoder) -> Encode:
    """The library by itself, in batches, with ids in one array."""
    fast = encoder._fastokens

    def run(texts: Sequence[str]) -> Ids:
        return np.concatenate([np.frombuffer(fast.encode_batch_flat(batch)[0], np.uint32) for batch in batches(texts)])

    return run


def tiktoken(encoder: Encoder) -> Encode:
    """The library by itself, text by text."""
    import tiktoken

    vocabulary: Any = encoder.tokenizer.vocabulary
    encoding = tiktoken.Encoding(
        "qwen", pat_str=vocabulary.pattern.expression, mergeable_ranks=vocabulary.ranks, special_tokens={}
    )
    return lambda texts: np.concatenate([np.array(encoding.encode_ordinary(text), np.uint32) for text in texts])


def tokenizers(encoder: Encoder) -> Encode:
    """The library by itself, by its call that leaves out offsets."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(json.dumps(tokenizer_json(encoder.tokenizer.vocabulary)))

    def run(texts: Sequence[str]) -> Ids:
        found = made.encode_batch_fast(list(texts), add_special_tokens=False)
        return np.concatenate([np.array(each.ids, np.uint32) for each in found])

    return run


def speed(make: Callable[[Encoder], Encode], vocabulary: str, texts: Sequence[str], right: Ids) -> Callable[[], float]:
    """Megabytes for a second of processor time with a new encoder, which must give the `right` ids."""
    size = sum(len(text.encode()) for text in texts)

    def run() -> float:
        encode = make(Encoder.load(vocabulary))
        start = time.process_time()
        ids = encode(texts)
        seconds = time.process_time() - start
        assert np.array_equal(ids, right), f"{make.__name__} gives other ids"
        return size / 1e6 / seconds

    return run


def corpus(vocabulary: str, source: Path, out: Path) -> dict[str, Any]:
    """The whole command in this process."""
    arguments = ["corpus", source, "-t", vocabulary, "-o", out, "--processes", 1, "--json"]
    done = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def windows(ids: Ids) -> Callable[[], float]:
    """Reads for a second of processor time: copies of windows at random places of mapped ids."""
    places = np.random.default_rng(1).integers(0, len(ids) - WINDOW, READS).tolist()

    def run() -> float:
        start = time.process_time()
        for place in places:
            np.array(ids[place : place + WINDOW])
        return READS / (time.process_time() - start)

    return run


def through_corpus(opened: Corpus) -> Callable[[], float]:
    """The same by way of a corpus: first which shard, then the slice."""
    ends = np.cumsum([shard.tokens for shard in opened.shards])
    places = np.random.default_rng(1).integers(0, opened.shards[0].tokens - WINDOW, READS).tolist()

    def run() -> float:
        start = time.process_time()
        for place in places:
            shard = opened.shards[int(ends.searchsorted(place, "right"))]
            np.array(shard.ids[place : place + WINDOW])
        return READS / (time.process_time() - start)

    return run


def commands(vocabulary: str, folder: Path, size: int) -> dict[str, Callable[[], float]]:
    """The whole command, and what it does for the text alone: without the time for one document."""
    taken: list[float] = []

    def run(source: str) -> float:
        start = time.process_time()
        corpus(vocabulary, folder / source, folder / "corpus")
        return time.process_time() - start

    def whole() -> float:
        taken[:] = [run("one.parquet"), run("texts.parquet")]
        return size / 1e6 / taken[1]

    return {"kiloq, the command": whole, "... without its start": lambda: size / 1e6 / (taken[1] - taken[0])}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the text and one round")
    parser.add_argument("--texts", type=Path, default=TEXTS, help="a folder of text files")
    parser.add_argument("--vocabulary", default="qwen", help="as `kiloq tokenize corpus -t` takes it")
    parser.add_argument("--out", type=Path, help="a JSON file instead of one in benchmarks/results")
    options = parser.parse_args()
    record.ROUNDS = 1 if options.quick else record.ROUNDS
    texts = [well_formed(text) for text in real_texts(options.texts, MEGABYTES / 10 if options.quick else MEGABYTES)]
    normal = [nfc(text) for text in texts]
    size = sum(len(text.encode()) for text in texts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, some in (("texts", texts), ("one", texts[:1])):
            pq.write_table(pa.table({"text": some}), folder / f"{file}.parquet")
        report = corpus(options.vocabulary, folder / "texts.parquet", folder / "corpus")
        opened = Corpus(folder / "corpus", verify=True)
        documents = [opened.document(number)[:-1] for number in range(opened.documents)]
        right, some = np.concatenate(documents), np.concatenate(documents[::SLOW_SHARE])
        turns = commands(options.vocabulary, folder, size)
        turns["kiloq, strings to ids"] = speed(kiloq, options.vocabulary, texts, right)
        turns["fastokens"] = speed(fastokens, options.vocabulary, normal, right)
        turns["tiktoken"] = speed(tiktoken, options.vocabulary, normal, right)
        if importlib.util.find_spec("tokenizers"):
            turns["tokenizers"] = speed(tokenizers, options.vocabulary, normal[::SLOW_SHARE], some)
        speeds = record.interleaved(turns)
        opened = Corpus(folder / "corpus")
        mapped = np.memmap(folder / "corpus" / "00000.tokens", "<u4", "r")
        reads = record.interleaved({"kiloq, Corpus": through_corpus(opened), "numpy memmap": windows(mapped)})
    figures = {"documents": len(texts), "bytes": size, "tokens": report["tokens"], "MB per CPU-s": speeds}
    figures["windows per CPU-s"] = {"window": WINDOW, **reads}
    for label, figure in (*speeds.items(), *reads.items()):
        print(f"{label:24} {figure['median']:12,.1f}  ({figure['min']:,.1f} to {figure['max']:,.1f})")
    print(record.write("encoding", figures, options.out))


if __name__ == "__main__":
    main()
