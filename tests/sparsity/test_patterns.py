import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneaug.errors import InputError
from pruneaug.sparsity.patterns import DENSE, ELEMENT, NM, TWO_OF_FOUR, Block, LayerChoice, parse_pattern, sort_key

blocks = st.builds(Block, st.integers(1, 4096), st.integers(1, 4096))
ofs = st.integers(2, 64).flatmap(lambda m: st.builds(NM, st.integers(1, m - 1), st.just(m)))


@given(st.one_of(blocks, ofs))
def test_a_pattern_reads_back_from_its_text(pattern: Block | NM) -> None:
    assert parse_pattern(str(pattern)) == pattern


def test_element_and_dense_are_patterns() -> None:
    assert parse_pattern("element") == ELEMENT == Block(1, 1)
    assert parse_pattern("dense") is None


@pytest.mark.parametrize(
    "text",
    ["", "8x1", "block:8", "block:0x1", "block:8x-1", "block:8x1 ", "Block:8x1", "2:4", "nm:2", "nm:2x4", "nm:a:4"],
)
def test_any_other_text_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match="for example 'block:8x1'"):
        parse_pattern(text)


def test_an_empty_block_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1, but got 0x4"):
        Block(0, 4)


@pytest.mark.parametrize("text", ["nm:0:4", "nm:4:4", "nm:5:4", "nm:0:0"])
def test_n_of_m_keeps_some_columns_and_removes_some(text: str) -> None:
    with pytest.raises(
        InputError, match=f"1 <= N < M must hold for a pattern nm:N:M, but got {text}; for example nm:2:4"
    ):
        parse_pattern(text)


def test_two_of_four_is_read_and_fits_where_columns_make_whole_groups() -> None:
    assert parse_pattern("nm:2:4") == TWO_OF_FOUR == NM(2, 4)
    assert (TWO_OF_FOUR.sparsity, TWO_OF_FOUR.grid((3, 5))) == (0.5, (3, 5))
    assert [cols for cols in range(1, 13) if TWO_OF_FOUR.fits((1, cols))] == [4, 8, 12]


@given(ofs)
def test_a_narrower_group_keeps_the_same_share_rounded_up(pattern: NM) -> None:
    for width in range(1, pattern.m + 1):
        share = pattern.n / pattern.m * width
        assert share - 1e-9 <= pattern.kept(width) < share + 1
    assert pattern.kept(pattern.m) == pattern.n


@given(ofs, st.lists(st.floats(0, 1), max_size=3))
def test_a_block_has_every_sparsity_and_n_of_m_its_own(pattern: NM, asked: list[float]) -> None:
    assert Block(8, 1).sparsities([*asked, *asked]) == tuple(dict.fromkeys(asked))
    assert pattern.sparsities(asked) == (pattern.sparsity,)


def test_blocks_are_sorted_before_n_of_m() -> None:
    patterns = [NM(2, 4), Block(8, 1), NM(1, 4), Block(1, 16)]
    assert sorted(patterns, key=sort_key) == [Block(1, 16), Block(8, 1), NM(1, 4), NM(2, 4)]


@given(blocks, st.integers(1, 9999), st.integers(1, 9999))
def test_the_grid_covers_the_matrix_and_no_block_more(block: Block, rows: int, cols: int) -> None:
    grid_rows, grid_cols = block.grid((rows, cols))
    assert (grid_rows - 1) * block.rows < rows <= grid_rows * block.rows
    assert (grid_cols - 1) * block.cols < cols <= grid_cols * block.cols


@given(
    st.one_of(
        st.just(DENSE),
        st.builds(LayerChoice, blocks, st.floats(0, 1)),
        ofs.map(lambda pattern: LayerChoice(pattern, pattern.sparsity)),
    )
)
def test_a_choice_reads_back_from_json(choice: LayerChoice) -> None:
    assert LayerChoice.from_json(choice.to_json()) == choice


def test_a_choice_is_dense_without_a_pattern() -> None:
    assert DENSE.is_dense
    assert str(DENSE) == "dense"
    assert str(LayerChoice(Block(8, 1), 0.9)) == "block:8x1@0.9"
    assert str(LayerChoice(TWO_OF_FOUR, 0.5)) == "nm:2:4@0.5"


def test_n_of_m_is_no_sparser_than_it_is() -> None:
    assert LayerChoice(TWO_OF_FOUR, 0.25).sparsity == 0.25
    with pytest.raises(InputError, match=r"sparsity of nm:2:4 must be 0\.5, or less on the way there, but got 0.9"):
        LayerChoice(TWO_OF_FOUR, 0.9)


@pytest.mark.parametrize(
    ("pattern", "sparsity"), [(None, 0.5), (ELEMENT, 1.5), (ELEMENT, -0.5), (ELEMENT, float("nan"))]
)
def test_a_choice_out_of_range_is_refused(pattern: Block | None, sparsity: float) -> None:
    with pytest.raises(InputError, match="sparsity"):
        LayerChoice(pattern, sparsity)
