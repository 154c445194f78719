"""Checks of a classifier by running it: whether it can be a teacher, and what methods need of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..errors import KdxError
from .classifier import Classifier
from .external.normalizations import NORMALIZATIONS
from .hooks import batch_norm_layers, record_batch_statistics, record_features
from .pixels import to_pixels

OK, WARNING, PROBLEM = "ok", "warning", "problem"
IMAGES = 32
Values = tuple[float, ...]
PatternMaker = Callable[[int, tuple[int, int, int], float, torch.Generator], torch.Tensor]
CANDIDATES: dict[str, tuple[Values, Values]] = {
    "mean 0, std 1": ((0.0,), (1.0,)),
    "mean 0.1307, std 0.3081 (MNIST's)": ((0.1307,), (0.3081,)),
    **{f"--mean {name} --std {name}": values for name, values in NORMALIZATIONS.items()},
}
"""Usual normalizations, which are compared with that of the classifier: description -> (mean, standard deviation)."""
_LEAST_DISTANCE = 0.2
"""Distance of the first batch normalization layer's statistics (see `_best_by_statistics`) below which they fit."""
_MAX_VARIANCE_RATIO = 30.0
"""Ratio of running variance and variance of a batch above which the training images were normalized differently."""


@dataclass(frozen=True)
class Check:
    """The result of one check: `result` is `ok`, `warning` or `problem`, `detail` is a sentence."""

    check: str
    result: str
    detail: str


@dataclass(frozen=True)
class RealSample:
    """A few real images, uint8 [N, channels, height, width], and labels, int64 [N], None if its classes are others."""

    images: torch.Tensor
    labels: torch.Tensor | None


@dataclass(frozen=True)
class Examination:
    """All checks, whether there is batch normalization, and whether gradients reach the images."""

    checks: tuple[Check, ...]
    batch_norm: bool
    gradients: bool


def examine(classifier: Classifier, structured_images: PatternMaker, real: RealSample | None) -> Examination:
    """Run a frozen classifier on images of zeros, noise, structured noise and, if given, real images.

    Args:
        structured_images: makes structured noise, `(count, input_shape, background, rng) -> pixels`; not called for
            tables.
    """
    rng = torch.Generator().manual_seed(0)
    noise = torch.rand(IMAGES, *classifier.input_shape, generator=rng)
    pictures = noise if classifier.is_table else structured_images(IMAGES, classifier.input_shape, 0.0, rng)
    gradients = _check_gradients(classifier, noise)
    norm = _check_batch_norm(classifier)
    checks = [
        _check_weights(classifier),
        _check_outputs(classifier, noise, pictures),
        _check_determinism(classifier, noise),
        _check_batch_independence(classifier, noise),
        gradients,
        norm,
        _check_features(classifier, noise),
    ]
    if real is not None:
        checks.append(_check_real_images(classifier, real))
    checks.append(_check_normalization(classifier, pictures, real))
    return Examination(tuple(checks), bool(batch_norm_layers(classifier.network)), gradients.result != PROBLEM)


def _check_weights(classifier: Classifier) -> Check:
    tensors = classifier.network.state_dict()
    bad = [name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        return Check("weights", PROBLEM, f"{bad[0]} has values that are not finite")
    constant = [name for name, t in tensors.items() if t.dim() > 1 and t.is_floating_point() and not t.any()]
    if constant:
        return Check("weights", WARNING, f"{constant[0]} is all zeros; is the network trained?")
    return Check("weights", OK, f"{classifier.num_parameters:,} values, all finite")


def _check_outputs(classifier: Classifier, noise: torch.Tensor, pictures: torch.Tensor) -> Check:
    with torch.no_grad():
        logits = torch.cat([classifier(images) for images in (torch.zeros_like(noise[:1]), noise, pictures)])
    if not logits.isfinite().all():
        return Check("answers", PROBLEM, "logits are not finite for zeros, noise or patterns")
    named = len(logits.argmax(1).unique())
    confidence = float(logits.softmax(1).max(1).values.mean())
    detail = f"{classifier.spec.head.description}; noise and patterns are classified as {named} of "
    detail += f"{classifier.num_classes} classes, mean confidence {confidence:.2f}"
    if float(logits.std(0).max()) < 1e-5:
        return Check("answers", PROBLEM, "every image gets the same logits")
    return Check("answers", WARNING if named == 1 else OK, detail)


def _check_determinism(classifier: Classifier, noise: torch.Tensor) -> Check:
    before = {name: tensor.clone() for name, tensor in classifier.network.state_dict().items()}
    with torch.no_grad():
        first, second = classifier(noise), classifier(noise)
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-4):
        gap = float((first - second).abs().max())
        return Check("repeats itself", PROBLEM, f"equal images get logits that differ by up to {gap:.3g}")
    changed = [n for n, t in classifier.network.state_dict().items() if not torch.equal(t, before[n])]
    if changed:
        return Check("repeats itself", PROBLEM, f"a forward pass changes {changed[0]}, even in evaluation mode")
    return Check("repeats itself", OK, "equal images get equal logits, and a forward pass changes nothing")


