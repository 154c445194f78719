"""A classifier with more classes: the same network with a larger last layer; and its old classes alone."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ..errors import ConfigError
from .classifier import Classifier, ClassifierSpec
from .external.head import Head
from .external.probe import probe


def with_more_classes(classifier: Classifier, names: tuple[str, ...]) -> Classifier:
    """Return a classifier on the CPU whose classes are those of `classifier`, followed by `names`.

    Its network is built anew with more classes. It has the weights of the old one, copied; what the last layer has per
    class is copied for the old classes and freshly initialized (PyTorch's global random state) for the new ones. The
    logits of the old classes are therefore those of the old classifier.

    Args:
        classifier: on the CPU; it does not change.
        names: at least one, none of them a class of `classifier`.

    Raises:
        ConfigError: the network cannot be built with another number of classes, or has one output for two classes.
    """
    spec = classifier.spec
    assert names
    assert not set(names) & set(spec.class_names)
    if spec.head.kind in ("logit", "probability"):
        raise ConfigError(f"{spec.architecture} has one output for its two classes, so that no class can be added")
    network_name = spec.blueprint().with_classes(spec.num_classes + len(names)).name
    more = replace(spec, architecture=str(network_name), class_names=(*spec.class_names, *names))
    network = more.build()
    _copy_weights(classifier.network, network, spec, more)
    if more.is_foreign:
        found = probe(network, network_name, spec.input_shape).num_classes
        if found != more.num_classes:
            raise ConfigError(
                f"{network_name} has {found} outputs, not {more.num_classes}: no class can be added to it"
            )
    return Classifier(more, network)


def _copy_weights(old: nn.Module, new: nn.Module, spec: ClassifierSpec, more: ClassifierSpec) -> None:
    """Copy weights and buffers; of those that have one entry per class, the entries of the old classes.

    Raises:
        ConfigError: the networks differ in something else than the number of entries per class.
    """
    before, after = old.state_dict(), new.state_dict()
    sizes = spec.num_classes, more.num_classes
    grown = 0
    fits = before.keys() == after.keys()
    for name, tensor in after.items() if fits else ():
        known = before[name]
        if known.shape == tensor.shape:
            tensor.copy_(known)
        elif known.shape[1:] == tensor.shape[1:] and (len(known), len(tensor)) == sizes:
            tensor[: len(known)].copy_(known)
            grown += 1
        else:
            fits = False
    if not (fits and grown):
        raise ConfigError(
            f"{more.architecture} is not {spec.architecture} with a larger last layer, so that no class can be added"
        )


class _FirstClasses(nn.Module):
    """The network of a classifier, whose output is the logits of its first classes [batch, count]; weights are shared.

    Args:
        count: number of classes.
    """

    def __init__(self, classifier: Classifier, count: int) -> None:
        super().__init__()
        self.network, self._head, self._count = classifier.network, classifier.spec.head, count

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, count] for normalized pixels [batch, channels, height, width]."""
        return self._head.logits(self.network(values))[:, : self._count]


def first_classes(classifier: Classifier, count: int) -> Classifier:
    """Return a classifier for the first `count` classes that shares the weights of `classifier`, and their mode."""
    spec = replace(classifier.spec, class_names=classifier.spec.class_names[:count], head=Head(), feature_layer=None)
    view = Classifier(spec, _FirstClasses(classifier, count))
    view.training = classifier.training  # not `train`, which would change the modes of modules that are shared
    return view
