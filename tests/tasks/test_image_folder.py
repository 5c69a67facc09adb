import pytest

from pruneaug.errors import TaskError
from pruneaug.tasks.folder import image_folder

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def fill(tmp_path, encode_png):
    """Writes `count` images for each class; red numbers the class, green the image."""

    def write(folder, count, classes=CLASSES):
        for label, name in enumerate(classes):
            (tmp_path / folder / name).mkdir(parents=True)
            for number in range(count):
                (tmp_path / folder / name / f"{number:02}.png").write_bytes(encode_png((label, number, 0)))

    return write


@pytest.fixture
def make(resnet20_source, tmp_path):
    def make_task(root=".", **options):
        return image_folder(resnet20_source, root=str(tmp_path / root), cache=str(tmp_path / ".cache"), **options)

    return make_task


def identities(task, split):
    (images,) = task.splits[split].inputs
    return [tuple(row) for row in images[:, :2, 0, 0].tolist()]


def test_one_root_is_split_by_the_seed(fill, make):
    fill("images", 20)
    task = make("images", validation=6, test=0.2)
    assert [task.size(split) for split in ("train", "validation", "test")] == [42, 6, 12]
    everything = [identity for split in task.splits for identity in identities(task, split)]
    assert sorted(everything) == [(label, number) for label in range(3) for number in range(20)]
    for split, examples in task.splits.items():
        assert examples.targets.tolist() == [label for label, _ in identities(task, split)]
        assert len(set(examples.targets.bincount().tolist())) == 1
    assert identities(make("images", validation=6, test=0.2), "test") == identities(task, "test")
    assert identities(make("images", validation=6, test=0.2, seed=1), "test") != identities(task, "test")


def test_split_folders_are_used_and_validation_is_split_off_train_if_missing(fill, make):
    fill("train", 10)
    fill("test", 2)
    task = make(validation=3)
    assert [task.size(split) for split in ("train", "validation", "test")] == [27, 3, 6]
    assert set(identities(task, "validation")).isdisjoint(identities(task, "train"))


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_a_validation_folder_is_used(fill, make, name):
    fill("train", 5)
    fill(name, 3)
    fill("test", 2)
    task = make()
    assert [task.size(split) for split in ("train", "validation", "test")] == [15, 9, 6]


def test_a_limit_takes_images_of_all_classes(fill, make):
    fill("images", 20)
    task = make("images", limit=12)
    assert task.size("train") == 12
    assert set(task.splits["train"].targets.tolist()) == {0, 1, 2}


def test_the_network_fits_the_images(fill, make):
    fill("images", 4)
    task = make("images", validation=3, test=3, size=6)
    model = task.build_model()
    assert task.logits(model(*task.example_inputs(2))).shape == (2, 3)
    assert task.example_inputs(1)[0].shape == (1, 3, 6, 6)


def test_a_root_that_is_no_folder_is_refused(make):
    with pytest.raises(TaskError, match="`root` must be a folder"):
        make("nothing")


def test_fewer_than_two_classes_are_refused(fill, make, tmp_path):
    fill("images", 2, classes=("ant",))
    with pytest.raises(TaskError, match=r"at least two class folders, but .* has ant"):
        make("images")


def test_an_empty_class_is_refused(fill, make, tmp_path):
    fill("images", 2)
    (tmp_path / "images" / "dog").mkdir()
    (tmp_path / "images" / "dog" / "notes.txt").write_text("no image")
    with pytest.raises(TaskError, match=r"images/dog has none"):
        make("images")


def test_a_class_that_train_does_not_know_is_refused(fill, make):
    fill("train", 2)
    fill("test", 2, classes=(*CLASSES, "dog"))
    with pytest.raises(TaskError, match="'dog'; train has ant, bee, cat"):
        make()


def test_train_without_test_is_refused(fill, make):
    fill("train", 2)
    with pytest.raises(TaskError, match=r"must have test/ too"):
        make()


def test_parts_that_leave_nothing_to_train_on_are_refused(fill, make):
    fill("images", 2)
    with pytest.raises(TaskError, match="take 6 of 6"):
        make("images", validation=3, test=3)


def test_a_broken_image_is_named(fill, make, tmp_path):
    fill("images", 2)
    (tmp_path / "images" / "bee" / "01.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(TaskError, match=r"bee/01.png is not"):
        make("images")
