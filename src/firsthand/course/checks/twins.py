"""For drivers: the module beside the part under check, from the same side.

A driver that needs more than the part itself (the learner's `Tensor` for the learner's `MLP`) asks
for the twin module: the learner's where the part is the learner's, the stack's where it is not.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

MINE = "mine"


def twin(part: Any, module: str, stack: str) -> ModuleType:
    """The module `module` ('foundations.layers') of the package that `part` comes from.

    part: the function or class under check. Returns `mine.<module>` or `<stack>.<module>`.
    """
    home = getattr(part, "__module__", "") or ""
    package = MINE if home == MINE or home.startswith(f"{MINE}.") else stack
    return importlib.import_module(f"{package}.{module}")
