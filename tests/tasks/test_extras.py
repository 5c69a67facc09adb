import pytest

from pruneaug.errors import TaskError
from pruneaug.tasks.extras import require


def test_a_missing_package_names_the_extra_to_install():
    with pytest.raises(
        TaskError, match=r"digits needs the package 'no_such_package'.*pip install 'pruneaug\[vision\]'"
    ):
        require("no_such_package.part", "vision", "digits")


def test_a_package_that_is_there_is_imported():
    assert require("os.path", "vision", "paths").join("a", "b") == "a/b"
