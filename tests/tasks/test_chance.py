"""What guessing reaches on a task."""

from collections import Counter

import pytest

from pruneaug.tasks.chance import chance_accuracy, undertrained
from pruneaug.testing.task import ToyTask


def test_chance_is_the_share_of_the_most_frequent_class_of_the_validation_data():
    task = ToyTask()
    labels = [int(label) for batch in task.batches("validation", 7) for label in batch.targets]
    assert chance_accuracy(task) == Counter(labels).most_common(1)[0][1] / len(labels)


@pytest.mark.parametrize(
    ("accuracy", "chance", "said"),
    [(0.1, 0.1, True), (0.18, 0.1, True), (0.2, 0.1, False), (0.52, 0.5, True), (0.7, 0.5, False), (1.0, 1.0, False)],
)
def test_a_network_that_is_hardly_better_than_guessing_is_told(accuracy, chance, said):
    words = undertrained(accuracy, chance)
    assert (words is not None) == said
    if words is not None:
        assert f"is {100 * accuracy:.1f} %" in words
        assert f"gives {100 * chance:.1f} %" in words
