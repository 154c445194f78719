"""Use a student from Python: python examples/load_student.py runs/default/students/lenet_half/model.safetensors"""

from __future__ import annotations

import sys

import torch

from kdextract import load_classifier

student = load_classifier(sys.argv[1])
pixels = torch.rand(4, *student.input_shape)  # pixels in [0, 1]; the classifier normalizes inside
with torch.inference_mode():
    probabilities = student(pixels).softmax(dim=1)
for row in probabilities:
    print(student.spec.class_names[int(row.argmax())], f"{float(row.max()):.2f}")
