import pytest
import torch

from pruneaug.errors import TaskError
from pruneaug.spec.models import PlugIn
from pruneaug.tasks import NetworkSource
from pruneaug.tasks.text import END, PAD, START, UNKNOWN, build_vocabulary, text_tsv, word_encoder

TINY_BERT = {
    "architecture": "BertForSequenceClassification",
    "config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "train.tsv").write_text("A good film !\t1\na bad film\t0\n\ngood , good\t1\n")
    (tmp_path / "dev.tsv").write_text("good unseen\t1\nbad\t0\n")
    (tmp_path / "test.tsv").write_text("film\t0\r\n")
    return tmp_path


@pytest.fixture
def make(tmp_path):
    def make_task(**options):
        source = NetworkSource(PlugIn(name="transformers", options=TINY_BERT))
        return text_tsv(source, **({"root": str(tmp_path), "tokens": 8} | options))

    return make_task


def test_words_are_ranked_by_count_then_alphabet():
    sentences = ["b b a", "c a b!"]
    assert build_vocabulary(sentences, 100) == {"b": 4, "a": 5, "!": 6, "c": 7}
    assert build_vocabulary(sentences, 6) == {"b": 4, "a": 5}


def test_sentences_are_framed_cut_and_padded():
    ids, mask = word_encoder({"a": 4, "b": 5}, tokens=5)(["A x", "a b a b a b", ""])
    assert ids.tolist() == [
        [START, 4, UNKNOWN, END, PAD],
        [START, 4, 5, 4, END],
        [START, END, PAD, PAD, PAD],
    ]
    assert mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]


def test_three_files_become_three_splits(root, make):
    task = make()
    assert [task.size(split) for split in ("train", "validation", "test")] == [3, 2, 1]
    assert task.splits["train"].targets.tolist() == [1, 0, 1]
    ids, mask = task.splits["validation"].inputs
    assert ids.shape == mask.shape == (2, 8)
    assert ids[0, 2] == UNKNOWN  # words of the validation data are not learnt
    files = {name: str(root / f"{name}.tsv") for name in ("train", "dev", "test")}
    assert make(root=None, **files).size("train") == 3
    assert make(limit=2).size("train") == 2


def test_the_network_knows_the_vocabulary_and_takes_a_batch(root, make):
    task = make()
    model = task.build_model()
    assert model.config.vocab_size == 4 + len({"a", "good", "film", "!", "bad", ","})
    assert task.logits(model(*task.example_inputs(2))).shape == (2, 2)
    assert 0 <= task.evaluate(model, "validation") <= 1


def test_padding_does_not_change_the_answer(root, make):
    short, long = make(tokens=8), make(tokens=16)
    model = short.build_model().eval()
    with torch.inference_mode():
        a, b = (task.logits(model(*task.example_inputs(3))) for task in (short, long))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_tokenizer_of_transformers_can_be_used(root, make, tmp_path):
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film", "un", "##seen"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "tokenizer")
    task = make(tokenizer=str(tmp_path / "tokenizer"))
    ids, mask = task.splits["validation"].inputs
    assert ids[0].tolist() == [2, 5, 7, 8, 3, 0, 0, 0]
    assert mask[0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert task.build_model().config.vocab_size == len(words)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": None}, "needs the option `root`, or"),
        ({"train": "x"}, "needs the option `root`, or"),
        ({"root": "/nowhere"}, "/nowhere/train.tsv is not there"),
        ({"tokens": 2}, "`tokens` must be 3 or more"),
        ({"vocabulary": 4}, "`vocabulary` more than 4"),
        ({"limit": 0}, "`limit`"),
        ({"tokenizer": "/nowhere"}, "'/nowhere' fails"),
    ],
)
def test_wrong_options_are_refused(root, make, options, message):
    with pytest.raises(TaskError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fine\t1\nno label\n", r"test.tsv:2 is 'no label'"),
        ("fine\tgood\n", r"test.tsv:1"),
        ("fine\t2\n", "holds label 2"),
        ("fine\t-1\n", "holds -1"),
        ("\n", r"test.tsv is empty"),
        (b"\xff\xfe\t1", r"UTF-8 text, but .*test.tsv cannot be read"),
    ],
)
def test_wrong_files_are_refused(root, make, text, message):
    (root / "test.tsv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TaskError, match=message):
        make()
