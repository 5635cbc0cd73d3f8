"""The source of the Triton kernel; imported only where Triton is installed.

Legend: S slots, N positions, I inputs, O outputs, r rank.
"""

# Triton reads this function's source: types and conventions are Triton's.
# mypy: ignore-errors

import triton.language as tl

__all__ = ["two_products"]


def two_products(
    total_ptr, source_ptr, first_ptr, second_ptr, hidden_ptr,
    num_positions, num_inputs, num_outputs, rank,
    total_s, total_n, total_o,
    source_s, source_n, source_i,
    first_s, first_i, first_r,
    second_s, second_r, second_o,
    hidden_s, hidden_n, hidden_r,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr, WIDENS: tl.constexpr,
):  # fmt: skip
    """``total[S, N, O] += (source[S, N, I] @ first[S, I, r]) @ second[S, r, O]``.

    ``WIDENS`` multiplies in float32: Triton's interpreter cannot multiply bfloat16.
    """
    slot = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    ranks = tl.arange(0, RANK)
    has_row, has_rank = rows < num_positions, ranks < rank
    hidden = tl.zeros((ROWS, RANK), dtype=tl.float32)
    for start in range(0, num_inputs, COLUMNS):
        inputs = start + tl.arange(0, COLUMNS)
        has_input = inputs < num_inputs
        source = tl.load(
            source_ptr + slot * source_s + rows[:, None] * source_n + inputs[None, :] * source_i,
            mask=has_row[:, None] & has_input[None, :],
            other=0.0,
        )
        first = tl.load(
            first_ptr + slot * first_s + inputs[:, None] * first_i + ranks[None, :] * first_r,
            mask=has_input[:, None] & has_rank[None, :],
            other=0.0,
        )
        if WIDENS:
            source, first = source.to(tl.float32), first.to(tl.float32)
        hidden += tl.dot(source, first, input_precision="ieee")
    kept = hidden.to(hidden_ptr.dtype.element_ty)
    tl.store(
        hidden_ptr + slot * hidden_s + rows[:, None] * hidden_n + ranks[None, :] * hidden_r,
        kept,
        mask=has_row[:, None] & has_rank[None, :],
    )
    for start in range(0, num_outputs, COLUMNS):
        outputs = start + tl.arange(0, COLUMNS)
        has_output = outputs < num_outputs
        second = tl.load(
            second_ptr + slot * second_s + ranks[:, None] * second_r + outputs[None, :] * second_o,
            mask=has_rank[:, None] & has_output[None, :],
            other=0.0,
        )
        place = total_ptr + slot * total_s + rows[:, None] * total_n + outputs[None, :] * total_o
        here = has_row[:, None] & has_output[None, :]
        left = kept
        if WIDENS:
            left, second = kept.to(tl.float32), second.to(tl.float32)
        added = tl.dot(left, second, input_precision="ieee")
        before = tl.load(place, mask=here, other=0.0).to(tl.float32)
        tl.store(place, (before + added).to(total_ptr.dtype.element_ty), mask=here)
