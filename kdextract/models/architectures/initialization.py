"""Weight initialization shared by all architectures."""

from __future__ import annotations

from torch import nn


def he_initialize(network: nn.Module) -> nn.Module:
    """Initialize every convolution and linear layer for ReLU networks, in place, and return the network.

    Weights are normal with variance 2 / fan-in (He et al. 2015, eq. 10), biases zero. The last linear layer has
    variance 1 / fan-in, because no ReLU follows it.
    """
    last_linear = [m for m in network.modules() if isinstance(m, nn.Linear)][-1:]
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if module in last_linear else "relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
