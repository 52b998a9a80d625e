import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from firsthand.llm.foundations.memory import (
    byte_offset,
    describe_layout,
    is_row_major,
    row_major_strides,
    span_bytes,
)

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=5)
DTYPES = st.sampled_from([np.uint8, np.float32, np.float64, np.complex128])


@given(SHAPES, DTYPES)
def test_strides_are_those_of_numpy(shape: tuple[int, ...], dtype: type) -> None:
    array = np.zeros(shape, dtype)
    assert row_major_strides(shape, array.itemsize) == array.strides


def test_strides_of_a_worked_example() -> None:
    assert row_major_strides((2, 3, 5), 4) == (60, 20, 4)
    assert row_major_strides(()) == ()
    assert row_major_strides((2, 0, 3)) == (24, 24, 8)


@given(SHAPES, DTYPES, st.data())
def test_offset_is_the_distance_between_addresses(
    shape: tuple[int, ...], dtype: type, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    steps = data.draw(st.tuples(*[st.sampled_from([1, 2, -1]) for _ in shape]))
    array = np.zeros(shape, dtype).transpose(order)[tuple(slice(None, None, s) for s in steps)]
    index = data.draw(st.tuples(*[st.integers(0, length - 1) for length in array.shape]))
    first = array[(slice(0, 1),) * array.ndim].__array_interface__["data"][0]
    there = array[tuple(slice(i, i + 1) for i in index)].__array_interface__["data"][0]
    assert byte_offset(index, array.strides) == there - first


@given(SHAPES, DTYPES, st.data())
def test_row_major_and_span_agree_with_numpy(
    shape: tuple[int, ...], dtype: type, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    steps = data.draw(st.tuples(*[st.sampled_from([1, 2, -1]) for _ in shape]))
    array = np.zeros(shape, dtype).transpose(order)[tuple(slice(None, None, s) for s in steps)]
    low, high = np.lib.array_utils.byte_bounds(array)
    assert is_row_major(array.shape, array.strides, array.itemsize) == array.flags.c_contiguous
    assert span_bytes(array.shape, array.strides, array.itemsize) == high - low


def test_arrays_without_elements_and_with_stride_zero() -> None:
    assert is_row_major((0, 3), (999, 1))
    assert span_bytes((0, 3), (999, 1)) == 0
    assert span_bytes((5, 3), (0, 8)) == 24
    assert not is_row_major((5, 3), (0, 8))


def test_description_tells_owner_from_view() -> None:
    array = np.zeros((2, 3), np.float32)
    assert describe_layout(array) == (
        "float32, shape (2, 3), strides (12, 4), 24 bytes of elements in a span of 24, "
        "row-major, owns its memory"
    )
    assert describe_layout(array.T).endswith("not row-major, view")
    assert "8 bytes of elements in a span of 16" in describe_layout(array[:, 1])


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, -1\)"):
        row_major_strides((2, -1))
    with pytest.raises(ValueError, match="itemsize 0"):
        row_major_strides((2,), 0)
    with pytest.raises(ValueError, match=r"\(1, 2\) and strides \(8,\)"):
        byte_offset((1, 2), (8,))
    with pytest.raises(ValueError, match="differ in length"):
        is_row_major((1, 2), (8,))
    with pytest.raises(ValueError, match="differ in length"):
        span_bytes((1,), ())