def _check_batch_independence(classifier: Classifier, noise: torch.Tensor) -> Check:
    with torch.no_grad():
        together, alone = classifier(noise), torch.cat([classifier(image.unsqueeze(0)) for image in noise[:4]])
    gap = float((together[:4] - alone).abs().max())
    if gap > 1e-2 * max(1.0, float(together.abs().max())):
        return Check("one at a time", PROBLEM, f"an image gets other logits in a batch than alone, by up to {gap:.3g}")
    return Check("one at a time", OK, "an image gets the same logits alone and in a batch")


def _check_gradients(classifier: Classifier, noise: torch.Tensor) -> Check:
    images = noise.clone().requires_grad_()
    labels = torch.arange(len(images)) % classifier.num_classes
    try:
        with torch.enable_grad():
            F.cross_entropy(classifier(images), labels).backward()
    except (RuntimeError, NotImplementedError) as error:
        return Check("gradients", PROBLEM, f"no gradient reaches the images: {str(error).splitlines()[0]}")
    if images.grad is None or not images.grad.any():
        return Check("gradients", PROBLEM, "no gradient reaches the images")
    if not images.grad.isfinite().all():
        return Check("gradients", PROBLEM, "gradients are not all finite")
    reached = float(images.grad.flatten(1).any(1).float().mean())
    detail = f"gradients reach {100 * reached:.0f} % of the images"
    return Check("gradients", OK if reached > 0.5 else WARNING, detail)


def _check_batch_norm(classifier: Classifier) -> Check:
    layers = batch_norm_layers(classifier.network)
    if not layers:
        return Check("batch norm", OK, "none; methods that match it need statistics (kdx compute-stats, with data)")
    modules = dict(classifier.network.named_modules())
    fresh = [n for n in layers if not modules[n].running_mean.any() and (modules[n].running_var == 1).all()]
    if len(fresh) == len(layers):
        return Check("batch norm", WARNING, f"layers: {len(layers)}, which keep nothing: was it trained?")
    return Check("batch norm", OK, f"layers that keep statistics of the training data: {len(layers)}")


def _check_features(classifier: Classifier, noise: torch.Tensor) -> Check:
    try:
        layer = classifier.feature_layer
        with torch.no_grad(), record_features(classifier.network, layer) as features:
            classifier(noise[:2])
    except KdxError as error:
        return Check("features", WARNING, str(error))
    if not features:
        unused = f"{layer} is not used in the forward pass; name another layer with --feature-layer"
        return Check("features", WARNING, unused)
    return Check("features", OK, f"{features[-1].shape[1]} inputs of {layer}")


def _check_real_images(classifier: Classifier, real: RealSample) -> Check:
    with torch.no_grad():
        logits = _logits(classifier, to_pixels(real.images), None)
    confidence = float(logits.softmax(1).max(1).values.mean())
    detail = f"{len(logits)} images, mean confidence {confidence:.2f}"
    if real.labels is None:
        return Check("real images", OK, detail)
    accuracy = float((logits.argmax(1) == real.labels).float().mean())
    result = WARNING if accuracy < 2 / classifier.num_classes and accuracy < 0.5 else OK
    return Check("real images", result, f"{detail}, accuracy {100 * accuracy:.1f} %")


