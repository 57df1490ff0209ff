"""Log-probabilities of target tokens out of logits, with less memory traffic than the library's cross-entropy.

The vocabulary makes logits the largest tensor of a small model's step. The library holds three of their size at once
in the backward pass; here the gradient is written over the logits themselves, a few rows at a time, wherever nobody
else needs them. A second backward pass through the same logits is then an error of autograd's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS_BYTES = 1 << 21  # rows worked on at once: about what a core's second cache holds
VIEWS = {"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "AliasBackward0"}
PRODUCTS = {"MmBackward0", "AddmmBackward0"}


class _TargetLogprobs(torch.autograd.Function):  # type: ignore[misc]

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, is_ours: bool) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        mass = torch.cat([rows.to(wide).logsumexp(-1) for rows in logits.split(_rows(logits))])
        ctx.save_for_backward(logits, targets, mass)
        ctx.is_ours = is_ours
        return logits.gather(1, targets[:, None])[:, 0].to(wide) - mass

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, mass = ctx.saved_tensors
        found = logits if ctx.is_ours else torch.empty_like(logits)
        size = _rows(logits)
        for rows, out, total, share in zip(logits.split(size), found.split(size), mass.split(size), grad.split(size),
                                           strict=True):
            if rows.dtype == total.dtype:
                torch.sub(rows, total[:, None], out=out).exp_().mul_(-share[:, None])
            else:
                out.copy_((rows - total[:, None]).exp_().mul_(-share[:, None]))
        return found.scatter_add_(1, targets[:, None], grad[:, None].to(found.dtype)), None, None


def target_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """(tokens,) log-probability in nats of each target, in float32 or wider.

    Args:
        logits: (tokens, vocabulary); lost in the backward pass where a linear layer made them.
        targets: (tokens,) ids.
    """
    found: Tensor = _TargetLogprobs.apply(logits, targets, _made_by_linear(logits))
    return found


def _made_by_linear(logits: Tensor) -> bool:
    """Whether they come straight out of a matrix product, which does not keep its result (as a tanh would)."""
    node = logits.grad_fn
    while node is not None and node.name() in VIEWS:
        node = node.next_functions[0][0]
    return node is not None and node.name() in PRODUCTS


def _rows(logits: Tensor) -> int:
    return max(1, ROWS_BYTES // (4 * int(logits.shape[-1])))
