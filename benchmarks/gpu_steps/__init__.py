"""The steps of `gpu_day.py`: what they measure, in which order, and when one is done."""
