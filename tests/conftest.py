"""Triton's interpreter stands in for a GPU, where there is none, in every test alike."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    # Read when a kernel is defined, so before the first of them is imported.
    os.environ["TRITON_INTERPRET"] = "1"
