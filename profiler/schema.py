"""Columns of the dataset: the contract between measuring and everything after it.

A dataset is a folder of Parquet folders. Each is readable with
`SELECT * FROM 'DIR/NAME/*.parquet'`:

- `measurements/` one row per scenario, taken from the best run of it;
- `kernels/` one row per kernel launch;
- `ranges/` one row per NVTX range (the timing of CPU experts);
- `counters/` one row per kernel and hardware counter, as ncu read them;
- `energy/` one row per energy trial, rejected ones too.
"""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 2

ADDED_COLUMNS = ("batch_tokens", "energy_mj", "energy_trusted", "note", "weight_copies")
"""Columns of `measurements/` that datasets made before there were any of them lack."""

_S, _I, _F = pa.string(), pa.int64(), pa.float64()

MEASUREMENTS = pa.schema(
    [
        # What was measured.
        ("scenario_id", _S),
        ("class_id", _S),
        ("block", _S),
        ("d_model", _I),
        ("d_ff", _I),
        ("activation", _S),
        ("dtype", _S),
        ("quantisation", _S),
        ("n_heads", _I),
        ("n_kv_heads", _I),
        ("head_dim", _I),
        ("context_len", _I),
        ("op", _S),
        ("kernel", _S),
        ("kernel_source_hash", _S),
        ("framework", _S),
        ("config", _S),  # tile parameters as JSON, "{}" where there are none
        ("cache_state", _S),  # cold, warm; mixed: to be cold, but memory held too few copies
        ("weight_copies", _I),  # that the calls rotated through
        ("tokens", _I),
        # Layer scenarios only, else NULL.
        ("experts", _I),
        ("top_k", _I),
        ("ep_size", _I),
        ("tp_size", _I),
        ("counts", pa.list_(pa.int32())),
        ("distribution", _S),
        ("batch_tokens", _I),  # of the whole batch, over all expert-parallel ranks
        # How it went: ok, noisy (measured, but failed the quality gate), failed.
        ("status", _S),
        ("error", _S),
        ("note", _S),  # what else a reader has to know of a row that did not fail
        # Time of one call. `latency` is the wall span; see docs/dataset.md.
        ("latency_us_mean", _F),
        ("latency_us_p05", _F),
        ("latency_us_p25", _F),
        ("latency_us_p50", _F),
        ("latency_us_p75", _F),
        ("latency_us_p95", _F),
        ("n", _I),
        ("calls_per_sample", _I),  # a sample is the mean over so many consecutive calls
        ("robust_cv", _F),  # (p75 - p25) / p50
        ("pass_disagreement", _F),  # (largest - smallest p50 of a pass) / p50
        ("attempts", _I),
        ("kernel_sum_us", _F),
        ("wall_span_us", _F),
        ("kernels_per_call", _F),
        # Compulsory work, from shapes.
        ("flops", _F),
        ("weight_bytes", _F),
        ("activation_bytes", _F),
        # Energy of one call. Idle is the share the device draws doing nothing.
        ("energy_active_mj", _F),
        ("energy_idle_mj", _F),
        ("energy_mj_low", _F),
        ("energy_mj_high", _F),
        ("energy_mj", _F),  # active and idle
        # Whether the window of power was long enough; NULL where energy was not measured.
        ("energy_trusted", pa.bool_()),
        # nvml_counter, nvml_integral, external_meter, power_samples, modelled
        ("energy_source", _S),
        ("power_mean_w", _F),
        ("power_peak_w", _F),
        ("temp_rise_c", _F),  # always modelled
        ("temp_before_c", _F),
        ("temp_after_c", _F),
        ("sm_clock_before_mhz", _F),
        ("sm_clock_after_mhz", _F),
        ("mem_clock_before_mhz", _F),
        ("mem_clock_after_mhz", _F),
        ("throttle_reasons", _S),
        ("counters", pa.map_(_S, _F)),
        # By what, where and when.
        ("backend", _S),  # nsys, torch-profiler, inprocess; aiconfigurator: made elsewhere
        # nvtx_range, kernel_span, cuda_graph, cuda_event, monotonic_clock, profiler_range
        ("timer", _S),
        ("tool_version", _S),
        ("costprof_version", _S),
        ("python_version", _S),
        ("torch_version", _S),
        ("triton_version", _S),
        ("num_threads", _I),
        ("device_id", _S),
        ("device_kind", _S),
        ("device_name", _S),
        ("device_units", _I),
        ("driver_version", _S),
        ("power_limit_w", _F),
        ("run_id", _S),
        ("measured_at", pa.timestamp("us", tz="UTC")),
    ]
)

