"""What takes the optimizer's step: AdamW on all parameters, or Muon on the matrices and AdamW on the rest."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lactok.train.config import OptimizerConfig
from lactok.train.precision import multiplies_bfloat16

SMALLEST = 16
"""Rows and columns that a matrix has at least for Muon: of thinner ones there is little to make orthogonal."""
MOMENTUM = 0.95
"""Muon's, its author's (Jordan et al. 2024) and torch's default; it is Nesterov's."""


class Float32Products(TorchFunctionMode):
    """Lets casts to bfloat16 within it give float32: where it is emulated, its products are the slow ones."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to_bfloat16 = func is Tensor.to and torch.bfloat16 in (kwargs.get("dtype"), *args[1:2])
        if to_bfloat16 or func is Tensor.bfloat16:  # which of them torch's Muon calls depends on the version
            return args[0].to(torch.float32, copy=True)  # a copy, as it works in place
        return func(*args, **kwargs)


class OptimizerError(Exception):
    """The optimizer is not to be had here; the message says why, and what else there is."""


def require_optimizer(name: str) -> None:
    """Raises OptimizerError for muon with a torch before 2.9, which has none."""
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        raise OptimizerError(
            f"optimizer.name=muon: torch {torch.__version__} has no Muon; expected torch 2.9 or later, or "
            "optimizer.name=adamw"
        )


def build_optimizers(model: nn.Module, config: OptimizerConfig, device: torch.device) -> list[torch.optim.Optimizer]:
    """The optimizers of a network's trained parameters, one or two, each parameter in one of them."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = muon_matrices(model) if config.name == "muon" else []
    taken = {id(p) for p in matrices}
    rest = [p for p in trained if id(p) not in taken]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(muon(matrices, config))
    if rest:
        adam = torch.optim.AdamW(
            rest,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            fused=True if device.type == "cuda" else None,  # one kernel for many tensors; elsewhere torch's choice
        )
        optimizers.append(adam)
    return optimizers


def muon_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Trained weights of linear layers and convolutions with SMALLEST rows and columns or more, each once.

    A convolution counts as its output channels by all else. Embeddings (those that a linear layer shares, too), norms
    and biases are none.
    """
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d))]
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    theirs = {id(layer.weight) for layer in layers} - embeddings
    trained = [p for p in model.parameters() if p.requires_grad and id(p) in theirs]
    return [p for p in trained if len(p) >= SMALLEST and p.numel() // len(p) >= SMALLEST]


def muon(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """torch's Muon on parameters of two dimensions or more, of which it sees the matrices.

    Its update is scaled to AdamW's size (torch's "match_rms_adamw": 0.2 sqrt(max(rows, columns))), so that both take
    the same learning rate and decay. Its products are in bfloat16, as torch's are, but on a CPU without it in float32.
    """
    fast = parameters[0].device.type != "cpu" or multiplies_bfloat16()

    class MatrixMuon(torch.optim.Muon):
        """torch.optim.Muon on views of the parameters; their gradients are handed to it at each step."""

        def step(self, closure: Any = None) -> Any:
            for parameter, matrix in zip(parameters, self.param_groups[0]["params"], strict=True):
                gradient = parameter.grad
                matrix.grad = None if gradient is None else _as_matrix(gradient, parameter)
            with contextlib.nullcontext() if fast else Float32Products():
                return super().step(closure)

        def zero_grad(self, set_to_none: bool = True) -> None:
            super().zero_grad(set_to_none)
            for parameter in parameters:
                parameter.grad = None

    return MatrixMuon(
        [_as_matrix(parameter.detach(), parameter) for parameter in parameters],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        momentum=MOMENTUM,
        adjust_lr_fn="match_rms_adamw",
    )


def _as_matrix(tensor: Tensor, parameter: Tensor) -> Tensor:
    """(rows, columns) of a tensor, the columns in the order in which they lie in the parameter: of it this is a view.

    Muon does not depend on that order.
    """
    last = parameter.movedim(1, -1)
    if last.is_contiguous():  # channels-last
        return tensor.movedim(1, -1).reshape(len(tensor), -1)
    if not parameter.is_contiguous():
        raise ValueError(f"a parameter of shape {tuple(parameter.shape)} lies in neither order: {parameter.stride()}")
    return tensor.reshape(len(tensor), -1)
