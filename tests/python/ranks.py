"""Ranks for tests: threads of this process, or processes that meet at a store."""

import multiprocessing
import threading
import traceback

import tokenferry

TIMEOUT = 60


def in_threads(size, body, threads=1):
    """body(comm) on each rank; their results. The first error that is not about another rank's is raised."""
    results, errors = [None] * size, [None] * size

    def rank_main(comm):
        try:
            with comm:
                results[comm_rank[id(comm)]] = body(comm)
        except BaseException as error:
            errors[comm_rank[id(comm)]] = error

    comms = tokenferry.local(size, threads)
    comm_rank = {id(comm): comm.rank for comm in comms}
    running = [threading.Thread(target=rank_main, args=(comm,)) for comm in comms]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(TIMEOUT)
        assert not thread.is_alive(), "a rank hangs"
    own = [e for e in errors if e is not None and getattr(e, "kind", None) != "aborted"]
    for error in own or [e for e in errors if e is not None]:
        raise error
    return results


def _process_main(rank, size, port, secret, options, body, args, results):
    try:
        store = tokenferry.TcpStore("127.0.0.1", port, False, secret, TIMEOUT)
        with tokenferry.join(store, rank, size, **options) as comm:
            results.put((rank, True, body(comm, *args)))
    except BaseException:
        results.put((rank, False, traceback.format_exc()))


class Processes:
    """Ranks that are processes; a context, so that none is left behind. Options as join()."""

    def __init__(self, size, body, *args, transport="shm", **options):
        spawn = multiprocessing.get_context("spawn")
        secret = "a secret of this test"
        self.store = tokenferry.TcpStore("127.0.0.1", 0, True, secret)
        self.results = spawn.Queue()
        self.all = [
            spawn.Process(
                target=_process_main,
                args=(rank, size, self.store.port, secret, options | dict(transport=transport), body, args, self.results),
            )
            for rank in range(size)
        ]
        for process in self.all:
            process.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.all:
            process.join(1)
            if process.is_alive():
                process.kill()
            process.join()

    def collect(self, count):
        """The results of the next `count` ranks that end, by rank; (succeeded, result or traceback)."""
        found = {}
        for _ in range(count):
            rank, good, result = self.results.get(timeout=TIMEOUT)
            found[rank] = (good, result)
        return found


def in_processes(size, body, *args, **options):
    with Processes(size, body, *args, **options) as processes:
        found = processes.collect(size)
    for good, result in found.values():
        assert good, result
    return [found[rank][1] for rank in range(size)]