KERNELS = pa.schema(
    [
        ("source", _S),  # file name of the export, or the run id
        ("start_ns", _I),
        ("end_ns", _I),
        ("duration_ns", _I),
        ("name", _S),
        ("demangled_name", _S),
        ("device_index", _I),
        ("context_id", _I),
        ("stream_id", _I),
        ("global_pid", _I),
        ("correlation_id", _I),
        ("grid_x", _I),
        ("grid_y", _I),
        ("grid_z", _I),
        ("block_x", _I),
        ("block_y", _I),
        ("block_z", _I),
        ("registers_per_thread", _I),
        ("static_shared_bytes", _I),
        ("dynamic_shared_bytes", _I),
        ("graph_id", _I),
        ("graph_node_id", _I),
        # The launch, and the innermost range it was made in (NULL: none). All kernels of a graph
        # launch carry that one launch: count its interval once per (global_pid, correlation_id).
        ("attribution", _S),  # attributed, no_range, no_launch_row
        ("launch_start_ns", _I),
        ("launch_end_ns", _I),
        ("launch_global_tid", _I),
        ("range_id", _I),
        ("range_text", _S),
        ("range_domain", _S),
        ("range_path", pa.list_(_S)),  # outermost first, the range itself last
    ]
)

RANGES = pa.schema(
    [
        ("source", _S),
        ("range_id", _I),  # unique within one source
        ("parent_id", _I),
        ("depth", _I),
        ("kind", _S),  # push_pop, start_end
        ("domain", _S),  # "" is the default domain; NULL: its name was not captured
        ("text", _S),
        ("path", pa.list_(_S)),  # texts from the outermost range to this one
        ("global_tid", _I),
        ("start_ns", _I),
        ("end_ns", _I),  # NULL, as the durations: still open when the capture closed
        ("duration_ns", _I),
        ("self_ns", _I),  # duration less that of the child ranges
        # CUDA API calls made while this range was innermost, each counted once.
        ("api_calls", _I),
        ("api_ns", _I),
        # Filled for the ranges a sweep emits.
        ("scenario_id", _S),
        ("repetition", _I),
    ]
)

COUNTERS = pa.schema(
    [
        ("source", _S),
        ("scenario_id", _S),  # NULL: of a report that no sweep made
        ("kernel_index", _I),  # order of the profiled launches in the report, from 0
        ("kernel_name", _S),
        ("metric", _S),
        ("unit", _S),  # base unit: byte, ns, hz, byte/s, %, ...; "" where there is none
        ("value", _F),
    ]
)

ENERGY = pa.schema(
    [
        ("scenario_id", _S),
        ("trial", _I),  # of this scenario, from 0
        ("run_order", _I),  # of all trials of the sweep, as they were run
        # accepted, rejected (see reason), failed (no reading at all), waiting (for the file of a
        # wall meter).
        ("status", _S),
        ("reason", _S),
        ("note", _S),
        ("source", _S),  # nvml_counter, nvml_integral, external_meter
        # The window, and its energy by counter and by integral of the power.
        ("window_s", _F),
        ("ticks", _I),
        ("calls", _F),  # completed within it, interpolated between progress marks
        ("call_us", _F),  # window / calls
        ("counter_mj", _F),
        ("integral_mj", _F),
        ("disagreement", _F),  # integral / counter - 1
        # Energy of one call: all of it, and idle and active apart.
        ("energy_mj", _F),
        ("energy_active_mj", _F),
        ("energy_idle_mj", _F),
        ("idle_w_before", _F),
        ("idle_w_after", _F),
        ("idle_drift", _F),  # after / before - 1
        ("power_mean_w", _F),
        ("power_peak_w", _F),
        # At the edges of the window.
        ("temp_before_c", _F),
        ("temp_after_c", _F),
        ("sm_clock_before_mhz", _F),
        ("sm_clock_after_mhz", _F),
        ("mem_clock_before_mhz", _F),
        ("mem_clock_after_mhz", _F),
        ("throttle_reasons", _S),
        # How the calls were made.
        ("launch", _S),  # graph, plain
        ("calls_per_step", _I),  # of a graph
        ("weight_copies", _I),
        ("capture_error", _S),
        ("cool_down_s", _F),
        ("num_threads", _I),
        ("device_id", _S),
        ("measured_at", pa.timestamp("us", tz="UTC")),
    ]
)
