"""Checks shapes and dtypes of arrays at every call, as the signatures state them; jaxtyping's import hook calls it.

`make shapes` runs the tests of the losses and batches that way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from beartype import beartype

#: A hint of jaxtyping's, such as Float[jaxlib._jax.Array, 'B T'], alone or in a union.
_ARRAY = re.compile(r"\w+\[[\w.]*[Aa]rray, '")


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the shapes and dtypes of its arguments and its result checked, and nothing else.

    A pytree is not checked where it is made: JAX makes it anew from shardings, from one row under vmap, and from
    nothing at all. Functions within functions are left out, since they would be prepared anew at each call.
    """
    shaped = {name: hint for name, hint in function.__annotations__.items() if _ARRAY.search(str(hint))}
    of_pytree = function.__name__ == "__init__" and any("jaxlib" in str(hint) for hint in shaped.values())
    if not shaped or of_pytree or "<locals>" in function.__qualname__:
        return function
    function.__annotations__ = dict.fromkeys(function.__annotations__, Any) | shaped
    return beartype(function)
