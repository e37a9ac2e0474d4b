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


def bench_kineto(fn, kernel_names, num_tests=10, *args, **kwargs):
    """Seconds of a call, for each of kernel_names alike: on a CPU a call is one piece."""
    mean = bench(fn, num_tests=num_tests)[0]
    return mean if isinstance(kernel_names, str) else tuple(mean for _ in kernel_names)
