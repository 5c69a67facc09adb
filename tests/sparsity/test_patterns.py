import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneaug.errors import InputError
from pruneaug.sparsity.patterns import DENSE, ELEMENT, Block, LayerChoice, parse_pattern

blocks = st.builds(Block, st.integers(1, 4096), st.integers(1, 4096))


@given(blocks)
def test_a_pattern_reads_back_from_its_text(block: Block) -> None:
    assert parse_pattern(str(block)) == block


def test_element_and_dense_are_patterns() -> None:
    assert parse_pattern("element") == ELEMENT == Block(1, 1)
    assert parse_pattern("dense") is None


@pytest.mark.parametrize("text", ["", "8x1", "block:8", "block:0x1", "block:8x-1", "block:8x1 ", "Block:8x1", "2:4"])
def test_any_other_text_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match="for example 'block:8x1'"):
        parse_pattern(text)


def test_an_empty_block_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1, but got 0x4"):
        Block(0, 4)


@given(blocks, st.integers(1, 9999), st.integers(1, 9999))
def test_the_grid_covers_the_matrix_and_no_block_more(block: Block, rows: int, cols: int) -> None:
    grid_rows, grid_cols = block.grid((rows, cols))
    assert (grid_rows - 1) * block.rows < rows <= grid_rows * block.rows
    assert (grid_cols - 1) * block.cols < cols <= grid_cols * block.cols


@given(st.one_of(st.just(DENSE), st.builds(LayerChoice, blocks, st.floats(0, 1))))
def test_a_choice_reads_back_from_json(choice: LayerChoice) -> None:
    assert LayerChoice.from_json(choice.to_json()) == choice


def test_a_choice_is_dense_without_a_pattern() -> None:
    assert DENSE.is_dense
    assert str(DENSE) == "dense"
    assert str(LayerChoice(Block(8, 1), 0.9)) == "block:8x1@0.9"


@pytest.mark.parametrize(
    ("pattern", "sparsity"), [(None, 0.5), (ELEMENT, 1.5), (ELEMENT, -0.5), (ELEMENT, float("nan"))]
)
def test_a_choice_out_of_range_is_refused(pattern: Block | None, sparsity: float) -> None:
    with pytest.raises(InputError, match="sparsity"):
        LayerChoice(pattern, sparsity)
