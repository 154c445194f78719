#!/bin/sh
# The whole pipeline in an empty directory: no network, no flag, no file. About three minutes on two cores.
set -eu
kdx train
kdx compute-stats
kdx optimize-dataset --objective spectral_all_layers
kdx distill --student lenet_half

# A gate for CI: exit code 5 if the student is not good enough.
kdx evaluate --min-accuracy 0.9 --min-agreement 0.9
kdx verify
