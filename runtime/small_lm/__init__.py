"""A small real MoE language model, to judge what routing does to quality."""
