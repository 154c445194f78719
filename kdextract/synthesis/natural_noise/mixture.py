"""The choice of a mixture of images for a teacher: kinds, their settings, and their shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...models.classifier import Classifier
from .criteria import Criterion, criterion
from .kinds import KINDS, SETTINGS, Component, Mixture, natural_images
from .names import ALL_KINDS

ROUNDS = 3
WIDTH = 0.2
"""Half the width of the range of each setting in a trial, in shares of its whole range."""
MOVE = 0.2
"""Standard deviation by which settings are moved from those of a component that has a share."""
TRIAL_IMAGES, TRIAL_PIXELS = 100, 2**21
"""Images of a trial, and the largest number of their pixels, which gives fewer images where they are large."""
FEWEST_IMAGES = 16
LEAST_SHARE = 0.01
"""Components with a smaller share are dropped."""
SHARE_STEPS, TOLERANCE = 500, 1e-3
"""Most steps of the search for shares. It ends where the least loss is at most this share of the loss smaller, which
follows from the slope of a convex function."""


@dataclass(frozen=True)
class Fitted:
    """A mixture; if it was fitted, the criterion for it and for equal shares, on the images of the fit."""

    mixture: Mixture
    loss: float | None = None
    loss_of_equal: float | None = None

    @property
    def facts(self) -> dict[str, float]:
        """Shares of the kinds, the weighted mean of each setting over the components that use settings, and losses."""
        parts = list(zip(self.mixture.components, self.mixture.shares, strict=True))
        facts = {kind: sum(share for part, share in parts if part.kind == kind) for kind in ALL_KINDS}
        facts = {kind: share for kind, share in facts.items() if share > 0}
        total = sum(facts.get(kind, 0.0) for kind in KINDS)
        if total > 0:
            for index, name in enumerate(SETTINGS):
                middles = [
                    share * (part.low[index] + part.high[index]) / 2 for part, share in parts if part.kind in KINDS
                ]
                facts[name] = sum(middles) / total
        losses = {"loss": self.loss, "loss_of_equal_shares": self.loss_of_equal}
        facts |= {name: loss for name, loss in losses.items() if loss is not None}
        return {name: round(value, 4) for name, value in facts.items()}


def equal_mixture() -> Mixture:
    """Return all kinds with equal shares, and settings from their whole ranges."""
    return Mixture(tuple(map(Component.whole, ALL_KINDS)), (1 / len(ALL_KINDS),) * len(ALL_KINDS))


def fitted_mixture(teacher: Classifier, trials: int, rng: torch.Generator) -> Fitted:
    """Return the mixture whose images suit the teacher best by `criteria.criterion`.

    Every trial measures images of one kind with settings from one range. The first ones are all kinds with whole
    ranges. The rest are made in `ROUNDS` rounds, in which half of the ranges are near those of components that have a
    share, and half are anywhere. After each round, the shares of all trials are computed that minimize the criterion.

    Args:
        teacher: in evaluation mode.
        trials: number of trials; if fewer than there are kinds, the mixture is `equal_mixture`.
        rng: on the CPU.
    """
    if trials < len(ALL_KINDS):
        return Fitted(equal_mixture())
    judge = criterion(teacher)
    components = list(equal_mixture().components)
    features = [_measured(judge, component, teacher, rng) for component in components]
    shares = best_shares(torch.stack(features), judge.loss)
    for index in range(ROUNDS):
        left = trials - len(components)
        new = [_near_or_anywhere(components, shares, rng) for _ in range(round(left / (ROUNDS - index)))]
        features += [_measured(judge, component, teacher, rng) for component in new]
        components += new
        shares = best_shares(torch.stack(features), judge.loss)
    shares = torch.where(shares < min(LEAST_SHARE, float(shares.max())), 0, shares)
    shares /= shares.sum()
    kept = shares.nonzero().flatten().tolist()
    mixture = Mixture(tuple(components[index] for index in kept), tuple(shares[kept].tolist()))
    measured = torch.stack(features)
    equal = measured[: len(ALL_KINDS)].mean(0)
    return Fitted(mixture, float(judge.loss(shares @ measured)), float(judge.loss(equal)))


def _measured(judge: Criterion, component: Component, teacher: Classifier, rng: torch.Generator) -> torch.Tensor:
    return judge.measure(trial_images(Mixture((component,), (1.0,)), teacher, rng))


def trial_images(mixture: Mixture, teacher: Classifier, rng: torch.Generator) -> torch.Tensor:
    """Return as many images of a mixture as one trial measures."""
    _, height, width = teacher.input_shape
    count = min(TRIAL_IMAGES, max(FEWEST_IMAGES, TRIAL_PIXELS // (height * width)))
    return natural_images(count, mixture, teacher.input_shape, teacher.mean.flatten(), rng)


def _near_or_anywhere(components: list[Component], shares: torch.Tensor, rng: torch.Generator) -> Component:
    """Return a new component: with the kind of one that has a share, and settings near its own, or with any."""
    spans = torch.tensor(list(SETTINGS.values()), dtype=torch.float64)
    low, span = spans[:, 0], spans[:, 1] - spans[:, 0]
    parents = [index for index, part in enumerate(components) if part.kind in KINDS]
    weights = shares[parents]
    if float(torch.rand(1, generator=rng)) < 0.5 and float(weights.sum()) > LEAST_SHARE:
        parent = components[parents[int(torch.multinomial(weights, 1, generator=rng))]]
        bounds = torch.tensor([parent.low, parent.high], dtype=torch.float64)
        centre = (bounds.mean(0) - low) / span + MOVE * torch.randn(len(span), generator=rng)
        kind = parent.kind
    else:
        kind = list(KINDS)[int(torch.randint(len(KINDS), (1,), generator=rng))]
        centre = torch.rand(len(span), generator=rng)
    ends = [((centre + side).clamp(0, 1) * span + low).tolist() for side in (-WIDTH, WIDTH)]
    return Component(kind, tuple(ends[0]), tuple(ends[1]))


def best_shares(features: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return the shares of N components, at least 0 with sum 1, for which `loss(shares @ features)` is least.

    The loss is convex. This is the exponentiated gradient method (Kivinen and Warmuth 1997); a step that does not
    reduce the loss is halved.

    Args:
        features: mean features of each component, float64 [N, features].
    """
    shares = torch.full((len(features),), 1 / len(features), dtype=features.dtype)
    value, rate = float(loss(shares @ features)), 1.0
    for _ in range(SHARE_STEPS):
        slope = _slope(shares, features, loss)
        steepest = float(slope.abs().max())
        if -float(slope.min()) <= TOLERANCE * max(abs(value), TOLERANCE):
            break
        while rate > 1e-9:
            moved = torch.softmax(shares.clamp_min(1e-30).log() - rate / steepest * slope, 0)
            new = float(loss(moved @ features))
            if new <= value:
                break
            rate /= 2
        else:
            break
        shares, value, rate = moved, new, min(2 * rate, 1e3)
    return shares


def _slope(shares: torch.Tensor, features: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return the gradient with respect to the shares, minus its mean over the components."""
    with torch.enable_grad():
        free = shares.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(loss(free @ features), free)
    return slope - shares @ slope
