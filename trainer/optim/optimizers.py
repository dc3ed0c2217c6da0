"""The paper's update rule, LARS for large batches, and how a recipe's rates reach each parameter."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from pipeline.errors import UsageError
from trainer.models.alexnet import layer_names
from trainer.recipe import Recipe, Stage


class PaperSGD(torch.optim.SGD):
    """v ← m·v − d·ε·w − ε·∂L/∂w;  w ← w + v (paper, section 5), ε the rate, d the weight decay.

    The rate is inside the velocity, so that after a drop the old velocity keeps its size and dies away.
    `torch.optim.SGD` keeps the rate outside: equal while the rate is constant, different after a change.
    So this is torch's, whose fused kernel reads and writes everything once, with its momentum b = −v / ε
    rescaled whenever ε changes.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0005,
    ) -> None:
        super().__init__(params, lr, momentum, weight_decay=weight_decay, fused=True)
        for group in self.param_groups:
            group["velocity_lr"] = 0.0  # the rate that the momentum was divided by; 0 before the first

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Apply one update; parameters without a gradient and groups of rate 0 stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        frozen = [p for group in self.param_groups if group["lr"] == 0 for p in group["params"]]
        gradients = [p.grad for p in frozen]
        for weight in frozen:
            weight.grad = None
        for group in self.param_groups:
            self._rescale(group)
        super().step()
        for weight, gradient in zip(frozen, gradients, strict=True):
            weight.grad = gradient
        return loss

    def _rescale(self, group: dict[str, Any]) -> None:
        lr, before = group["lr"], group["velocity_lr"]
        if lr in (0, before):
            return
        states = [self.state[weight] for weight in group["params"] if weight in self.state]
        momenta = [state["momentum_buffer"] for state in states if state.get("momentum_buffer") is not None]
        if momenta:
            torch._foreach_mul_(momenta, before / lr)
        group["velocity_lr"] = lr


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rates: each layer's step is as long, against its weights, as every other's.

    Algorithm 1 of You, Gitman and Ginsburg 2017, "Large Batch Training of Convolutional Networks":

    λ = η ‖w‖ / (‖g‖ + d ‖w‖);  v ← m·v + ε λ (g + d·w);  w ← w − v

    with gradient g, weight decay d, rate ε and trust coefficient η. Parameters of one dimension (biases,
    normalization) take λ = 1, as is usual since; so do weights or gradients that are all zero.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0005,
        trust_coefficient: float = 0.001,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "trust_coefficient": trust_coefficient,
            },
        )

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Apply one update; parameters without a gradient and groups of rate 0 stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and group["lr"] != 0:
                    self._update(weight, weight.grad, group)
        return loss

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        decay = group["weight_decay"]
        direction = gradient.add(weight, alpha=decay)
        if weight.ndim > 1:
            length, steepness = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(gradient)
            ratio = group["trust"] * length / (steepness + decay * length)
            # On the device: nothing waits for the norms.
            direction *= torch.where((length > 0) & (steepness > 0), ratio, torch.ones_like(ratio))
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        state["velocity"].mul_(group["momentum"]).add_(direction, alpha=group["lr"])
        weight.sub_(state["velocity"])


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the recipe's optimizer with one group per layer for weights and one for biases.

    Biases and normalization parameters (one dimension) form the bias groups. Groups carry "layer" and
    "bias" for `set_lrs`.
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
    """Start the momentum at zero: torch 2.13's fused kernel leaves it unset where float16 overflows first."""
    for group in optimizer.param_groups:
        for weight in group["params"] if group["momentum"] else ():
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def check_layers(model: nn.Module, recipe: Recipe) -> None:
    """Refuse `layer_lr_factors` that name no layer of the network.

    Raises:
        UsageError: names the layer and the known ones.
    """
    known = layer_names(model)
    for stage in recipe.stages:
        for layer in stage.layer_lr_factors or {}:
            if layer not in known:
                raise UsageError(
                    f"recipe {recipe.name}: layer_lr_factors names {layer!r}, which {recipe.arch} has not; "
                    f"its layers are {', '.join(known)}"
                )


def set_lrs(optimizer: torch.optim.Optimizer, lr: float, stage: Stage) -> None:
    """Give every group its rate: the schedule's, times the layer's and the bias's factors."""
    for group in optimizer.param_groups:
        factor = (stage.layer_lr_factors or {}).get(group["layer"], 1.0)
        if group["bias"]:
            factor *= 1.0 if stage.bias_lr_factor is None else stage.bias_lr_factor
        group["lr"] = lr * factor
