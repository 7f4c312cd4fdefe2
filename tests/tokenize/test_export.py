"""What we write, other programs read with the same ids."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import jsonl_gz, qwen_vocabulary, shared, smollm2_gguf

from kiloq.tokenize import vocabulary
from kiloq.tokenize.tokenizer import Tokenizer

ROWS = "goldens", "tokenizer", "encode.jsonl.gz"
TALK = [
    {"role": "user", "content": "Hi  there"},
    {"role": "assistant", "content": "Hello é."},
    {"role": "user", "content": "再见"},
]


@pytest.fixture(scope="module")
def saved(qwen: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    names = {path.name for path in qwen.save(folder)}
    assert names == {"tokenizer.json", "tokenizer_config.json", "qwen.tiktoken"} == {p.name for p in folder.iterdir()}
    return folder


def test_the_ranks_are_written_byte_for_byte(saved: Path) -> None:
    assert (saved / "qwen.tiktoken").read_bytes() == qwen_vocabulary().read_bytes()


def test_tokenizers_gives_the_ids_of_all_goldens(saved: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(saved / "tokenizer.json"))
    rows = [row for row in jsonl_gz(*ROWS) if row["cat"] != "surrogate"]  # its Rust strings cannot hold surrogates
    texts = [row["text"] for row in rows]
    assert [e.ids for e in theirs.encode_batch(texts, add_special_tokens=False)] == [row["ids"] for row in rows]
    theirs.encode_special_tokens = True
    plain = [row.get("ids_allow_none", row["ids"]) for row in rows]
    assert [e.ids for e in theirs.encode_batch(texts, add_special_tokens=False)] == plain


def test_transformers_loads_the_folder_without_remote_code(saved: Path, qwen: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(saved)
    for row in jsonl_gz(*ROWS):
        if row["cat"] != "surrogate":
            assert theirs(row["text"], add_special_tokens=False)["input_ids"] == row["ids"]
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id) == (151_645, 151_643, None)
    assert len(theirs) == 151_851 and theirs.model_max_length == 32_768
    for talk in (TALK, [{"role": "system", "content": ""}, *TALK]):
        for prompt in (False, True):
            ids = theirs.apply_chat_template(talk, add_generation_prompt=prompt, return_dict=False)
            assert ids == qwen.chat(talk, add_generation_prompt=prompt)


def test_our_own_reader_gets_the_same_vocabulary_back(saved: Path, qwen: Tokenizer, tmp_path: Path) -> None:
    again = Tokenizer.load(saved / "tokenizer.json")
    assert again.vocabulary.ranks == qwen.vocabulary.ranks and again.vocabulary.added == qwen.vocabulary.added
    document: Any = json.loads((saved / "tokenizer.json").read_text())
    assert len(document["model"]["merges"]) == 151_643 - 256
    document["model"]["ignore_merges"] = False  # now the merges alone have to lead to every rank
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert Tokenizer.load(tmp_path).vocabulary.ranks == qwen.vocabulary.ranks


def test_an_expanded_vocabulary_travels(qwen: Tokenizer, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    case = json.loads(shared("goldens", "tokenizer", "extra_vocab.json").read_text())[1]
    qwen.add_vocabulary(shared("goldens", "tokenizer", case["output_file"])).save(tmp_path)
    assert (tmp_path / "qwen.tiktoken").read_bytes() == qwen_vocabulary().read_bytes()
    theirs, again = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")), Tokenizer.load(tmp_path)
    for row in [*case["encode"], {"text": "<|im_end|>x<|extra_204|>", "ids": [151_645, 87, 151_850]}]:
        assert again.encode(row["text"], special="all") == row["ids"]
        assert theirs.encode(row["text"], add_special_tokens=False).ids == row["ids"]


def test_smollm2_travels(tmp_path: Path) -> None:
    """From GGUF to tokenizer.json: its own split, control tokens, template and ids that do not follow the ranks."""
    tokenizers = pytest.importorskip("tokenizers")
    ours = Tokenizer.load(smollm2_gguf())
    ours.save(tmp_path)
    assert not (tmp_path / "qwen.tiktoken").exists()
    again = Tokenizer.load(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for row in jsonl_gz(*ROWS):
        if row["cat"] != "surrogate":
            ids = ours.encode(row["text"], special="all")
            assert again.encode(row["text"], special="all") == ids
            if ours.decode(ids) == row["text"]:  # else it has bytes without a token: theirs merges over the gap
                assert theirs.encode(row["text"], add_special_tokens=False).ids == ids
    assert again.chat(TALK) == ours.chat(TALK)
    assert (again.eos_ids, again.pad_id, again.bos_id) == (ours.eos_ids, ours.pad_id, ours.bos_id)


def test_bos_is_written_where_the_model_wants_it(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    bytes_only = vocabulary.qwen({byte: rank for rank, byte in enumerate(vocabulary.BYTES)})
    bos = bytes_only.special["<|extra_0|>"]
    Tokenizer(replace(bytes_only, bos_id=bos, add_bos=True)).save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode("hi").ids == [bos, 104, 105]
    again = Tokenizer.load(tmp_path)
    assert again.add_bos and again.bos_id == bos and again.encode("hi") == [104, 105]
    assert not Tokenizer(bytes_only).add_bos
