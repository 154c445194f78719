#!/bin/sh
# Trains a teacher on two classes of points in the plane, and two flows that make such points: one without data, one with
# 20 real points. Writes a picture of the points, runs/2d-NAME/points.png, and prints their distances to real points, beside
# those of uniform points with the teacher's labels. About two minutes per distribution on two cores.
#
#     sh two_dimensions.sh            # all seven distributions
#     sh two_dimensions.sh pizza      # or: moon1 moon2 mixed circle moons circles
#     STEPS=200 sh two_dimensions.sh pizza
set -eu
here="$(cd "$(dirname "$0")" && pwd)"
flow="--flow nice_affine --width 30 --noise-scale 1 --spread 0.1 --steps ${STEPS:-2500} --batch-size 64"
for name in ${*:-moon1 moon2 mixed circle pizza moons circles}; do
  run="runs/2d-$name"
  kdx train --run "$run" --data "2d:$name" --model bdnf_mlp
  # shellcheck disable=SC2086
  kdx train-generator keflow --run "$run" $flow --name alone
  # shellcheck disable=SC2086
  kdx train-generator keflow --run "$run" $flow --samples 20 --aided 0.1 --name aided
  kdx generate alone --run "$run"
  kdx generate aided --run "$run"
  python3 "$here/two_dimensions.py" "$run"
done
