"""What one operation of PyTorch reads and writes: shapes, strides, bytes, and the kind of work.

Bytes are counted once for each operand: what has to cross from memory and back if nothing is left
in a cache. A dimension of stride 0 repeats the same bytes, which count once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal[
    "view", "copy", "cast", "product", "arithmetic", "gather", "fill", "allocation", "compiled"
]
KINDS: tuple[Kind, ...] = (
    "product", "arithmetic", "compiled", "copy", "cast", "gather", "fill", "view", "allocation",
)  # fmt: skip

# By the name of the operation without its overload. What is in none of these is arithmetic.
_PRODUCTS = {
    "mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_", "addbmm", "addbmm_", "mv", "addmv",
    "dot", "linear", "convolution", "convolution_backward", "_scaled_mm", "_grouped_mm",
}  # fmt: skip
_COPIES = {
    "clone", "copy_", "_foreach_copy_", "_to_copy", "cat", "stack", "repeat", "constant_pad_nd",
    "slice_backward", "select_backward", "flip", "roll", "unfold_backward", "lift_fresh_copy",
}  # fmt: skip
_GATHERS = {"embedding", "index", "index_select", "gather", "take"}
_FILLS = {
    "zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones", "full", "full_like",
    "new_full", "zero_", "fill_", "arange", "eye", "scalar_tensor",
}  # fmt: skip
# These change as many elements of their first argument as they are given, wherever these lie.
_SCATTERS = {"scatter_", "scatter_add_", "index_add_", "index_put_", "index_copy_"}
_EMPTY = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "resize_"}


@dataclass(frozen=True)
class Operand:
    """A tensor as an operation sees it, without its values.

    Attributes:
        shape: its sizes.
        stride: how many elements further the next index of each dimension lies.
        dtype: such as "float32".
        itemsize: bytes of one element.
        storage: which memory it lies in; numbers are used again when memory is freed.
        offset: of its first element in that memory, in elements.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str
    itemsize: int
    storage: int
    offset: int

    @classmethod
    def of(cls, tensor: Tensor) -> Operand:
        """The operand that a tensor is."""
        return cls(
            shape=tuple(tensor.shape),
            stride=tuple(tensor.stride()),
            dtype=str(tensor.dtype).removeprefix("torch."),
            itemsize=tensor.element_size(),
            storage=tensor.untyped_storage()._cdata,
            offset=int(tensor.storage_offset()),
        )

    @property
    def elements(self) -> int:
        """Elements as seen."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        """Bytes of the elements that are stored: a dimension of stride 0 counts as one."""
        count = self.itemsize
        for size, stride in zip(self.shape, self.stride, strict=True):
            count *= size if stride or size == 0 else 1
        return count

    @property
    def span(self) -> tuple[int, int]:
        """The first byte and the one behind the last, in its memory."""
        reach = sum((s - 1) * d for s, d in zip(self.shape, self.stride, strict=True))
        begin = self.offset * self.itemsize
        return (begin, begin + (reach + 1) * self.itemsize) if self.elements else (begin, begin)

    @property
    def contiguous(self) -> bool:
        """Whether its elements lie in one piece in the order of its indices."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= max(1, size)
        return True

    @property
    def expanded(self) -> bool:
        """Whether one element is seen at several indices."""
        return any(d == 0 and s > 1 for s, d in zip(self.shape, self.stride, strict=True))

    @property
    def blas_layout(self) -> Literal["rows", "columns", "strided"]:
        """How a matrix product can take it.

        BLAS reads a matrix whose rows, or whose columns, each lie in one piece ("columns": it is
        told to transpose, and nothing moves). Of any other operand a copy must be made first.
        """
        if len(self.shape) < 2:
            return "rows" if self.stride in ((1,), ()) or self.elements <= 1 else "strided"
        (rows, columns), (down, right) = self.shape[-2:], self.stride[-2:]
        if (right == 1 or columns == 1) and (down >= columns or rows == 1):
            return "rows"
        if (down == 1 or rows == 1) and (right >= rows or columns == 1):
            return "columns"
        return "strided"


@dataclass(frozen=True)
class Traffic:
    """The operands of one operation and the bytes that it has to move.

    Attributes:
        kind: of work.
        inputs, outputs: tensors among the arguments and the results.
        read, written: bytes.
        allocated: bytes of the new storages that came back.
        repeated: inputs of an elementwise operation that are smaller than its result.
        strided: those inputs of a product that BLAS cannot take as they lie.
    """

    kind: Kind
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    read: int
    written: int
    allocated: int = 0
    repeated: tuple[Operand, ...] = ()
    strided: tuple[Operand, ...] = ()


