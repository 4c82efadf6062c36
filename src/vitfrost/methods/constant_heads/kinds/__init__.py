"""The kinds of constants that a head can be frozen to, one file each."""

from .dense import Dense
from .kind import KINDS, ConstantKind, register
from .local import Local
from .toeplitz import Toeplitz

__all__ = ["KINDS", "ConstantKind", "register"]

for _kind in (Dense(), Toeplitz(), Local()):
    register(_kind)
