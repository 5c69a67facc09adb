import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pruneaug.errors import TaskError
from pruneaug.tasks.parquet import parquet_images


@pytest.fixture
def write(tmp_path, encode_png):
    """Writes `count` images; the red channel is the row's number plus `first`, and the label the row modulo 3."""

    def write_file(name, count, first=0, image_name="img", label_name="label", wrap=True, **columns):
        content = [encode_png((first + row, 1, 2)) for row in range(count)]
        table = {
            image_name: [{"bytes": item, "path": None} for item in content] if wrap else content,
            label_name: [row % 3 for row in range(count)],
        }
        pq.write_table(pa.table(table | columns), tmp_path / name)

    return write_file


@pytest.fixture
def root(tmp_path, write):
    write("train.parquet", 30)
    write("test.parquet", 6, first=100)
    return tmp_path


@pytest.fixture
def make(resnet20_source, tmp_path):
    def make_task(**options):
        given = {"cache": str(tmp_path / "cache")}
        if "train" not in options:
            given["root"] = str(tmp_path)
        return parquet_images(resnet20_source, **(given | options))

    return make_task


def rows(task, split):
    """Which rows of the file are in the split, read off the red channel."""
    (images,) = task.splits[split].inputs
    return images[:, 0, 0, 0].tolist()


def test_images_and_labels_are_read_and_validation_is_split_off_train(root, make):
    task = make(validation=6)
    assert [task.size(split) for split in ("train", "validation", "test")] == [24, 6, 6]
    assert sorted(rows(task, "train") + rows(task, "validation")) == list(range(30))
    assert rows(task, "test") == [100, 101, 102, 103, 104, 105]
    for split, first in (("train", 0), ("validation", 0), ("test", 100)):
        assert task.splits[split].targets.tolist() == [(row - first) % 3 for row in rows(task, split)]
    assert task.splits["validation"].targets.bincount().tolist() == [2, 2, 2]


def test_pixels_are_those_of_the_image(root, make, encode_png):
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    content = [stream.getvalue()] + [encode_png()] * 2
    pq.write_table(pa.table({"img": content, "label": [0, 1, 2]}), root / "test.parquet")
    (images,) = make().splits["test"].inputs
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), pixels)


def test_two_files_other_columns_and_plain_bytes(tmp_path, write, make):
    write("a.parquet", 12, image_name="picture", label_name="kind", wrap=False)
    write("b.parquet", 3, image_name="picture", label_name="kind", wrap=False)
    options = {"image_column": "picture", "label_column": "kind", "validation": 0.25}
    task = make(train=str(tmp_path / "a.parquet"), test=str(tmp_path / "b.parquet"), **options)
    assert [task.size(split) for split in ("train", "validation", "test")] == [9, 3, 3]


def test_the_seed_decides_the_validation_split_and_the_limit_does_not(root, make):
    base = make(validation=6, seed=1)
    assert rows(make(validation=6, seed=1), "validation") == rows(base, "validation")
    assert rows(make(validation=6, seed=2), "validation") != rows(base, "validation")
    short = make(validation=6, seed=1, limit=5)
    assert rows(short, "validation") == rows(base, "validation")
    assert rows(short, "train") == rows(base, "train")[:5]


def test_images_are_scaled_and_cut_to_the_asked_size(tmp_path, write, make, encode_png):
    write("train.parquet", 6)
    wide = [encode_png(size=(40, 20)), encode_png(size=(16, 50)), encode_png(size=(10, 10))]
    pq.write_table(pa.table({"img": wide, "label": [0, 1, 2]}), tmp_path / "test.parquet")
    task = make(size=16, validation=3)
    (images,) = task.splits["test"].inputs
    assert images.shape == (3, 3, 16, 16)
    assert (images == torch.tensor([10, 20, 30])[:, None, None]).all()  # scaling keeps an even colour


def test_grey_images_have_one_channel_and_the_network_too(root, make):
    task = make(channels=1)
    assert task.build_model().conv1.in_channels == 1
    assert task.example_inputs(2)[0].shape == (2, 1, 8, 8)


def test_the_network_gets_the_number_of_classes(root, make):
    assert make().build_model().fc.out_features == 3


