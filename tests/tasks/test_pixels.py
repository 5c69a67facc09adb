import pytest
import torch

from pruneaug.tasks.pixels import CropAndFlip, Erase, InTurn, Normalise


def images(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def possible_views(image, pad, flip):
    """Every shifted and mirrored version, one at a time."""
    channels, height, width = image.shape
    padded = torch.zeros(channels, height + 2 * pad, width + 2 * pad, dtype=image.dtype)
    padded[:, pad : pad + height, pad : pad + width] = image
    crops = [
        padded[:, top : top + height, left : left + width] for top in range(2 * pad + 1) for left in range(2 * pad + 1)
    ]
    return crops + [crop.flip(2) for crop in crops if flip]


def test_every_augmented_image_is_a_shift_or_mirror_of_its_own():
    original = images(40, 3, 6, 5)
    (augmented,) = CropAndFlip(pad=2, flip=True)((original,), torch.Generator().manual_seed(1))
    seen = set()
    for before, after in zip(original, augmented, strict=True):
        views = possible_views(before, 2, flip=True)
        matches = [index for index, view in enumerate(views) if torch.equal(view, after)]
        assert matches
        seen.add(matches[0])
    assert len(seen) > 15  # of 50 views in 40 draws


def test_without_flip_and_pad_nothing_changes():
    original = images(8, 1, 4, 4)
    (augmented,) = CropAndFlip(pad=0, flip=False)((original,), torch.Generator())
    assert torch.equal(augmented, original)


def test_half_of_the_images_are_mirrored():
    original = images(400, 1, 4, 4)
    (augmented,) = CropAndFlip(pad=0, flip=True)((original,), torch.Generator().manual_seed(0))
    mirrored = sum(torch.equal(a, b.flip(2)) for a, b in zip(augmented, original, strict=True))
    assert 150 < mirrored < 250


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_image_loses_one_square_or_what_of_it_lies_in_the_image(size):
    original = images(200, 3, 6, 5).clamp_min(1)
    (erased,) = Erase(size)((original,), torch.Generator().manual_seed(1))
    shapes = set()
    for before, after in zip(original, erased, strict=True):
        gone = after[0] == 0
        rows, cols = gone.any(1).nonzero(), gone.any(0).nonzero()
        top, bottom, left, right = int(rows.min()), int(rows.max()), int(cols.min()), int(cols.max())
        square = torch.zeros_like(gone)
        square[top : bottom + 1, left : right + 1] = True
        assert torch.equal(gone, square)
        assert torch.equal(after, torch.where(square, 0, before))
        height, width = bottom - top + 1, right - left + 1
        assert height == size or (height < size and (top == 0 or bottom == 5))
        assert width == size or (width < size and (left == 0 or right == 4))
        shapes.add((top, left))
    assert len(shapes) > 8


def test_augmentations_come_one_after_the_other():
    original = images(8, 3, 6, 5)
    both = InTurn((CropAndFlip(2, True), Erase(2)))((original,), torch.Generator().manual_seed(3))[0]
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(both, Erase(2)(CropAndFlip(2, True)((original,), generator), generator)[0])


def test_normalised_training_images_have_mean_zero_and_deviation_one_in_each_channel():
    original = images(50, 3, 7, 7)
    original[:, 1] //= 4
    normalise = Normalise.of(original)
    exact = original.double() / 255
    torch.testing.assert_close(torch.tensor(normalise.mean).double(), exact.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(normalise.deviation).double(), exact.std((0, 2, 3), correction=0))
    (result,) = normalise((original,))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.std((0, 2, 3), correction=0), torch.ones(3))


def test_images_of_one_colour_stay_finite():
    original = torch.full((3, 1, 4, 4), 7, dtype=torch.uint8)
    (result,) = Normalise.of(original)((original,))
    assert not result.any()
