"""Rotations that spread a channel over all others: Hadamard matrices, and orthogonal matrices that leave the mean of the channels alone.

A LayerNorm without gain and bias subtracts the mean of the channels and divides by their norm. An orthogonal R with R 1 = 1 keeps both, so
LN(x R) = LN(x) R: the rotated model has ordinary LayerNorms. H D H^T is such a matrix where H is a normalized Hadamard matrix whose first
column is constant and D has signs, the first of them +1.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

PRIMES = (3, 7, 11, 19, 23, 31, 43)  # 3 modulo 4: Paley's construction gives the orders 4, 8, 12, 20, 24, 32, 44


def factors(order: int) -> tuple[Float[Tensor, "core core"], Float[Tensor, "times times"]] | None:
    """A small Hadamard matrix M and one of powers of two S, of ones and minus ones, in float64; S x M (Kronecker's product) has this order.
    None where none is made here.

    Paley's first construction (1933) and Sylvester's doubling; 192 = 24 x 8, 384 = 24 x 16, 768 = 24 x 32.
    """
    odd = order
    while odd % 2 == 0 and odd - 1 not in PRIMES and odd > 1:
        odd //= 2
    if odd != 1 and odd - 1 not in PRIMES:
        return None
    doubled = torch.ones(1, 1, dtype=torch.float64)
    while len(doubled) * odd < order:
        doubled = torch.cat([torch.cat([doubled, doubled], 1), torch.cat([doubled, -doubled], 1)])
    return (torch.ones(1, 1, dtype=torch.float64) if odd == 1 else _paley(odd - 1)), doubled


def hadamard(order: int) -> Float[Tensor, "order order"] | None:
    """A matrix of ones and minus ones with H^T H = order I and a first column of ones, in float64; None where none is made here. It is the
    product of `factors`."""
    found = factors(order)
    return None if found is None else torch.kron(found[1], found[0])


def _paley(prime: int) -> Tensor:
    squares = {(number * number) % prime for number in range(1, prime)}
    signs = [[0 if row == column else 1 if (row - column) % prime in squares else -1 for column in range(prime)] for row in range(prime)]
    skew = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = torch.tensor(signs, dtype=torch.float64)
    made = skew + torch.eye(prime + 1, dtype=torch.float64)
    return made * made[:, :1]


def _signs(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (count,), generator=generator).double() * 2 - 1


def rotation(width: int, generator: torch.Generator) -> Float[Tensor, "width width"]:
    """An orthogonal matrix that spreads every channel over all, in float64: a Hadamard matrix with signs, else a draw (QR)."""
    made = hadamard(width)
    if made is not None:
        return made / math.sqrt(width) * _signs(width, generator)
    return torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q


def _signed_places(width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Signs [width] and an order [width] of the columns of a basis, of which the first, constant one stays what and where it is."""
    signs = torch.cat([torch.ones(1, dtype=torch.float64), _signs(width - 1, generator)])
    return signs, torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(width - 1, generator=generator)])


def rotation_of_stream(width: int, generator: torch.Generator) -> Float[Tensor, "width width"]:
    """An orthogonal matrix R with R 1 = 1 = R^T 1, in float64."""
    basis = hadamard(width)
    if basis is not None:
        basis = basis / math.sqrt(width)
    else:
        drawn = torch.randn(width, width, generator=generator, dtype=torch.float64)
        drawn[:, 0] = 1
        basis = torch.linalg.qr(drawn).Q
    signs, columns = _signed_places(width, generator)
    return basis @ torch.diag(signs)[:, columns] @ basis.T


def signs_of_stream(width: int, generator: torch.Generator) -> tuple[Int[Tensor, " width"], Float[Tensor, " width"]]:
    """The rotation that `rotation_of_stream` makes of the same generator, as places p and signs s: where H is the Hadamard matrix,
    x R = z H^T / width with z_j = s_j (x H)_p_j.

    Raises ValueError for a width without such a matrix.
    """
    if factors(width) is None:
        raise ValueError(f"no Hadamard matrix of order {width} is made here")
    signs, columns = _signed_places(width, generator)
    return columns, signs[columns]