def _check_normalization(classifier: Classifier, pictures: torch.Tensor, real: RealSample | None) -> Check:
    """Check whether one of `CANDIDATES` fits the network better than its own normalization."""
    own = f"mean {_numbers(classifier.spec.mean)}, std {_numbers(classifier.spec.std)}"
    pixels = pictures if real is None else to_pixels(real.images[:256])
    if batch_norm_layers(classifier.network):
        ratio = _variance_ratio(classifier, pixels)
        better = _best_by_statistics(classifier, pixels) if max(ratio, 1 / ratio) > _MAX_VARIANCE_RATIO else ""
        if better:
            how = "larger" if ratio > 1 else "smaller"
            times = max(ratio, 1 / ratio) ** 0.5
            return Check(
                "normalization", WARNING, f"{own}: it was trained on values {times:.0f} times {how}; likely {better}"
            )
    if real is None:
        return Check("normalization", OK, f"{own}: not compared with others: that needs real images (--data)")
    if real.labels is not None:
        labels = real.labels[:256]
        scores = {"": _accuracy_with(classifier, pixels, labels, None)}
        for name, values in CANDIDATES.items():
            scores[name] = _accuracy_with(classifier, pixels, labels, values)
        best = max(scores, key=lambda name: scores[name])
        if scores[best] > scores[""] + 0.1:
            gain = f"{100 * scores[best]:.0f} % accuracy instead of {100 * scores['']:.0f} %"
            return Check("normalization", WARNING, f"{own}: likely wrong; with {best}, {gain}")
    if batch_norm_layers(classifier.network):
        best = _best_by_statistics(classifier, pixels)
        if best:
            return Check("normalization", WARNING, f"{own}: the statistics of its batch norm fit {best} better")
        return Check("normalization", OK, f"{own}: no usual normalization fits its batch norm better")
    if real.labels is not None:
        return Check("normalization", OK, f"{own}: no usual normalization has a higher accuracy")
    return Check("normalization", OK, f"{own}: not compared with others: that needs labels or batch norm")


def _logits(
    classifier: Classifier, pixels: torch.Tensor, values: tuple[Values, Values] | None, chunk: int = IMAGES
) -> torch.Tensor:
    """Return logits [N, K] of pixels [N, C, H, W]; `values` replaces the normalization unless it is None."""
    if values is None:
        return torch.cat([classifier(part) for part in pixels.split(chunk)])
    mean, std = (torch.tensor(_per_channel(value, pixels.shape[1])).view(1, -1, 1, 1) for value in values)
    return torch.cat([classifier.of_normalized((part - mean) / std) for part in pixels.split(chunk)])


def _per_channel(value: Values, channels: int) -> tuple[float, ...]:
    return value if len(value) == channels else (sum(value) / len(value),) * channels


def _accuracy_with(
    classifier: Classifier, pixels: torch.Tensor, labels: torch.Tensor, values: tuple[Values, Values] | None
) -> float:
    with torch.no_grad():
        return float((_logits(classifier, pixels, values).argmax(1) == labels).float().mean())


def _variance_ratio(classifier: Classifier, pixels: torch.Tensor) -> float:
    """Return the running variance of the first batch normalization layer divided by the variance of its inputs."""
    with torch.no_grad(), record_batch_statistics(classifier.network) as recorded:
        classifier(pixels[:256])
    first = next(iter(recorded.values()))
    return float((first.kept_variance + 1e-12).log().mean().sub((first.variance + 1e-12).log().mean()).exp())


def _best_by_statistics(classifier: Classifier, pixels: torch.Tensor) -> str:
    """Return the normalization whose inputs of the first batch normalization layer fit its running statistics best.

    '' if none is clearly better than the classifier's own.
    """

    def distance(values: tuple[Values, Values] | None) -> float:
        with torch.no_grad(), record_batch_statistics(classifier.network) as recorded:
            _logits(classifier, pixels, values, len(pixels))
        first = next(iter(recorded.values()))
        scale = first.kept_variance.clamp_min(1e-12)
        means = (first.mean - first.kept_mean).square() / scale
        return float((means + (first.variance.clamp_min(1e-12) / scale).log().square()).mean())

    own = distance(None)
    found = {name: distance(values) for name, values in CANDIDATES.items()}
    best = min(found, key=lambda name: found[name])
    return best if found[best] < 0.5 * own and own > _LEAST_DISTANCE else ""


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in dict.fromkeys(values))
