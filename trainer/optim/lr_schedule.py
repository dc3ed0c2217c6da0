"""The learning rate over a run."""

import math
from dataclasses import dataclass

from trainer.recipe import Recipe


@dataclass
class Schedule:
    """Rate as a function of progress, with the plateau's memory.

    Attributes:
        recipe: names the schedule and its numbers.
        best_error: lowest validation error so far, 0..1.
        waited: epochs since it improved.
        drops: divisions by ten so far.
    """

    recipe: Recipe
    best_error: float = math.inf
    waited: int = 0
    drops: int = 0

    def lr(self, epoch: float) -> float:
        """Rate at a point of the run, in epochs from 0 (2.5 is halfway through the third)."""
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
        """Note an epoch's validation error, 0..1; a plateau may drop the rate.

        "The learning rate was divided by 10 when the validation error rate stopped improving with the
        current learning rate", three times (paper, section 5); patience is the recipe's.
        """
        if error < self.best_error:
            self.best_error, self.waited = error, 0
            return
        self.waited += 1
        if self.waited >= self.recipe.plateau_patience and self.drops < self.recipe.plateau_drops:
            self.drops, self.waited = self.drops + 1, 0

    def state_dict(self) -> dict[str, float | int]:
        """The plateau's memory."""
        return {"best_error": self.best_error, "waited": self.waited, "drops": self.drops}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Restore `state_dict`."""
        self.best_error = float(state["best_error"])
        self.waited, self.drops = int(state["waited"]), int(state["drops"])
