"""Energy of a call, measured: windows of many calls between the ticks of a slow counter.

The procedure, and what it rejects, stands in docs/energy.md. `trace` and `windows` are the pure
core; `nvml` and `sampler` read a GPU, `meter` a wall meter's CSV; `workload`, `trial` and
`campaign` run it; `store` keeps it.
"""
