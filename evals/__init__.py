"""The benchmark from Python: `evals.evaluate(["llamagen-mini"], images=DIR).table`.

Nothing is imported before it is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evals.evaluation import evaluate as evaluate
    from evals.results import Results as Results
    from evals.results import RowsFailed as RowsFailed

__all__ = ["Results", "RowsFailed", "evaluate"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'evals' has no attribute {name!r}; it has {', '.join(__all__)}")
    from evals import evaluation, results

    return getattr(evaluation if name == "evaluate" else results, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
