"""Tokenizers: deterministic training, folders, and text that is hostile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.errors import BadInput
from pluribus.text.tokens import CHARACTERS, Tokenizer, clean

LINES = ["show me the flights", "the cheapest flights to boston", "a hotel in boston please", "show the cheapest hotel"] * 3


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.train(LINES, kind=request.param, size=400, max_length=16)


def test_the_same_in_every_process() -> None:
    """The library's WordPiece trainer is not: without the fixed alphabet a study could not be repeated."""
    code = (
        "import hashlib, json\nfrom pluribus.text.tokens import Tokenizer\n"
        f"t = Tokenizer.train({LINES!r}, size=60)\n"
        "print(hashlib.sha256(json.dumps(sorted(t.inner.get_vocab().items())).encode()).hexdigest())"
    )
    found = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(3)}
    assert len(found) == 1


def test_pairs_and_words(tokenizer: Tokenizer) -> None:
    pair = tokenizer.encode(["show flights"], ["a hotel"])
    assert pair.segments.min() == 0
    assert pair.segments.max() == 1
    assert (np.diff(pair.segments) >= 0).all()
    words = tokenizer.encode_words([["flights", "to", "bostonia"], [], None])
    assert words.word_starts is not None
    assert words.words is not None
    assert np.diff(words.word_starts).tolist() == [3, 0, 0]
    assert words.words[0] == 1  # behind the mark that opens the text
    assert (np.diff(words.words) > 0).all()


def test_words_beyond_the_longest_sequence_are_not_there(tokenizer: Tokenizer) -> None:
    found = tokenizer.encode_words([["flights"] * 50])
    assert np.diff(found.starts).tolist() == [16]
    assert found.words is not None
    assert len(found.words) < 16


@given(st.text(max_size=60))
@settings(max_examples=60)
def test_any_text_is_encoded(tokenizer: Tokenizer, text: str) -> None:
    found = tokenizer.encode([text, None, text])
    assert (found.ids >= 0).all()
    assert (found.ids < tokenizer.size).all()
    assert np.diff(found.starts).min() >= 2
    assert np.diff(found.starts).max() <= 16


@pytest.mark.parametrize("text", ["a \ud800 lone surrogate", "\udfff" * 50, "\x00\x01", "", "   ", "e\u0301\u200b\ufeff"])
def test_broken_unicode(tokenizer: Tokenizer, text: str) -> None:
    """A lone surrogate, which no UTF-8 can hold, would raise inside the library."""
    assert len(tokenizer.encode([text]).ids) >= 2
    tokenizer.encode_words([[text, "flights", text]])


def test_a_megabyte(tokenizer: Tokenizer) -> None:
    """Of a long text no more is read than can matter; with and without spaces."""
    assert len(clean("x" * 1_000_000, 100)) == 100
    for text in ("x" * 1_000_000, "flights to " * 100_000):
        assert len(tokenizer.encode([text]).ids) <= 16
    short = ("flights to " * 100_000)[: CHARACTERS * 16]
    np.testing.assert_array_equal(tokenizer.encode([short]).ids, tokenizer.encode([short * 9]).ids)


def test_missing_and_other_cells(tokenizer: Tokenizer) -> None:
    np.testing.assert_array_equal(tokenizer.encode([None]).ids, tokenizer.encode([""]).ids)
    np.testing.assert_array_equal(tokenizer.encode([float("nan")]).ids, tokenizer.encode([""]).ids)
    with pytest.raises(BadInput, match="'3' is not text"):
        tokenizer.encode([3])


def test_saved_and_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.write(tmp_path)
    again = Tokenizer.read(tmp_path / "tokenizer.json", max_length=16)
    np.testing.assert_array_equal(again.encode(LINES).ids, tokenizer.encode(LINES).ids)
    folder = Tokenizer.of_folder(tmp_path, max_length=8)
    assert np.diff(folder.encode(LINES).starts).max() <= 8


def test_folder_with_a_vocabulary_only(tmp_path: Path) -> None:
    """A BERT folder of old has `vocab.txt` alone; the fast tokenizer is made of it."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "show", "flights", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), "utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}), "utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}), "utf-8")
    assert Tokenizer.of_folder(tmp_path).encode(["show flights"]).ids.tolist() == [2, 5, 6, 3]


def test_what_is_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        Tokenizer.of_folder(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"has no tokenizer \(neither tokenizer.json nor a vocabulary\); copy the tokenizer"):
        Tokenizer.of_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", "utf-8")
    with pytest.raises(BadInput, match="is not a tokenizer"):
        Tokenizer.of_folder(tmp_path)
    with pytest.raises(BadInput, match="no training text"):
        Tokenizer.train([None, "", "  "])
    with pytest.raises(BadInput, match="unknown tokenizer 'wordpeice'; did you mean 'wordpiece'"):
        Tokenizer.train(LINES, kind="wordpeice")


def test_vocabulary_stays_within_its_size() -> None:
    many: list[Any] = [f"word{i} other{i * 7}" for i in range(300)]
    assert Tokenizer.train(many, size=120).size <= 120
