"""A linear layer on one vector per row, whose result for a row does not depend on other rows.

For small R, a matrix product of R rows adds its terms in an order that depends on R. On a CPU these
are the only products of a denoiser's pass where rows influence each other's rounding: products over
an image's positions have many rows.

Legend: R rows, I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["row_linear"]


def row_linear(x_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """``x W^T + b`` [R, O], one product per row."""
    weight_RIO = weight_OI.t().expand(x_RI.shape[0], -1, -1)
    y_RO = torch.bmm(x_RI.unsqueeze(1), weight_RIO).squeeze(1)
    return y_RO if bias_O is None else y_RO.add_(bias_O)
