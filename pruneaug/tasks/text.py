"""Sentences with labels in tab-separated files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pruneaug.errors import TaskError
from pruneaug.tasks.classification import ClassificationTask, Examples
from pruneaug.tasks.extras import require
from pruneaug.tasks.network import NetworkSource
from pruneaug.tasks.splitting import check_labels, limited

PAD, UNKNOWN, START, END = range(4)
_SPECIAL = 4
_WORD = re.compile(r"\w+|[^\w\s]")

Encoder = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""Sentences -> (token ids, attention mask), both int64 [sentences, tokens]."""


def text_tsv(
    model: NetworkSource,
    root: str | None = None,
    train: str | None = None,
    dev: str | None = None,
    test: str | None = None,
    tokens: int = 64,
    vocabulary: int = 10_000,
    tokenizer: str | None = None,
    limit: int | None = None,
) -> ClassificationTask:
    """Lines `sentence<TAB>label` in three files; the network is called with (token ids, attention mask).

    root: the folder of train.tsv, dev.tsv and test.tsv, in place of `train`, `dev` and `test`; dev is for validation.
    tokens: every sentence is cut or padded to this length, start and end included.
    vocabulary: how many tokens are known at most: the most frequent words and signs of the training sentences.
    tokenizer: a folder (or name) for transformers.AutoTokenizer, for a checkpoint that was trained with one.
    limit: use only the first training sentences, for quick runs.
    """
    if tokens < 3 or vocabulary <= _SPECIAL:
        raise TaskError(
            f"`tokens` must be 3 or more and `vocabulary` more than {_SPECIAL}, "
            f"but got tokens={tokens}, vocabulary={vocabulary}"
        )
    files = _files(root, train, dev, test)
    sentences, labels = zip(*(read_tsv(file) for file in files), strict=True)
    num_classes = check_labels(labels[0], labels[1], str(files[0]), str(files[1]))
    check_labels(labels[0], labels[2], str(files[0]), str(files[2]))
    if tokenizer is not None:
        encode, vocab_size = _pretrained_encoder(tokenizer, tokens)
    else:
        ids = build_vocabulary(sentences[0], vocabulary)
        encode, vocab_size = word_encoder(ids, tokens), _SPECIAL + len(ids)
    parts = [Examples(encode(texts), targets) for texts, targets in zip(sentences, labels, strict=True)]
    return ClassificationTask(
        name="text-tsv",
        build=model.builder(num_classes=num_classes, vocab_size=vocab_size),
        splits={
            "train": parts[0].select(limited(torch.arange(len(parts[0])), limit)),
            "validation": parts[1],
            "test": parts[2],
        },
        num_classes=num_classes,
        trained=model.trained,
    )


def _files(root: str | None, *files: str | None) -> list[Path]:
    if root is not None and not any(files):
        paths = [Path(root) / f"{name}.tsv" for name in ("train", "dev", "test")]
    elif root is None and all(files):
        paths = [Path(file) for file in files if file is not None]
    else:
        raise TaskError(
            "the task 'text-tsv' needs the option `root`, or the options `train`, `dev` and `test`, "
            f"but got root={root!r} and files {', '.join(map(repr, files))}"
        )
    for path in paths:
        if not path.is_file():
            raise TaskError(f"the data must be a tab-separated file, but {path} is not there; check the path")
    return paths


def read_tsv(file: Path) -> tuple[list[str], Tensor]:
    """The sentences, and their labels int64 [sentences]. Blank lines are skipped."""
    sentences: list[str] = []
    labels: list[int] = []
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"the data must be UTF-8 text, but {file} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        sentence, tab, label = line.rstrip("\r").rpartition("\t")
        if not tab or not re.fullmatch(r"\s*-?\d+\s*", label):
            raise TaskError(
                f"a line must read sentence<TAB>label with an integer label, but {file}:{number} is {line!r}"
            )
        sentences.append(sentence)
        labels.append(int(label))
    if not sentences:
        raise TaskError(f"a data file must hold at least one sentence, but {file} is empty")
    return sentences, torch.tensor(labels)


def build_vocabulary(sentences: Iterable[str], size: int) -> dict[str, int]:
    """word -> id of the most frequent words, `size` with the special tokens; equal counts in alphabetical order."""
    counts = Counter(word for sentence in sentences for word in _words(sentence))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[: size - _SPECIAL]
    return {word: index for index, word in enumerate(ranked, start=_SPECIAL)}


def word_encoder(ids: dict[str, int], tokens: int) -> Encoder:
    """Encodes each sentence as start, known words or `UNKNOWN`, end, then padding, `tokens` in all."""

    def encode(sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        token_ids = torch.full((len(sentences), tokens), PAD)
        mask = torch.zeros_like(token_ids)
        for row, sentence in enumerate(sentences):
            words = [ids.get(word, UNKNOWN) for word in _words(sentence)][: tokens - 2]
            line = torch.tensor([START, *words, END])
            token_ids[row, : len(line)] = line
            mask[row, : len(line)] = 1
        return token_ids, mask

    return encode


def _words(sentence: str) -> list[str]:
    return _WORD.findall(sentence.lower())


def _pretrained_encoder(name: str, tokens: int) -> tuple[Encoder, int]:
    library = require("transformers", "text", "the option `tokenizer`")
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        raise TaskError(
            f"`tokenizer` must be a folder or name that transformers.AutoTokenizer loads, but {name!r} fails: {error}"
        ) from error

    def encode(sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded = tokenizer(
            list(sentences), padding="max_length", truncation=True, max_length=tokens, return_tensors="pt"
        )
        return encoded["input_ids"], encoded["attention_mask"]

    return encode, len(tokenizer)
