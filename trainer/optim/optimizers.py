"""Optimizers: the paper's update rule, LARS, and a learning rate for each parameter group."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.arguments import checked
from trainer.recipe import Recipe, Stage


class _Optimizer(torch.optim.Optimizer):
    """What both optimizers share: `step` evaluates the closure and leaves frozen groups out."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Apply one update; skip parameters without a gradient and groups with a learning rate of 0.

        Args:
            closure: Function that computes the gradients and returns the loss, if they are not computed yet.

        Returns:
            The closure's loss, or None without a closure.
        """
        with torch.enable_grad():
            loss = None if closure is None else closure()
        frozen = [p for group in self.param_groups if group["lr"] == 0 for p in group["params"]]
        gradients = [p.grad for p in frozen]
        for weight in frozen:
            weight.grad = None
        self._update()
        for weight, gradient in zip(frozen, gradients, strict=True):
            weight.grad = gradient
        return loss

    def _update(self) -> None:
        """Update the weights by the subclass's rule; those without a gradient stay as they are."""
        raise NotImplementedError


class PaperSGD(_Optimizer, torch.optim.SGD):
    """SGD with momentum by the paper's rule: v ← m·v − d·ε·w − ε·∂L/∂w;  w ← w + v (section 5).

    Here m is the momentum, d the weight decay and ε the learning rate. The learning rate is part of the
    velocity, so that after a drop the old velocity keeps its size and decays. `torch.optim.SGD` multiplies
    the velocity by the learning rate instead: the two agree while the learning rate is constant, and differ
    after a change. This class uses torch's fused kernel, which reads and writes each tensor once, and
    rescales torch's momentum b = −v / ε whenever ε changes.

    Args:
        params: Parameters or parameter groups.
        lr: Learning rate ε.
        momentum: Factor m on the velocity, 0..1; 0.9 in the paper.
        weight_decay: L2 coefficient d; 0.0005 in the paper.

    Raises:
        UsageError: A number is out of range.
    """

    @checked(lr=(0, math.inf), momentum=(0, 1), weight_decay=(0, math.inf))
    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0005,
    ) -> None:
        super().__init__(params, lr, momentum, weight_decay=weight_decay, fused=True)
        for group in self.param_groups:
            group["velocity_lr"] = 0.0  # lr of the last step, by which b is divided; 0 before it

    def _update(self) -> None:
        for group in self.param_groups:
            self._rescale(group)
        torch.optim.SGD.step(self)

    def _rescale(self, group: dict[str, Any]) -> None:
        lr, old_lr = group["lr"], group["velocity_lr"]
        if lr in (0, old_lr):
            return
        states = [self.state[weight] for weight in group["params"] if weight in self.state]
        momenta = [state["momentum_buffer"] for state in states if state.get("momentum_buffer") is not None]
        if momenta:
            torch._foreach_mul_(momenta, old_lr / lr)
        group["velocity_lr"] = lr


class LARS(_Optimizer):
    """LARS (layer-wise adaptive rate scaling): all layers have the same ratio of update to weight norm.

    Algorithm 1 of You, Gitman and Ginsburg 2017, "Large Batch Training of Convolutional Networks":

    λ = η ‖w‖ / (‖g‖ + d ‖w‖);  v ← m·v + ε λ (g + d·w);  w ← w − v

    with gradient g, weight decay d, learning rate ε, momentum m and trust coefficient η. One-dimensional
    parameters (biases, normalization) use λ = 1, as has become usual; so do parameters whose weights or
    gradients are all zero.

    Args:
        params: Parameters or parameter groups.
        lr: Learning rate ε.
        momentum: Factor m on the velocity, 0..1.
        weight_decay: L2 coefficient d.
        trust_coefficient: η, the ratio of update to weights at a learning rate of 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0005,
        trust_coefficient: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"trust_coefficient": trust_coefficient})

    def _update(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group)

    def _move(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        decay = group["weight_decay"]
        direction = gradient.add(weight, alpha=decay)
        if weight.ndim > 1:
            weight_norm, gradient_norm = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(gradient)
            ratio = group["trust_coefficient"] * weight_norm / (gradient_norm + decay * weight_norm)
            # torch.where keeps the comparison on the device, so that the host does not wait for the norms.
            direction *= torch.where((weight_norm > 0) & (gradient_norm > 0), ratio, torch.ones_like(ratio))
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        state["velocity"].mul_(group["momentum"]).add_(direction, alpha=group["lr"])
        weight.sub_(state["velocity"])


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build a recipe's optimizer with two parameter groups per layer: weights and biases.

    One-dimensional parameters (biases, normalization) form the bias groups. Each group has the keys "layer"
    (name of the module) and "bias" (whether it is a bias group), which `set_lrs` reads.
    """
    groups: list[dict[str, Any]] = []
    for layer, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        for bias in (False, True):
            params = [p for p in own if (p.ndim == 1) == bias]
            if params:
                decay = recipe.weight_decay if recipe.decay_biases or not bias else 0.0
                groups.append({"params": params, "layer": layer, "bias": bias, "weight_decay": decay})
    if recipe.optimizer == "lars":
        return LARS(
            groups, lr=recipe.lr, momentum=recipe.momentum, trust_coefficient=recipe.trust_coefficient
        )
    if recipe.optimizer == "paper":
        return _with_momentum(PaperSGD(groups, lr=recipe.lr, momentum=recipe.momentum))
    return _with_momentum(torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=True))


def _with_momentum(optimizer: torch.optim.SGD) -> torch.optim.SGD:
    """Set all momenta to zero: torch 2.13's fused kernel leaves them unset if float16 overflows in step 1."""
    for group in optimizer.param_groups:
        for weight in group["params"] if group["momentum"] else ():
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def set_lrs(optimizer: torch.optim.Optimizer, lr: float, stage: Stage) -> None:
    """Set the learning rate of every parameter group.

    Args:
        optimizer: An optimizer from `build_optimizer`.
        lr: The schedule's learning rate.
        stage: The recipe's stage; its layer and bias factors multiply `lr`.
    """
    for group in optimizer.param_groups:
        factor = (stage.layer_lr_factors or {}).get(group["layer"], 1.0)
        if group["bias"]:
            factor *= 1.0 if stage.bias_lr_factor is None else stage.bias_lr_factor
        group["lr"] = lr * factor
