"""SentencePiece vocabularies from files: ids equal to llama.cpp's and to Hugging Face tokenizers'; the rest is refused."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from oracles import llama_cpp, piece_vocabularies
from oracles.piece_vocabularies import FORMS, rows, save_gguf, texts

from kiloq.core.errors import FormatError
from kiloq.tokenize.sentencepiece import SPACE
from kiloq.tokenize.tokenizer import Tokenizer


def write(document: Any, folder: Path) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("across_words", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [330, 900])
def test_ids_equal_those_of_tokenizers(size: int, form: str, across_words: bool, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    path = write(piece_vocabularies.trained(size, form, across_words=across_words), tmp_path)
    theirs, ours = tokenizers.Tokenizer.from_file(str(path)), Tokenizer.load(path)
    for text in texts(120):
        theirs.encode_special_tokens = False
        assert ours.encode(text, special="all") == theirs.encode(text, add_special_tokens=False).ids, text
        theirs.encode_special_tokens = True
        plain = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == plain, text
        assert ours.decode(plain) == theirs.decode(plain, skip_special_tokens=False)
        if "▁" not in text and form in ("prepend", "replace"):
            assert ours.decode(plain) == text


def test_lists_of_all_pairs_as_conversions_make_them(tmp_path: Path) -> None:
    """LLaMA-2's tokenizer.json has every pair that makes a token, in the order of the scores, halves that come later too."""
    tokenizers = pytest.importorskip("tokenizers")
    document = piece_vocabularies.trained(900)
    vocab = document["model"]["vocab"]
    made = ["".join(pair) for pair in document["model"]["merges"]]
    pairs = [(t[:at], t[at:]) for t in made for at in range(1, len(t)) if t[:at] in vocab and t[at:] in vocab]
    document["model"]["merges"] = [list(pair) for pair in dict.fromkeys(pairs)]
    assert len(document["model"]["merges"]) > len(made)
    path = write(document, tmp_path)
    theirs, ours = tokenizers.Tokenizer.from_file(str(path)), Tokenizer.load(path)
    for text in texts(200):
        assert ours.encode(text, special="all") == theirs.encode(text, add_special_tokens=False).ids, text


