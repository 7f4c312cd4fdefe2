"""Makes the corpora of this recipe: the vocabulary of single bytes, and the text cut in nine tenths and one.

    python recipes/shakespeare/corpus.py input.txt.zst        into raw/ beside this file

The text is plain ASCII, so a vocabulary of the 256 bytes is one of characters. What is cut where is nanoGPT's: the
first 90 % of the characters are learned from, the last 10 % are not. Source of the text: char-rnn, data/tinyshakespeare
(public domain), 1,115,394 characters.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import zstandard
from click.testing import CliRunner

from kiloq.tokenize.command import command

TEXT = Path(__file__).parents[3] / "shared" / "data" / "pretrain_text" / "tinyshakespeare.txt.zst"
SHARE = 0.9  # nanoGPT, data/shakespeare_char/prepare.py


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, nargs="?", default=TEXT, help="the text, or the text in zstd")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "raw")
    options = parser.parse_args()
    make(options.text, options.out)


def make(text: Path, out: Path) -> None:
    """vocabulary, train and valid in `out`, anew."""
    data = text.read_bytes()
    if text.suffix == ".zst":
        data = zstandard.decompress(data, 1 << 28)
    if not data.isascii():
        raise SystemExit(f"{text}: has more than ASCII, so that its bytes are not its characters: give another text")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    cut = int(len(data) * SHARE)
    for name, part in (("train", data[:cut]), ("valid", data[cut:])):
        (out / f"{name}.txt").write_bytes(part)
    _kiloq("train", out / "train.txt", "--vocab-size", 256, "--out", out / "vocabulary")
    for name in ("train", "valid"):
        _kiloq("corpus", out / f"{name}.txt", "--tokenizer", out / "vocabulary", "--out", out / name)


def _kiloq(*arguments: object) -> None:
    done = CliRunner().invoke(command, [*map(str, arguments), "--json"], catch_exceptions=False)
    if done.exit_code:
        raise SystemExit(done.output)


if __name__ == "__main__":
    main()
