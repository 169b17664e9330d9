r"""Attention on packed sets; the only module that selects the kernel.

Scaled dot products with several heads (Vaswani et al. 2017), softmax over the members of one set alone:

.. math:: o_i = \sum_{j \in S(i)} \mathrm{softmax}_j(q_i \cdot k_j / \sqrt{w / h}) \, v_j .

Three shapes of it: members attend to members, tokens of a set to its members, members to the tokens of their set. Rows
are packed (total, w), sets by a :class:`~drapes_hep.networks.set_backbone.SetLayout`, and nothing is padded to the
longest set:

- on a GPU in half precision, PyTorch's kernel for packed sequences, where this PyTorch has it;
- else dense blocks of sets of similar length. On a CPU, 128 jets of 55 constituents, 64 wide, take 8 ms in eleven
  blocks with 10 % padding at most, the same in one block a length (69 of them), 10 ms with 50 %, and 17 to 20 ms in one
  block.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from drapes_hep.networks.set_backbone import Buckets, SetLayout, uncompiled

__all__ = ["packed_attention", "pool_attention", "token_attention"]


@cache
def _kernel() -> Callable[..., Any] | None:
    """Return PyTorch's attention for packed sequences; None where it is older than 2.10."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    kernel: Callable[..., Any] = varlen_attn
    return kernel


@cache
def _capable(device: torch.device) -> bool:
    # flash attention needs Ampere; ROCm's own counts differ
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def _packed_kernel(q: Tensor, heads: int) -> Callable[..., Any] | None:
    width = q.shape[-1] // heads
    if not q.is_cuda or q.dtype not in (torch.float16, torch.bfloat16) or width % 8 or width > 256:
        return None
    return _kernel() if _capable(q.device) else None


@uncompiled
def _buckets(layout: SetLayout) -> Buckets:
    return layout.buckets


def _check(width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise ValueError(f"width {width} cannot be shared among {heads} heads")


def packed_attention(qkv: Tensor, layout: SetLayout, heads: int) -> Tensor:
    """Let members attend to the members of their set; queries, keys and values in one tensor.

    One product gives all three, one gather fetches them.

    Parameters
    ----------
    qkv : Tensor, shape (total, 3w)
        Queries, keys, values of all members.
    layout : SetLayout
        Which rows belong to which set.
    heads : int
        Number of heads, a divisor of w.

    Returns
    -------
    Tensor, shape (total, w)

    Raises
    ------
    ValueError
        If the heads do not divide the width.
    """
    width = qkv.shape[1] // 3
    _check(width, heads)
    if not len(qkv):
        return qkv[:, :width]
    kernel = _packed_kernel(qkv[:, :width], heads)
    if kernel is not None:
        q, k, v = qkv.view(-1, 3, heads, width // heads).unbind(1)
        ends, longest = layout.boundaries, layout.longest
        packed: Tensor = kernel(q, k, v, ends, ends, longest, longest)
        return packed.reshape(-1, width)
    buckets = _buckets(layout)
    gathered = qkv.index_select(0, buckets.rows)
    out: list[Tensor] = []
    for part, (sets, length, mask) in zip(_split(gathered, buckets), buckets.blocks, strict=True):
        # (3, sets, heads, length, w / heads)
        q, k, v = part.view(sets, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out.append(attended.transpose(1, 2).reshape(sets * length, width))
    return torch.cat(out).index_select(0, buckets.back)


def pool_attention(q: Tensor, k: Tensor, v: Tensor, layout: SetLayout, heads: int) -> Tensor:
    """Let the tokens of each set attend to its members; the cost is linear in the members.

    Parameters
    ----------
    q : Tensor, shape (sets, t, w)
        Queries of each set's tokens.
    k, v : Tensor, shape (total, w)
        Keys, values of all members.
    layout : SetLayout
        Which rows belong to which set.
    heads : int
        Number of heads, a divisor of w.

    Returns
    -------
    Tensor, shape (sets, t, w)
        Zero for an empty set.

    Raises
    ------
    ValueError
        If the heads do not divide the width.
    """
    tokens, width = q.shape[1:]
    _check(width, heads)
    size = width // heads
    if not len(k):
        return q * 0
    kernel = _packed_kernel(k, heads)
    if kernel is not None:
        order = layout.filled
        chosen = q.index_select(0, order).to(k.dtype).view(-1, heads, size)
        starts = torch.arange(len(order) + 1, dtype=torch.int32, device=q.device) * tokens
        members = (k.reshape(-1, heads, size), v.reshape(-1, heads, size))
        pooled = kernel(chosen, *members, starts, layout.boundaries, tokens, layout.longest)
        read: Tensor = pooled.reshape(-1, tokens, width)
    else:
        buckets = _buckets(layout)
        order = buckets.order
        counts = [block.sets for block in buckets.blocks]
        queries = q.index_select(0, order).view(-1, tokens, heads, size).transpose(1, 2)
        gathered = torch.cat([k, v], dim=1).index_select(0, buckets.rows)
        out: list[Tensor] = []
        for query, part, (sets, length, mask) in zip(
            torch.split(queries, counts), _split(gathered, buckets), buckets.blocks, strict=True
        ):
            key, value = part.view(sets, length, 2, heads, size).permute(2, 0, 3, 1, 4)
            out.append(F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2))
        read = torch.cat(out).reshape(-1, tokens, width)
    return read.new_zeros(q.shape).index_copy(0, order, read)


def token_attention(q: Tensor, k: Tensor, v: Tensor, layout: SetLayout, heads: int) -> Tensor:
    """Let members attend to the tokens of their set; the cost is linear in the members.

    Parameters
    ----------
    q : Tensor, shape (total, w)
        Queries of all members.
    k, v : Tensor, shape (sets, t, w)
        Keys, values of each set's tokens.
    layout : SetLayout
        Which rows belong to which set.
    heads : int
        Number of heads, a divisor of w.

    Returns
    -------
    Tensor, shape (total, w)

    Raises
    ------
    ValueError
        If the heads do not divide the width.
    """
    tokens, width = k.shape[1:]
    _check(width, heads)
    size = width // heads
    if not len(q):
        return q
    kernel = _packed_kernel(q, heads)
    if kernel is not None:
        order = layout.filled
        read = [tensor.index_select(0, order).to(q.dtype).view(-1, heads, size) for tensor in (k, v)]
        starts = torch.arange(len(order) + 1, dtype=torch.int32, device=q.device) * tokens
        packed: Tensor = kernel(
            q.reshape(-1, heads, size), *read, layout.boundaries, starts, layout.longest, tokens
        ).reshape(-1, width)
        return packed
    buckets = _buckets(layout)
    counts = [block.sets for block in buckets.blocks]
    keys, values = (
        torch.split(tensor.index_select(0, buckets.order).view(-1, tokens, heads, size).transpose(1, 2), counts)
        for tensor in (k, v)
    )
    gathered = q.index_select(0, buckets.rows)
    out: list[Tensor] = []
    # no mask: a padded query reads tokens that are there, and is dropped
    for part, key, value, block in zip(_split(gathered, buckets), keys, values, buckets.blocks, strict=True):
        query = part.view(block.sets, block.length, heads, size).transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, key, value)
        out.append(attended.transpose(1, 2).reshape(-1, width))
    return torch.cat(out).index_select(0, buckets.back)


def _split(gathered: Tensor, buckets: Buckets) -> tuple[Tensor, ...]:
    return torch.split(gathered, [block.sets * block.length for block in buckets.blocks])
