#!/bin/sh
# The whole pipeline in an empty directory, without a network or other files. About three minutes on two cores.
set -eu
kdx train
kdx compute-stats
kdx optimize-dataset --objective spectral_all_layers
kdx distill --student lenet_half

# For continuous integration: exit code 5 if accuracy or agreement of the student is lower.
kdx evaluate --min-accuracy 0.9 --min-agreement 0.9
kdx verify
