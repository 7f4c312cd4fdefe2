"""SentencePiece vocabularies through every door out: llama.cpp, tokenizers and transformers give the ids of the source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from oracles import llama_cpp, piece_vocabularies
from oracles.piece_vocabularies import FORMS, rows, save_gguf, texts, with_tokens

import kiloq
from kiloq.convert.source import ModelSource, open_model
from kiloq.convert.write import write_folder
from kiloq.convert.write_gguf import write_gguf_file
from kiloq.core.errors import FormatError
from kiloq.tokenize.tokenizer import Tokenizer


def opened(path: Path, document: Any, pad: int = 0, **extra: Any) -> ModelSource:
    tokens, scores, types = rows(document)
    tokens += [f"[X{at}]" for at in range(pad)]
    return open_model(save_gguf(path, tokens, [*scores, *[0.0] * pad], [*types, *[5] * pad], **extra))


def test_a_gguf_becomes_a_folder_and_a_gguf_again(tmp_path: Path) -> None:
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    source = opened(tmp_path / "in.gguf", piece_vocabularies.trained(700), add_bos_token=True)
    write_folder(source, tmp_path / "folder", "native")
    write_gguf_file(open_model(tmp_path / "folder"), tmp_path / "out.gguf", "f32")
    one, two, three = (Tokenizer.load(tmp_path / name) for name in ("in.gguf", "folder", "out.gguf"))
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "folder" / "tokenizer.json"))
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder", model_max_length=10**6)
    running = llama_cpp.server(tmp_path / "out.gguf", 64)
    for text in texts(150):
        ids = one.encode(text, special="all")
        assert two.encode(text, special="all") == three.encode(text, special="all") == ids
        assert plain.encode(text, add_special_tokens=False).ids == ids
        assert auto(text, add_special_tokens=False).input_ids == ids
        assert llama_cpp.tokens(running, text, True) == ids
        assert auto.decode(one.encode(text)) == one.decode(one.encode(text))
    assert auto("the fox").input_ids == [1, *one.encode("the fox")] == plain.encode("the fox").ids
    for other in (two, three):
        assert (other.add_bos, other.bos_id, other.eos_ids, other.pad_id) == (True, 1, (2,), one.pad_id)
        assert other.special_tokens == one.special_tokens


@pytest.mark.parametrize("form", FORMS)
def test_every_form_becomes_a_gguf(form: str, tmp_path: Path) -> None:
    """Also with tokens without merges, which llama.cpp would make, and with rows beyond the vocabulary."""
    document = piece_vocabularies.trained(700, form, across_words=True)
    source = opened(tmp_path / "in.gguf", document, pad=9)
    (tmp_path / "tokenizer.json").write_text(json.dumps(with_tokens(document, "zzqq", "a▁", "▁of▁", "xy", "th▁")))
    source.tokenizer_path = tmp_path / "tokenizer.json"
    notes = write_gguf_file(source, tmp_path / "out.gguf", "f32").notes
    ours, again = Tokenizer.load(tmp_path / "tokenizer.json"), Tokenizer.load(tmp_path / "out.gguf")
    assert bool(notes) == (form in ("first", "always", "split"))
    running = llama_cpp.server(tmp_path / "out.gguf", 64)
    for text in texts(150):
        for special in ("none", "all"):
            ids = llama_cpp.tokens(running, text, special == "all")
            assert again.encode(text, special=special) == ids
            if not notes or (special == "none" and text and text[0] not in " ▁"):
                assert ours.encode(text, special=special) == ids, text


def test_a_tokenizer_is_saved_as_it_was(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    for form in FORMS:
        path = tmp_path / f"{form}.json"
        path.write_text(json.dumps(piece_vocabularies.trained(500, form, across_words=True)))
        Tokenizer.load(path).save(tmp_path / form)
        one = tokenizers.Tokenizer.from_file(str(path))
        two = tokenizers.Tokenizer.from_file(str(tmp_path / form / "tokenizer.json"))
        again = Tokenizer.load(tmp_path / form)
        for text in texts(80):
            ids = one.encode(text, add_special_tokens=False).ids
            assert two.encode(text, add_special_tokens=False).ids == again.encode(text, special="all") == ids
            assert two.decode(ids) == one.decode(ids)


@pytest.mark.parametrize("kind", ["none", "no_vocab"])
def test_a_gguf_without_a_vocabulary_takes_ids(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = save_gguf(tmp_path / "m.gguf", *rows(piece_vocabularies.trained(330)), model=kind)
    assert open_model(path).tokenizer_path is None
    assert len(kiloq.load(path).generate([5, 6], max_new_tokens=2, temperature=0).ids) <= 2


@pytest.mark.parametrize("kind", ["bert", "t5", "rwkv"])
def test_a_gguf_with_an_unknown_vocabulary_is_refused(kind: str, tmp_path: Path) -> None:
    path = save_gguf(tmp_path / "m.gguf", *rows(piece_vocabularies.trained(330)), model=kind)
    with pytest.raises(FormatError, match=rf"m\.gguf: has a tokenizer of the kind '{kind}'"):
        kiloq.load(path)


def test_the_whole_model_speaks(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = save_gguf(tmp_path / "m.gguf", *rows(piece_vocabularies.trained(500)))
    model = kiloq.load(path)
    answer = model.generate("the quick", max_new_tokens=6, temperature=0)
    assert model.tokenizer.decode(answer.ids, skip_special=True).startswith(answer.text.rstrip("\ufffd"))