def traffic_of(function: Any, args: Any, kwargs: dict[str, Any], result: Any) -> Traffic:
    """What an operation has moved.

    Args:
        function: of the dispatcher, such as torch.ops.aten.clone.default.
        args, kwargs: as it was called.
        result: what it gave.
    """
    name = function.overloadpacket.__name__
    changed_ids, write_only_ids = _written_arguments(function, args, kwargs, name)
    tensors = list(_tensors((args, kwargs)))
    inputs = _distinct(Operand.of(t) for t in tensors)
    outputs = _distinct(Operand.of(t) for t in _tensors(result))
    changed = _distinct(Operand.of(t) for t in tensors if id(t) in changed_ids)
    read_inputs = _distinct(Operand.of(t) for t in tensors if id(t) not in write_only_ids)
    own = {operand.storage for operand in inputs}
    fresh = [operand for operand in outputs if operand.storage not in own]
    kind = kind_of(name, inputs, outputs, aliased=not fresh and not changed)
    allocated = _allocated(result, own)
    if kind in ("view", "allocation"):
        return Traffic(kind, inputs, outputs, 0, 0, allocated)
    written = sum(operand.nbytes for operand in (*fresh, *changed))
    if kind == "fill":
        return Traffic(kind, (), outputs, 0, written, allocated)
    if kind == "gather":
        ids = sum(o.nbytes for o in inputs if o.dtype.startswith(("int", "uint", "bool")))
        return Traffic(kind, inputs, outputs, written + ids, written, allocated)
    if name in _SCATTERS and inputs:
        given = [operand for operand in inputs if operand not in changed]
        values = max((o.elements for o in given), default=1) * inputs[0].itemsize
        read = sum(operand.nbytes for operand in given) + values
        return Traffic(kind, inputs, outputs, read, values, allocated)
    return Traffic(
        kind,
        read_inputs,
        outputs,
        sum(operand.nbytes for operand in read_inputs),
        written,
        allocated,
        _repeated(function, kind, read_inputs, outputs),
        tuple(o for o in read_inputs if o.blas_layout == "strided") if kind == "product" else (),
    )


def kind_of(
    name: str, inputs: tuple[Operand, ...], outputs: tuple[Operand, ...], *, aliased: bool
) -> Kind:
    """The kind of work of an operation.

    Args:
        name: of the operation, without its overload.
        aliased: every result lies in the memory of an argument, and nothing was written.
    """
    if name in _EMPTY:
        return "allocation"
    if aliased and outputs:
        return "view"
    if name in _FILLS:
        return "fill"
    if name in _PRODUCTS or name.startswith("_scaled_dot_product"):
        return "product"
    if name in _GATHERS:
        return "gather"
    if name in _COPIES:
        types = {operand.dtype for operand in (*inputs, *outputs)}
        return "cast" if name in ("_to_copy", "copy_") and len(types) > 1 else "copy"
    return "arithmetic"


def _repeated(
    function: Any, kind: Kind, inputs: tuple[Operand, ...], outputs: tuple[Operand, ...]
) -> tuple[Operand, ...]:
    if kind != "arithmetic" or torch.Tag.pointwise not in function.tags or not outputs:
        return ()
    largest = max(operand.elements for operand in outputs)
    return tuple(o for o in inputs if o.shape and (o.expanded or 1 < o.elements < largest))


def _written_arguments(
    function: Any, args: Any, kwargs: dict[str, Any], name: str
) -> tuple[set[int], set[int]]:
    """The ids of tensor arguments that are written, and of those that are not read before."""
    written: set[int] = set()
    unread: set[int] = set()
    for place, argument in enumerate(function._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        found = {id(tensor) for tensor in _tensors(value)}
        written |= found
        # beta = 0 tells a product to ignore what its result held.
        ignored = name in ("addmm_", "baddbmm_", "addbmm_") and kwargs.get("beta") == 0
        if argument.is_out or ignored or name in ("copy_", "_foreach_copy_", "zero_", "fill_"):
            unread |= found
    return written, unread


def _allocated(result: Any, own: set[int]) -> int:
    fresh = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in _tensors(result)}
    return sum(size for storage, size in fresh.items() if storage not in own)


def _distinct(operands: Iterable[Operand]) -> tuple[Operand, ...]:
    return tuple(dict.fromkeys(operands))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
