"""What one training step costs, found by taking it on the meta device: its operations and the memory that they need."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

from lactok.train.recipe import Recipe

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

LOW_PRECISION = frozenset(
    {
        *(F.linear, F.conv1d, F.conv2d, F.conv_transpose2d, F.scaled_dot_product_attention),
        *(torch.conv1d, torch.conv2d, torch.conv_transpose2d, torch.matmul, torch.bmm, torch.baddbmm, torch.addmm),
        *(Tensor.matmul, Tensor.__matmul__, Tensor.bmm),
    }
)
"""What autocast runs in bfloat16 on CUDA (torch.amp's list), as far as diffusion networks use it."""
FULL_PRECISION = frozenset(
    {
        *(F.group_norm, F.layer_norm, F.softmax, F.log_softmax, F.mse_loss, F.normalize),
        *(torch.group_norm, torch.layer_norm, torch.softmax, Tensor.softmax),
    }
)
"""What it runs in float32."""
FLASH_WIDTH = 256
"""Widest head of FlashAttention; wider ones and float32 take the memory-efficient kernel."""


@dataclass(frozen=True)
class StepCost:
    """flops: multiplications and additions of matrix products, convolutions and attention, forward and backward.

    activation_bytes: the most that is alive at once beyond weights and all gradients. In a step of one micro-batch the
    gradients come during the backward pass, and activations have their room until then; of several they are there.
    """

    flops: int
    activation_bytes: int


def step_cost(recipe: Recipe, images: tuple[int, int], step: int, micro_batches: int, autocast: bool) -> StepCost:
    """Of an optimizer step of `recipe`, all of it on the meta device and in train mode.

    images: number and side in pixels of a micro-batch's images. autocast: bfloat16, as torch.autocast does it on
    CUDA, for which the meta device has no counterpart.
    """
    count, side = images
    batch = recipe.meta_batch(recipe.options, count, side, step)
    given = [value for value in vars(batch).values() if isinstance(value, Tensor)]
    known = [*recipe.parameters(), *recipe.buffers(), *given]
    learning = [parameter for parameter in recipe.parameters() if parameter.requires_grad]
    for parameter in learning if micro_batches > 1 else ():
        parameter.grad = torch.zeros_like(parameter)
        known.append(parameter.grad)
    memory, flops = AliveBytes(known), _flop_counter()
    with flops, memory, CudaKernels(autocast):
        torch.autograd.backward([recipe(batch).total])
    recipe.zero_grad()
    gradients = 0 if micro_batches > 1 else sum(p.numel() * p.element_size() for p in learning)
    return StepCost(flops.get_total_flops() * micro_batches, max(0, memory.peak - gradients))


def _flop_counter() -> FlopCounterMode:
    """It counts for the whole alone: the hooks by which it tells modules apart hold the graph of every block that
    gradient checkpointing computes again, so that none of its tensors would be gone before the end."""
    from torch.utils.flop_counter import FlopCounterMode
    from torch.utils.module_tracker import ModuleTracker

    class Untold(ModuleTracker):
        def __enter__(self) -> Untold:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    counter = FlopCounterMode(display=False)
    counter.mod_tracker = Untold()
    return counter


class AliveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operations make, as long as they live. peak: the most at once.

    known: tensors that were there before, which don't count.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.alive, self.peak = 0, 0
        self._kept = [tensor.untyped_storage() for tensor in known]
        self._seen = {storage._cdata for storage in self._kept}

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        self.peak = max(self.peak, self.alive)
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._seen:
            return
        self._seen.add(storage._cdata)
        self.alive += storage.nbytes()
        weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes()).atexit = False

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size


class CudaKernels(TorchFunctionMode):
    """Operations on the meta device as CUDA would run them: fused attention, and, if told so, autocast's dtypes."""

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        self.autocast = autocast

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self.autocast and (func in LOW_PRECISION or func in FULL_PRECISION):
            args, kwargs = _cast((args, kwargs), torch.bfloat16 if func in LOW_PRECISION else torch.float32)
        if func is F.scaled_dot_product_attention:
            return _fused_attention(*args, **kwargs)
        return func(*args, **kwargs)


def recomputed_as_on_cuda(autocast: bool) -> Callable:
    """For `Recipe.checkpoint_activations`: the backward pass leaves the mode, so it is entered there anew."""

    def checkpointed(block: nn.Module, *inputs: Any) -> Any:
        def contexts() -> tuple[Any, Any]:
            return nullcontext(), CudaKernels(autocast)

        return checkpoint(block.__call__, *inputs, use_reentrant=False, context_fn=contexts)

    return checkpointed


def _cast(values: Any, dtype: torch.dtype) -> Any:
    def one(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return tree_map_only(Tensor, one, values)


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """What scaled_dot_product_attention picks on CUDA; by itself the meta device would write the scores out."""
    if attn_mask is not None or enable_gqa:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
    ops = torch.ops.aten
    if query.dtype == torch.float32 or query.shape[-1] > FLASH_WIDTH:
        keep = query.requires_grad or key.requires_grad or value.requires_grad
        return ops._scaled_dot_product_efficient_attention(
            query, key, value, None, keep, dropout_p, is_causal, scale=scale
        )[0]
    return ops._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
