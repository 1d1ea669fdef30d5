"""Tables that say which function serves what, filled by decorators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Key = TypeVar("Key")
Function = TypeVar("Function", bound=Callable[..., Any])


def registering(table: dict[Key, Function], keys: tuple[Key, ...], what: str) -> Callable[[Function], Function]:
    """A decorator that puts its function under these keys.

    what: their plural, for the ValueError where a key has one already.
    """

    def register(function: Function) -> Function:
        for key in keys:
            if key in table:
                raise ValueError(f"two {what} {getattr(key, '__name__', key)}")
            table[key] = function
        return function

    return register
