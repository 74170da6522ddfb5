"""Tokenizers: from a local folder, or trained on a table's own training text; always saved with the model.

Trained ones are

- `wordpiece` (Schuster & Nakajima, "Japanese and Korean Voice Search", 2012; as BERT uses it): lower case, split at white space
  and punctuation, then the longest known pieces. The trainer of the `tokenizers` library gives the pieces `##x` their ids in the
  order of a hash table, so that two processes disagree; here all single characters get theirs beforehand, in order.
- `bpe` (Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units", 2016) over bytes: no unknown
  token, case kept.

Text is hostile: a missing cell is the empty text, a lone surrogate becomes U+FFFD, and of a text nothing beyond
`CHARACTERS` times the longest sequence is looked at.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluribus.errors import BadInput, require, unknown

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
KINDS = ("wordpiece", "bpe")
CHARACTERS = 32  # per token of the longest sequence
WORD = 200  # characters of one given word that are looked at
FILE = "tokenizer.json"


@dataclass(frozen=True)
class Tokenised:
    """n texts as token ids, one after another.

    ids [total], segments [total] (0 of the first text, 1 of the second), starts [n + 1]: text i owns [starts[i], starts[i+1]).
    words [total words], word_starts [n + 1]: for texts given as words the place within its text of each word's first token;
        words beyond the longest sequence are not there. None for plain texts.
    """

    ids: NDArray[np.int32]
    segments: NDArray[np.int32]
    starts: NDArray[np.int64]
    words: NDArray[np.int32] | None = None
    word_starts: NDArray[np.int64] | None = None


def clean(text: Any, characters: int) -> str:
    """A text that can be encoded: missing → "", lone surrogates → U+FFFD, at most so many characters."""
    if text is None or (isinstance(text, float) and math.isnan(text)):
        return ""
    if not isinstance(text, str):
        raise BadInput(f"{str(text)!r:.40} is not text", where="a text column", remedy="give it strings")
    found: str = text[:characters]
    try:
        found.encode("utf-8")
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in found)
    return found


class Tokenizer:
    """Texts → token ids.

    inner: a tokenizer of the `tokenizers` library whose post-processor adds the special tokens.
    max_length: tokens a text may have, the special ones included; what is beyond is cut.
    """

    def __init__(self, inner: Any, max_length: int) -> None:
        if max_length < 4:
            raise BadInput(f"max_length must be at least 4, not {max_length}", where="tokenizer")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a trial has one thread, and servers fork
        self.inner, self.max_length = inner, max_length
        self.inner.no_padding()
        self.inner.enable_truncation(max_length, strategy="longest_first")

    @property
    def size(self) -> int:
        """Ids are below this number."""
        return int(self.inner.get_vocab_size(with_added_tokens=True))

    @property
    def pad(self) -> int:
        """The id that fills up short rows of a batch."""
        for token in ("[PAD]", "<pad>", "<|endoftext|>", "</s>"):
            found = self.inner.token_to_id(token)
            if found is not None:
                return int(found)
        return 0

    # Where from

    @classmethod
    def train(
        cls, texts: Iterable[Any], *, kind: str = "wordpiece", size: int = 8000, lower: bool = True, max_length: int = 128
    ) -> Tokenizer:
        """Train on these texts (strings, or lists of words). size: ids at most, the special ones and characters included."""
        require("tokenizers", extra="text", purpose="training a tokenizer")
        if kind not in KINDS:
            raise unknown("tokenizer", kind, KINDS)
        lines = [line for text in texts if (line := _line(text, max_length))]
        if not lines:
            raise BadInput("no training text", where="tokenizer", remedy="check that the text column is not empty")
        inner = _wordpiece(lines, size, lower) if kind == "wordpiece" else _bpe(lines, size, lower)
        return cls(inner, max_length)

    @classmethod
    def of_folder(cls, folder: str | Path, *, max_length: int = 128) -> Tokenizer:
        """The tokenizer of a local Hugging Face folder: its `tokenizer.json`, or whatever `AutoTokenizer` makes of the other
        files it keeps (`vocab.txt`, …). Nothing is downloaded."""
        folder = Path(folder)
        if not folder.is_dir():
            raise BadInput("no such folder", where=str(folder), remedy="check the path; models are never downloaded")
        if (folder / FILE).is_file():
            return cls.read(folder / FILE, max_length=max_length)
        require("transformers", extra="text", purpose="reading a tokenizer")
        from transformers import AutoTokenizer

        remedy = "copy the tokenizer's files into it, or train one: tokenizer = wordpiece"
        if not any((folder / name).exists() for name in ("vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")):
            raise BadInput(f"has no tokenizer (neither {FILE} nor a vocabulary)", where=str(folder), remedy=remedy)
        try:
            found = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # transformers raises whatever the file at hand made it raise
            reason = str(error).splitlines()[0][:160]
            raise BadInput(f"has no tokenizer that can be read ({reason})", where=str(folder), remedy=remedy) from error
        inner = getattr(found, "backend_tokenizer", None)
        if inner is None:
            raise BadInput(f"has only a slow tokenizer and no {FILE}", where=str(folder), remedy="save its fast version there")
        return cls(inner, max_length)

    @classmethod
    def read(cls, path: str | Path, *, max_length: int) -> Tokenizer:
        """The tokenizer of one `tokenizer.json`."""
        require("tokenizers", extra="text", purpose="reading a tokenizer")
        from tokenizers import Tokenizer as Inner

        path = Path(path)
        if not path.is_file():
            raise BadInput("is missing", where=str(path), remedy="restore the model folder")
        try:
            inner = Inner.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise BadInput(f"is not a tokenizer ({str(error)[:160]})", where=str(path), remedy="restore the file") from error
        return cls(inner, max_length)

    def write(self, folder: Path) -> None:
        """Write `tokenizer.json` into the folder."""
        self.inner.save(str(folder / FILE))

    # Encoding

    def encode(self, first: Sequence[Any], second: Sequence[Any] | None = None) -> Tokenised:
        """Texts, or pairs of texts joined as the tokenizer joins pairs."""
        most = CHARACTERS * self.max_length
        texts: list[Any] = [clean(text, most) for text in first]
        if second is not None:
            texts = list(zip(texts, (clean(text, most) for text in second)))
        found = self.inner.encode_batch(texts)
        ids, starts = _joined([e.ids for e in found])
        segments, _ = _joined([e.type_ids for e in found])
        return Tokenised(ids, segments, starts)

    def encode_words(self, texts: Sequence[Any]) -> Tokenised:
        """Texts given as lists of words; `Tokenised.words` says where each word begins."""
        given = [[clean(word, WORD) for word in _words(text, self.max_length)] for text in texts]
        found = self.inner.encode_batch(given, is_pretokenized=True)
        ids, starts = _joined([e.ids for e in found])
        segments, _ = _joined([e.type_ids for e in found])
        words, word_starts = _joined([_first_tokens(e.word_ids) for e in found])
        return Tokenised(ids, segments, starts, words, word_starts)


def _words(text: Any, most: int) -> Sequence[Any]:
    """The words of a cell: none of a missing one; a plain text is cut at white space."""
    if text is None or (isinstance(text, float) and math.isnan(text)):
        return ()
    if isinstance(text, str):
        text = text.split()
    return list(text[:most])


def _line(text: Any, max_length: int) -> str:
    if isinstance(text, str) or text is None or isinstance(text, float):
        return clean(text, CHARACTERS * max_length).strip()
    return " ".join(clean(word, WORD) for word in text).strip()


def _first_tokens(word_ids: Sequence[int | None]) -> list[int]:
    """For each word the place of its first token; a word that left no token gets the first place of the text."""
    places: dict[int, int] = {}
    for place, word in enumerate(word_ids):
        if word is not None:
            places.setdefault(word, place)
    return [places.get(word, 0) for word in range(max(places, default=-1) + 1)]


def _joined(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    starts = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=starts[1:])
    values = np.fromiter((value for row in rows for value in row), np.int32, int(starts[-1]))
    return values, starts


# Training


def _template(inner: Any) -> None:
    from tokenizers import processors

    marks = [(token, inner.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
    )


def _wordpiece(lines: Sequence[str], size: int, lower: bool) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    normal, cut = normalizers.BertNormalizer(lowercase=lower), pre_tokenizers.BertPreTokenizer()
    letters = sorted({c for line in lines for word, _ in cut.pre_tokenize_str(normal.normalize_str(line)) for c in word})
    known = [*SPECIAL, *letters, *(f"##{c}" for c in letters)]
    school = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    school.normalizer, school.pre_tokenizer = normal, cut
    trainer = trainers.WordPieceTrainer(vocab_size=max(size, len(known)), special_tokens=known, show_progress=False)
    school.train_from_iterator(lines, trainer)
    inner = Tokenizer(models.WordPiece(school.get_vocab(), unk_token="[UNK]"))  # without the letters as marks of their own
    inner.normalizer, inner.pre_tokenizer, inner.decoder = normal, cut, decoders.WordPiece()
    inner.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    _template(inner)
    return inner


def _bpe(lines: Sequence[str], size: int, lower: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    if lower:
        inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=max(size, len(SPECIAL) + len(letters)),
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(letters),
        show_progress=False,
    )
    inner.train_from_iterator(lines, trainer)
    _template(inner)
    return inner
