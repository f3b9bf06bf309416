"""LacTok from Python: `lactok.load("llamagen-mini")` gives a tokenizer that takes and gives images.

Nothing is imported before it is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lactok.loaded import Loaded as Loaded
    from lactok.loaded import load as load

__all__ = ["Loaded", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lactok' has no attribute {name!r}; it has {', '.join(__all__)}")
    from lactok import loaded

    return getattr(loaded, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