def test_given_mean_and_std_are_used(root, make):
    task = make(mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    batch = next(iter(task.batches("test", 6)))
    assert batch.inputs[0][0, 0, 0, 0].item() == pytest.approx((100 / 255 - 0.5) / 0.25)


def test_the_second_reading_comes_from_the_cache(root, make, tmp_path):
    first = make()
    (kept,) = {file for file in (tmp_path / "cache").iterdir() if file.stat().st_size > 30 * 8 * 8 * 3}
    corrupted = kept.read_bytes()
    kept.write_bytes(corrupted[:-1] + bytes([corrupted[-1] ^ 1]))
    second = make()
    assert not torch.equal(first.splits["train"].inputs[0], second.splits["train"].inputs[0]) or not torch.equal(
        first.splits["validation"].inputs[0], second.splits["validation"].inputs[0]
    )


def test_a_changed_file_is_read_anew(root, make, write):
    make()
    write("test.parquet", 6, first=200)
    assert rows(make(), "test")[0] == 200


def test_a_broken_cache_file_is_made_anew(root, make, tmp_path, caplog):
    make()
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(b"broken")
    assert rows(make(), "test")[0] == 100
    assert "is made anew" in caplog.text
    caplog.clear()
    make()
    assert not caplog.text


def test_a_cache_that_cannot_be_written_costs_a_warning(root, make, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert make(cache=str(tmp_path / "file" / "cache")).size("test") == 6
    assert "not kept for the next run" in caplog.text


def test_the_users_cache_folder_is_used_by_default(root, make, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    make(cache=None)
    assert len(list((tmp_path / "xdg" / "pruneaug").iterdir())) == 2


def test_shuffled_training_batches_are_augmented_and_others_are_not(root, make):
    task = make(flip=False, pad=1, validation=6)
    plain = {tuple(image.flatten().tolist()) for batch in task.batches("train", 8) for image in batch.inputs[0]}
    shuffled = {tuple(image.flatten().tolist()) for batch in task.batches("train", 8, 0) for image in batch.inputs[0]}
    assert len(plain) == 24
    assert not shuffled <= plain
    unchanged = make(flip=False, pad=0, validation=6)
    assert unchanged.augment is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": None}, "needs the option `root`, or"),
        ({"root": "/", "test": "x"}, "needs the option `root`, or"),
        ({"root": "/nowhere"}, "/nowhere/train.parquet is not there"),
        ({"validation": 30}, "`validation` must be a count from 1 to 29"),
        ({"validation": 0}, "`validation` must be"),
        ({"limit": -1}, "`limit`"),
        ({"channels": 4}, "`channels` must be 1"),
        ({"size": 0}, "`size`"),
        ({"pad": -1}, "`pad`"),
        (
            {"image_column": "pixels"},
            "must have a column 'pixels', but has 'img', 'label'; set the option `image_column`",
        ),
        ({"label_column": "img"}, "labels must be integers"),
        ({"mean": [0.5, 0.5, 0.5]}, "`mean` and `std` must both be given"),
        ({"mean": [0.5], "std": [0.5]}, "each with 3 values"),
    ],
)
def test_wrong_options_are_refused(root, make, options, message):
    with pytest.raises(TaskError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0, 1, None]}, "1 nulls"),
        ({"label": ["a", "b", "c"]}, "type string"),
        ({"label": [0, 1, 3]}, "among the 3 classes of .*train.parquet, but .*test.parquet holds label 3"),
        ({"label": [0, -1, 1]}, "holds -1"),
        ({"img": [b"no image", b"", b""]}, "row 0 of .*test.parquet is not"),
        ({"img": [{"bytes": None, "path": "x.png"}] * 3}, "row 0 of .*test.parquet holds NoneType"),
        ({"img": [None, None, None]}, "holds NoneType"),
    ],
)
def test_wrong_columns_are_refused(root, make, write, columns, message):
    write("test.parquet", 3, **columns)
    with pytest.raises(TaskError, match=message):
        make()


def test_a_class_without_training_images_is_refused(root, make, write):
    write("train.parquet", 9)
    table = pq.read_table(root / "train.parquet").set_column(1, "label", pa.array([0, 2, 2] * 3))
    pq.write_table(table, root / "train.parquet")
    with pytest.raises(TaskError, match=r"class 1 has none in .*train.parquet"):
        make()


def test_images_of_different_sizes_need_the_option_size(root, make, encode_png):
    content = [encode_png(), encode_png(size=(9, 8)), encode_png()]
    pq.write_table(pa.table({"img": content, "label": [0, 1, 2]}), root / "test.parquet")
    with pytest.raises(TaskError, match=r"row 1 of .* has 9x8 pixels and the first image 8x8; set the option `size`"):
        make()


def test_splits_of_different_sizes_need_the_option_size(root, make, encode_png):
    pq.write_table(pa.table({"img": [encode_png(size=(4, 4))] * 3, "label": [0, 1, 2]}), root / "test.parquet")
    with pytest.raises(TaskError, match=r"test has \[3, 4, 4\] and train \[3, 8, 8\]"):
        make()


@pytest.mark.parametrize("damage", [b"", b"PAR1 but no more"])
def test_a_broken_file_is_refused(root, make, damage):
    (root / "test.parquet").write_bytes(damage)
    with pytest.raises(TaskError, match=r"test.parquet cannot be read"):
        make()


def test_an_image_cut_short_is_refused(root, make, encode_png):
    whole = encode_png(size=(64, 64))
    pq.write_table(pa.table({"img": [whole[: len(whole) // 2]] * 3, "label": [0, 1, 2]}), root / "test.parquet")
    with pytest.raises(TaskError, match=r"row 0 of .* is not"):
        make()


def test_a_file_without_rows_is_refused(root, make, write):
    write("test.parquet", 0)
    with pytest.raises(TaskError, match="no rows"):
        make()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_refused(root, make):
    (root / "test.parquet").chmod(0)
    with pytest.raises(TaskError, match="cannot be read"):
        make()