def test_added_tokens_of_every_kind(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    for form in FORMS:
        document = piece_vocabularies.trained(400, form)
        size = len(document["model"]["vocab"])
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
        kinds = [{}, {"normalized": True}, {"rstrip": True, "special": True}, {"normalized": True, "special": True}]
        names = ["<tool>", "<n b>", "<|end|>", "<|late|>"]
        document["added_tokens"] += [
            {"id": size + at, "content": name, **flags, **kind}
            for at, (name, kind) in enumerate(zip(names, kinds, strict=True))
        ]
        path = write(document, tmp_path)
        theirs, ours = tokenizers.Tokenizer.from_file(str(path)), Tokenizer.load(path)
        for text in ["<tool>a", "a <tool> b", "<n b>a", "x<n b>a", "a<|end|>  b", "<|late|>a", "a <|late|>b", " <n b>"]:
            assert ours.encode(text, special="all") == theirs.encode(text, add_special_tokens=False).ids, (form, text)


def test_bytes_among_the_added_tokens_stay_bytes(tmp_path: Path) -> None:
    """A trainer that is given the bytes as special tokens lists them so; they are not looked for in text."""
    document = piece_vocabularies.trained(400)
    plain = Tokenizer.load(write(document, tmp_path))
    vocab = document["model"]["vocab"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    document["added_tokens"] += [{"id": vocab[n], "content": n, **flags} for n in piece_vocabularies.BYTES]
    ours = Tokenizer.load(write(document, tmp_path))
    for text in ["<0x41> ꙮ", "𝔘<0xE2>"]:
        ids = ours.encode(text, special="all")
        assert ids == plain.encode(text) and ours.decode(ids, skip_special=True) == text


def test_roles_of_a_folder(tmp_path: Path) -> None:
    document = piece_vocabularies.trained(400)
    bos, a = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    special = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    document["post_processor"] = {
        "type": "TemplateProcessing", "single": [bos, a], "pair": [bos, a], "special_tokens": special
    }  # fmt: skip
    ours = Tokenizer.load(write(document, tmp_path))
    assert ours.add_bos and ours.bos_id == 1 and ours.eos_ids == (2,)
    config = {"add_bos_token": False, "add_eos_token": True, "eos_token": "</s>", "pad_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.load(tmp_path)
    assert not ours.add_bos and ours.vocabulary.add_eos and ours.pad_id == 0 and ours.vocabulary.eos_id == 2


@pytest.mark.parametrize("across_words", [False, True])
@pytest.mark.parametrize(
    ("size", "extra"), [(330, {}), (900, {"add_space_prefix": False}), (1500, {"add_bos_token": False}), (700, None)]
)
def test_ids_equal_those_of_llama_cpp(
    size: int, extra: dict[str, Any] | None, across_words: bool, tmp_path: Path
) -> None:
    tokens, scores, types = rows(piece_vocabularies.trained(size, across_words=across_words))
    tokens += ["<tool>", "[X]", ""]  # user-defined, unused, empty
    types, scores = [*types, 4, 5, 5], [*scores, 0.0, 0.0, 0.0]
    path = save_gguf(tmp_path / "m.gguf", tokens, None if extra is None else scores, types, **(extra or {}))
    ours, running = Tokenizer.load(path), llama_cpp.server(path, 64)
    assert ours.add_bos == (extra != {"add_bos_token": False}) and ours.bos_id == 1 and 2 in ours.eos_ids
    for text in [*texts(150), "a <tool> b<tool>", "<tool>[X] the"]:
        for special in (False, True):
            ids = ours.encode(text, special="all" if special else "none")
            assert ids == llama_cpp.tokens(running, text, special), (text, special)
        if "▁" not in text and "<tool>" not in text:  # after which a space is put, here as there
            assert ours.decode(ours.encode(text)) == text


def test_old_files_say_little(tmp_path: Path) -> None:
    """Without types, roles and scores: llama.cpp's defaults."""
    tokens, scores, types = rows(piece_vocabularies.trained(400))
    path = save_gguf(tmp_path / "m.gguf", tokens, scores, types, add_eos_token=True)
    ours = Tokenizer.load(path)
    assert ours.vocabulary.add_eos and ours.encode("hi")[-1] != 2
    assert ours.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2} and ours.pad_id is None


def test_control_tokens_by_name(tmp_path: Path) -> None:
    """Converters of 2023 typed ChatML's tokens as user-defined; llama.cpp too corrects what ends a turn."""
    tokens, scores, types = rows(piece_vocabularies.trained(400))
    names = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    path = save_gguf(tmp_path / "m.gguf", tokens + names, scores + [0.0] * 3, [*types, 4, 4, 1])
    ours, running = Tokenizer.load(path), llama_cpp.server(path, 64)
    for name in names[1:]:
        for special in (False, True):
            ids = ours.encode(f"a {name} b", special="all" if special else "none")
            assert ids == llama_cpp.tokens(running, f"a {name} b", special)
            assert (ours.id_of(name) in ids) == special and ours.id_of(name) in ours.eos_ids
    said = [{"role": "user", "content": "".join(names)}]
    assert ours.decode(ours.chat(said)).count("<|im_start|>") == 4
    assert ours.chat(said).count(ours.id_of("<|im_start|>")) == 3


def changed(document: Any, *path: Any, value: Any) -> Any:
    document = copy.deepcopy(document)
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return document


META = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": False}
BAD = [
    (("model", "vocab"), {"a": 0}, "256 bytes"),
    (("model", "vocab"), {"a": 0, "b": 0}, "same id"),
    (("model", "vocab"), [], "vocab"),
    (("model", "merges"), [["a", "qqq"]], "merge 1"),
    (("model", "merges"), ["a"], "merge of two"),
    (("model", "merges"), 7, "merges"),
    (("model", "ignore_merges"), True, "ignore_merges"),
    (("model", "dropout"), 0.5, "dropout"),
    (("normalizer",), {"type": "NFKC"}, "NFKC"),
    (("normalizer",), {"type": "Sequence", "normalizers": [7]}, "form that is not read"),
    (("normalizer",), {"type": "Prepend", "prepend": SPACE}, "Prepend"),
    (("normalizer",), None, "None"),
    (("pre_tokenizer",), {"type": "Whitespace"}, "Whitespace"),
    (("pre_tokenizer",), META, "Metaspace"),
    (("pre_tokenizer",), {**META, "replacement": SPACE, "prepend_scheme": ["x"]}, "Metaspace"),
    (("added_tokens",), {}, "added_tokens"),
]


@pytest.mark.parametrize(("path", "value", "said"), BAD)
def test_bad_documents_are_refused(path: tuple[str, ...], value: Any, said: str, tmp_path: Path) -> None:
    file = write(changed(piece_vocabularies.trained(330), *path, value=value), tmp_path)
    with pytest.raises(FormatError) as caught:
        Tokenizer.load(file)
    assert str(caught.value).startswith(f"{file}: ") and said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [7, [], {"processors": 3}, {"type": "TemplateProcessing", "single": [{}, 5]}])
def test_a_strange_post_processor_changes_nothing(value: Any, tmp_path: Path) -> None:
    assert not Tokenizer.load(write(piece_vocabularies.trained(330) | {"post_processor": value}, tmp_path)).add_bos


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"remove_extra_whitespaces": True}, "white space"),
        ({"add_space_prefix": 1}, "add_space_prefix"),
        ({"scores": [1.0]}, "scores"),
        ({"scores": [math.nan]}, "scores"),
        ({"tokens": "byte"}, "256 bytes"),
        ({"tokens": "long"}, "characters"),
        ({"bos_token_id": 1 << 20}, "bos"),
        ({"model": "bert"}, "'bert'"),
        ({"model": "none"}, "'none'"),
    ],
)
def test_bad_gguf_files_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    tokens, scores, types = rows(piece_vocabularies.trained(330))
    change = dict(change)
    if replaced := change.pop("scores", None):
        scores = replaced * len(tokens) if replaced == [math.nan] else replaced
    if damage := change.pop("tokens", None):
        tokens[5 if damage == "byte" else -1] = "q" * 2000
    path = save_gguf(tmp_path / "m.gguf", tokens, scores, types, **change)
    with pytest.raises(FormatError) as caught:
        Tokenizer.load(path)
    assert str(caught.value).startswith(f"{path}: ") and said in str(caught.value) and "\n" not in str(caught.value)
