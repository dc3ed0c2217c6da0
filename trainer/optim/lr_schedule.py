"""Learning-rate schedule of a run."""

import math
from dataclasses import dataclass

from trainer.recipe import Recipe


@dataclass
class Schedule:
    """Computes the learning rate at any point of a run, and keeps the state of the plateau schedule.

    Attributes:
        recipe: Gives the schedule and its parameters.
        best_error: Lowest validation error so far, 0..1.
        waited: Epochs since the validation error improved.
        drops: Number of divisions by ten so far.
    """

    recipe: Recipe
    best_error: float = math.inf
    waited: int = 0
    drops: int = 0

    def lr(self, epoch: float) -> float:
        """Return the learning rate at `epoch`, counted from 0 (2.5 is halfway through the third epoch)."""
        recipe = self.recipe
        if epoch < recipe.warmup_epochs:
            return recipe.lr * epoch / recipe.warmup_epochs
        factor = recipe.stage_at(int(epoch)).lr_factor or 0.0
        length = max(recipe.epochs - recipe.warmup_epochs, 1e-9)
        done = min((epoch - recipe.warmup_epochs) / length, 1.0)
        if recipe.schedule == "cosine":
            factor *= 0.5 * (1.0 + math.cos(math.pi * done))
        elif recipe.schedule == "polynomial":
            factor *= (1.0 - done) ** recipe.power
        elif recipe.schedule == "plateau":
            factor *= 0.1**self.drops
        return recipe.lr * factor

    def end_epoch(self, error: float) -> None:
        """Record an epoch's validation error, 0..1; the plateau schedule may then drop the learning rate.

        "The learning rate was divided by 10 when the validation error rate stopped improving with the
        current learning rate", three times (paper, section 5). The recipe sets patience and number of drops.
        """
        if error < self.best_error:
            self.best_error, self.waited = error, 0
            return
        self.waited += 1
        if self.waited >= self.recipe.plateau_patience and self.drops < self.recipe.plateau_drops:
            self.drops, self.waited = self.drops + 1, 0

    def state_dict(self) -> dict[str, float | int]:
        """Return the state of the plateau schedule."""
        return {"best_error": self.best_error, "waited": self.waited, "drops": self.drops}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Restore `state_dict`."""
        self.best_error = float(state["best_error"])
        self.waited, self.drops = int(state["waited"]), int(state["drops"])
