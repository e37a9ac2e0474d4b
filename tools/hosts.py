#!/usr/bin/env python3
"""Runs a program's ranks on several hosts of one machine: network namespaces with a cable of limited rate each.

    sudo tools/hosts.py [--hosts 2] [--ranks-per-host 1] [--rate 10gbit] [--mpirun] [--probe] -- COMMAND...
    sudo tools/hosts.py -- build/release/ferry bench a2a --moe-a2a-backend pplx,deepep --json

Ranks get the variables of torchrun, or come from one mpirun whose only way between ranks is TCP over the
cables (--mpirun, Open MPI). --probe first prints what one plain TCP stream carries from host to host (stderr).
Ends with the largest exit status of the ranks; takes everything down again. Needs root, ip and tc (iproute2).
"""

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time

NETWORK = "10.78.0"
SWITCH = f"fsw{os.getpid()}"


def must(line):
    done = subprocess.run(line.split(), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"hosts.py: {line}: {done.stderr.strip()}")


def names(hosts):
    return [f"fh{os.getpid()}n{h}" for h in range(hosts)]


def address(host):
    return f"{NETWORK}.{host + 1}"


def plug_in(namespace, host, rate):
    """A namespace with one end of a cable; the other is in the switch."""
    must(f"ip netns add {namespace}")
    must(f"ip -n {namespace} link add eth type veth peer name plug{host} netns {SWITCH}")
    must(f"ip -n {SWITCH} link set plug{host} master bridge up")
    must(f"ip -n {namespace} addr add {address(host)}/24 dev eth")
    must(f"ip -n {namespace} link set lo up")
    must(f"ip -n {namespace} link set eth up")
    if rate:
        must(f"tc -n {namespace} qdisc add dev eth root tbf rate {rate} burst 256kb latency 50ms")


def take_down(namespaces):
    for namespace in [*namespaces, SWITCH]:
        subprocess.run(["ip", "netns", "del", namespace], capture_output=True)


def inside(namespace):
    return ["nsenter", f"--net=/run/netns/{namespace}"]


def socket_in(namespace):
    """A TCP socket belongs to the network that its thread was in; threads have each their own."""
    made = []

    def make():
        with open(f"/run/netns/{namespace}") as there:
            ctypes.CDLL(None).setns(there.fileno(), 0)
        made.append(socket.socket())

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


def probe(namespaces, seconds=2.0, chunk=1 << 20):
    """GB/s of one stream from the second host to the first."""
    listener = socket_in(namespaces[0])
    listener.bind((address(0), 0))
    listener.listen()
    sender = socket_in(namespaces[1])
    sender.connect(listener.getsockname())
    receiver = listener.accept()[0]
    received, times, buffer = 0, [time.perf_counter()], bytearray(chunk)

    def send():
        while time.perf_counter() < times[0] + seconds:
            sender.sendall(buffer)
        sender.close()

    thread = threading.Thread(target=send)
    thread.start()
    incoming = bytearray(chunk)
    while n := receiver.recv_into(incoming):
        received += n
    thread.join()
    return received / (time.perf_counter() - times[0]) / 1e9


def by_variables(args, namespaces):
    """One process a rank."""
    world = args.hosts * args.ranks_per_host
    ranks = []
    for rank in range(world):
        host, local = divmod(rank, args.ranks_per_host)
        variables = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": local, "GROUP_RANK": host,
                     "MASTER_ADDR": address(0), "MASTER_PORT": 29500,
                     "FERRY_TOKEN": os.environ.get("FERRY_TOKEN", "hosts.py")}
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        ranks.append(subprocess.Popen(inside(namespaces[host]) + args.command, env=environment))
    return ranks


def by_mpirun(args, namespaces):
    """One mpirun inside the switch, where every rank can reach it."""
    must(f"ip -n {SWITCH} addr add {NETWORK}.254/24 dev bridge")
    must(f"ip -n {SWITCH} link set lo up")
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                                "PMIX_MCA_ptl_base_if_include": "bridge", "PMIX_MCA_ptl_base_remote_connections": "1",
                                "MASTER_ADDR": address(0), "MASTER_PORT": "29500",
                                "FERRY_TOKEN": os.environ.get("FERRY_TOKEN", "hosts.py")}
    line = ["mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "pml", "ob1", "--mca", "btl", "self,tcp",
            "--mca", "btl_tcp_if_include", "eth"]
    for host, namespace in enumerate(namespaces):
        line += [":"] if host else []
        line += ["-np", str(args.ranks_per_host), *inside(namespace), *args.command]
    return [subprocess.Popen(inside(SWITCH) + line, env=environment)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--ranks-per-host", type=int, default=1)
    parser.add_argument("--rate", default="10gbit", help="of every host's sending, as tc writes it; empty: unlimited")
    parser.add_argument("--mpirun", action="store_true")
    parser.add_argument("--probe", action="store_true")
    parser.add_argument("command", nargs="*")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("hosts.py: only root makes network namespaces")
    if not args.command and not args.probe:
        parser.error("no command to run")
    namespaces = names(args.hosts)
    # Those who stop this script stop the ranks, and the hosts go in either case.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    ranks = []
    try:
        must(f"ip netns add {SWITCH}")
        must(f"ip -n {SWITCH} link add bridge type bridge")
        must(f"ip -n {SWITCH} link set bridge up")
        for host, namespace in enumerate(namespaces):
            plug_in(namespace, host, args.rate)
        if args.probe:
            print(f"hosts.py: one TCP stream from host 1 to host 0: {probe(namespaces):.3f} GB/s", file=sys.stderr)
        if args.command:
            ranks = (by_mpirun if args.mpirun else by_variables)(args, namespaces)
        return max((rank.wait() for rank in ranks), default=0)
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.terminate()
                rank.wait()
        take_down(namespaces)


if __name__ == "__main__":
    sys.exit(main())
