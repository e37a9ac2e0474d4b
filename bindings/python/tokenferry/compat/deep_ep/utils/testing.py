"""Timing, with wall clocks instead of device events."""

import time


def bench(fn, num_warmups=5, num_tests=10, post_fn=None, flush_l2=True):
    """(mean, least, greatest) seconds of a call."""
    for _ in range(num_warmups):
        fn()
    times = []
    for _ in range(num_tests):
        begin = time.perf_counter()
        fn()
        times.append(time.perf_counter() - begin)
        if post_fn is not None:
            post_fn()
    return sum(times) / len(times), min(times), max(times)


def bench_kineto(fn, kernel_names, num_tests=10, suppress_kineto_output=False, trace_path=None, flush_l2=True,
                 barrier_comm_profiling=False, num_kernels_per_period=1, barrier=None):
    """Seconds of a call, for each of kernel_names (and each of their periods) alike: on a CPU a call is
    one piece."""
    mean = bench(fn, num_warmups=1, num_tests=num_tests)[0]
    one = mean if num_kernels_per_period == 1 else [mean] * num_kernels_per_period
    return one if isinstance(kernel_names, str) else tuple(one for _ in kernel_names)
