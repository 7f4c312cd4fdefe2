"""Other makers' vocabularies: ids equal to Hugging Face tokenizers' and llama.cpp's, bad files refused by name."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import llama_cpp, naive_bpe
from support import jsonl_gz, smollm2_gguf

from kiloq.core.errors import FormatError
from kiloq.tokenize.foreign import from_printable, to_printable
from kiloq.tokenize.patterns import GPT2, LLAMA3, QWEN, SMOLLM, SplitPattern
from kiloq.tokenize.tokenizer import Tokenizer
from kiloq.tokenize.vocabulary import merges_from_ranks, ranks_from_merges

TEXTS = [
    "The quick brown foxes aren't jumping over 1234 lazy dogs; they'll  sleep.\n\n  Indented\tcode(x) += 12;\r\n",
    "敏捷的棕色狐狸跳过了懒狗。 Быстрая лиса прыгает. الثعلب ١٢٣ e\u0301 é Å",
    "aaaa aaaaaa!!!! ???  ½ ² 3.14   \u3000 x\n",
]


def trained(pattern: SplitPattern, *, nfc: bool = False, ignore_merges: bool = False) -> Any:
    """A tokenizer.json document that Hugging Face trained on a small text with this pre-tokeniser."""
    tokenizers = pytest.importorskip("tokenizers")
    document = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": {"type": "NFC"} if nfc else None, "pre_tokenizer": pattern.pre_tokenizer(),
        "post_processor": None, "decoder": None, "model": {"type": "BPE", "vocab": {}, "merges": []},
    }  # fmt: skip
    made = tokenizers.Tokenizer.from_str(json.dumps(document))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    made.train_from_iterator(TEXTS * 3, trainer)
    made.add_tokens(
        [
            tokenizers.AddedToken("<tool>", normalized=False),
            tokenizers.AddedToken("  <m>", lstrip=True, normalized=False),
        ]
    )
    document = json.loads(made.to_str())
    document["model"]["ignore_merges"] = ignore_merges
    return document


def write(document: Any, folder: Path) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document))
    return path


def samples(count: int) -> list[str]:
    chance = random.Random(5)
    atoms = [
        *"".join(TEXTS),
        "<tool>",
        "  <m>",
        "<|im_end|>",
        "'s",
        "\r\n",
        "   ",
        "lazy",
        " the",
        "狐狸",
        "\x00",
        "😀",
    ]
    return [*TEXTS, *("".join(chance.choices(atoms, k=chance.randint(1, 40))) for _ in range(count))]


@pytest.mark.parametrize("ignore_merges", [False, True])
@pytest.mark.parametrize("pattern", [QWEN, LLAMA3, GPT2, SMOLLM], ids=lambda pattern: pattern.name)
def test_ids_equal_those_of_tokenizers(pattern: SplitPattern, ignore_merges: bool, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    path = write(trained(pattern, nfc=pattern is QWEN, ignore_merges=ignore_merges), tmp_path)
    theirs, ours = tokenizers.Tokenizer.from_file(str(path)), Tokenizer.load(path)
    assert ours.vocabulary.pattern is pattern
    for text in samples(400):
        assert ours.encode(text, special="all") == theirs.encode(text, add_special_tokens=False).ids, text
        theirs.encode_special_tokens = True
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text
        theirs.encode_special_tokens = False
        if "<m>" not in text:  # which takes the white space before it along
            assert ours.decode(ours.encode(text, normalize=False)) == text


def test_vocab_json_with_merges_txt(tmp_path: Path) -> None:
    model = trained(GPT2)["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8")
    write(trained(GPT2), tmp_path)
    whole = Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    pair = Tokenizer.load(tmp_path)
    # <|im_start|> among the control tokens marks a Qwen2 folder, which splits otherwise.
    assert pair.vocabulary.pattern is QWEN and set(pair.special_tokens) >= {"<|im_end|>"}
    assert pair.encode("lazy dogs") == whole.encode("lazy dogs")


def test_the_printable_alphabet() -> None:
    everything = bytes(range(256))
    assert from_printable(to_printable(everything)) == everything
    assert len(set(to_printable(everything))) == 256 and to_printable(b" a\n") == "Ġaċ".replace("ċ", "Ċ")
    assert from_printable("a b") is None and from_printable("中") is None and from_printable("\xa0") is None


@settings(max_examples=600, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=14), st.text("abc", max_size=24))
def test_ranks_merge_exactly_as_the_list(picks: list[tuple[int, int]], text: str) -> None:
    """Any list in which every merge uses tokens that are there already, dead merges and repeated products included."""
    tokens, merges = [b"a", b"b", b"c"], []
    for left, right in picks:
        pair = tokens[left % len(tokens)], tokens[right % len(tokens)]
        if pair not in merges and len(pair[0] + pair[1]) <= 16:
            merges.append(pair)
            tokens.append(pair[0] + pair[1])
    try:
        ranks = ranks_from_merges(merges, [bytes([value]) for value in range(256)], "the list")
    except FormatError as error:
        assert "before the merge that makes it" in str(error)
        return
    token_of = {rank: token for token, rank in ranks.items()}
    for piece in {text.encode(), *tokens}:
        if piece:
            assert [token_of[rank] for rank in naive_bpe.by_ranks(piece, ranks)] == naive_bpe.by_merges(piece, merges)
    assert set(merges_from_ranks(ranks)) <= set(merges)


def test_smollm2_ids_equal_those_of_llama_cpp() -> None:
    path = smollm2_gguf()
    ours = Tokenizer.load(path)
    server = llama_cpp.server(path, context=64)  # answers as long as the object lives
    chance = random.Random(2)
    texts = [row["text"] for row in jsonl_gz("goldens", "tokenizer", "encode.jsonl.gz") if row["cat"] != "surrogate"]
    atoms = " \t\n\r1a.'s!é中 ٣²½\x00\U000f0000ﾟ\u0301😀"
    mixed = ["".join(chance.choices(atoms, k=chance.randint(1, 40))) for _ in range(300)]
    for text in [*chance.sample(texts, 500), *mixed, *ours.special_tokens, " " * 700 + "x" + "9" * 600 + "ab" * 500]:
        for special in (False, True):
            assert ours.encode(text, special="all" if special else "none") == llama_cpp.tokens(server, text, special), (
                text
            )


def test_smollm2_roles_and_chat() -> None:
    ours = Tokenizer.load(smollm2_gguf())
    assert ours.vocab_size == 49_152 and ours.eos_ids == (0, 2) and ours.pad_id == 2 and not ours.add_bos
    text = ours.decode(ours.chat([{"role": "user", "content": "Hi"}]))
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def at(document: Any, *path: Any, value: Any) -> Any:
    """A copy of `document` with one entry replaced."""
    changed = copy.deepcopy(document)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


BAD = [
    (("model",), None, "model"),
    (("model", "type"), "Unigram", "Unigram"),
    (("model", "type"), "WordPiece", "WordPiece"),
    (("model", "byte_fallback"), True, "byte_fallback"),
    (("model", "unk_token"), "<unk>", "unk_token"),
    (("model", "dropout"), 0.1, "dropout"),
    (("model", "end_of_word_suffix"), "</w>", "end_of_word_suffix"),
    (("model", "vocab"), [], "vocab"),
    (("model", "vocab"), {"a": -1}, "id"),
    (("model", "vocab"), {"a": 1 << 40}, "id"),
    (("model", "vocab"), {"a": "1"}, "id"),
    (("model", "vocab"), {"a": True}, "id"),
    (("model", "vocab"), {"a": 1, "b": 1}, "same id"),
    (("model", "merges"), {}, "merges"),
    (("model", "merges"), ["a"], "merge of two"),
    (("model", "merges"), [["a", "b", "c"]], "merge of two"),
    (("model", "merges"), [["a", 7]], "merge of two"),
    (("model", "merges"), [["a", "zzzz"]], "merge 1"),
    (("model", "merges"), ["zz zz"], "merge 1"),
    (("normalizer",), {"type": "Lowercase"}, "Lowercase"),
    (("normalizer",), {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "StripAccents"}]}, "StripAccents"),
    (("normalizer",), {"type": "Sequence", "normalizers": 7}, "only NFC"),
    (("pre_tokenizer",), None, "None"),
    (("pre_tokenizer",), {"type": "Whitespace"}, "Whitespace"),
    (("pre_tokenizer",), {"type": "ByteLevel", "add_prefix_space": True}, "ByteLevel"),
    (("pre_tokenizer",), {"type": "Sequence", "pretokenizers": 7}, "pre-tokeniser"),
    (
        ("pre_tokenizer",),
        {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
        "Split",
    ),
    (("added_tokens",), {}, "added_tokens"),
    (("added_tokens",), [7], "added_tokens"),
    (("added_tokens",), [{"id": 1}], "no text"),
    (("added_tokens",), [{"id": -1, "content": "x"}], "added token"),
    (("added_tokens",), [{"id": 1 << 50, "content": "x"}], "added token"),
]


@pytest.mark.parametrize(("path", "value", "said"), BAD)
def test_settings_that_are_not_read_are_named(path: tuple[str, ...], value: Any, said: str, tmp_path: Path) -> None:
    file = write(at(trained(GPT2), *path, value=value), tmp_path)
    with pytest.raises(FormatError) as caught:
        Tokenizer.load(file).encode("x")
    assert str(caught.value).startswith(f"{file}: ") and said in str(caught.value) and "\n" not in str(caught.value)


GGUF = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": [to_printable(bytes([value])) for value in range(256)] + ["ab", "<|end|>", "[PAD0]"],
    "tokenizer.ggml.token_type": [1] * 257 + [3, 5],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 257,
}


class FakeGGUF:
    """Stands in for a file: only the metadata matter here; files are tested in tests/core."""

    changes: ClassVar[dict[str, Any]] = {}

    def __init__(self, path: Path) -> None:
        self.metadata = {key: value for key, value in {**GGUF, **self.changes}.items() if value is not None}


@pytest.fixture
def gguf(monkeypatch: pytest.MonkeyPatch) -> type[FakeGGUF]:
    monkeypatch.setattr("kiloq.tokenize.foreign.GGUFFile", FakeGGUF)
    monkeypatch.setattr(FakeGGUF, "changes", {})
    return FakeGGUF


def test_gguf_metadata(gguf: type[FakeGGUF]) -> None:
    ours = Tokenizer.load("x.gguf")
    assert ours.encode("xab<|end|>", special="all") == [120, 256, 257]
    assert ours.eos_ids == (257,) and ours.vocab_size == 259
    assert ours.decode([258]) == "[PAD0]"
    gguf.changes = {"tokenizer.ggml.pre": "qwen2"}
    assert Tokenizer.load("x.gguf").vocabulary.nfc
    gguf.changes = {"tokenizer.ggml.pre": None, "general.architecture": "qwen"}
    assert Tokenizer.load("x.gguf").vocabulary.pattern is QWEN


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ggml.model", "t5", "'t5'"),
        ("ggml.model", "llama", "has no token for 256 of the 256 bytes"),
        ("ggml.model", None, "ggml.model"),
        ("ggml.model", 7, "ggml.model"),
        ("ggml.pre", "tekken", "'tekken'"),
        ("ggml.pre", None, "'default'"),
        ("ggml.tokens", None, "ggml.tokens"),
        ("ggml.tokens", [1, 2], "tokens"),
        ("ggml.merges", "a b", "ggml.merges"),
        ("ggml.merges", ["a"], "merge of two"),
        ("ggml.merges", ["a c"], "merge 1"),
        ("ggml.token_type", [1], "token types"),
        ("ggml.eos_token_id", 259, "259"),
        ("ggml.eos_token_id", "x", "eos_token_id"),
        ("ggml.bos_token_id", -1, "-1"),
        ("chat_template", "x" * 70_000, "template"),
        ("chat_template", 7, "template"),
    ],
)
def test_bad_gguf_metadata(gguf: type[FakeGGUF], key: str, value: Any, said: str) -> None:
    gguf.changes = {f"tokenizer.{key}": value}
    with pytest.raises(FormatError, match=r"^x\.gguf: ") as caught:
        Tokenizer.load("x.gguf")
    assert said in str(caught.value)
