"""Kernels of experts, named `module:function` by a sweep; the contract: docs/architecture.md."""
