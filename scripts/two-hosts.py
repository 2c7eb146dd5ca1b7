#!/usr/bin/env python3
"""Two hosts on this machine with a wide-area link between them, for `make bench-hosts` (root only).

    scripts/two-hosts.py --rate 1000 --round-trip 53 --check
    scripts/two-hosts.py --rate 1000 --round-trip 53 scripts/bench-hosts.sh --works full

Each host is a network namespace. Each end of the link is a TUN device, and this program carries the packets from one to
the other, each half of the round trip later: the connections on it see the latency as on a real link, with their
windows and acknowledgements. tbf in front limits each direction. Host keys, a user key and a configuration for ssh live in a
directory of their own; the command finds it in BENCH_HOSTS_SSH, the two logins in PRIMARY and STANDBY.
Everything goes when the command ends."""

import argparse
import collections
import ctypes
import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

CLONE_NEWNET = 0x40000000
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
# checksums and large segments are left to the receiving end: what is on the link is still packets of 1500 bytes by count
OFFLOADS = 0x01 | 0x02 | 0x04
PACKET = 10 + (64 << 10) + 200
ADDRESSES = ("10.86.0.1", "10.86.0.2")
# What Linux has without configuration; namespaces begin with this machine's own.
SYSCTLS = {
    "net.ipv4.tcp_rmem": "4096 131072 6291456",
    "net.ipv4.tcp_wmem": "4096 16384 4194304",
}


def run(*command):
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def inside(namespace, *command):
    return ["nsenter", f"--net=/run/netns/{namespace}", *command]


def move(file):
    """Into the network namespace of an open file, for this thread (os.setns came with Python 3.12)."""
    if ctypes.CDLL(None, use_errno=True).setns(file, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def enter(namespace):
    with open(f"/run/netns/{namespace}", "rb") as file:
        move(file.fileno())


def tun(namespace):
    """The end of the link in a namespace: a device there, and what reads and writes its packets here."""
    ready, told = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            enter(namespace)
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
            fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"wan", flags))
            fcntl.ioctl(device, TUNSETOFFLOAD, OFFLOADS)
            socket.send_fds(told, [b"!"], [device])
            os._exit(0)
        finally:
            os._exit(1)
    told.close()
    _, devices, _, _ = socket.recv_fds(ready, 1, 1)
    os.waitpid(child, 0)
    if not devices:
        raise RuntimeError("no TUN device")
    return devices[0]


def carry(source, sink, delay):
    """Every packet, in order, so much later."""
    under_way = collections.deque()
    poll = select.poll()
    poll.register(source, select.POLLIN)
    while True:
        patience = None
        if under_way:
            patience = max(0.0, under_way[0][0] - time.monotonic()) * 1000
        # poll's timeout has milliseconds: the rest is waited for in select
        if patience is None or patience >= 1:
            ready = bool(poll.poll(patience and int(patience)))
        else:
            ready = bool(select.select([source], [], [], patience / 1000)[0])
        if ready:
            due = time.monotonic() + delay
            for _ in range(64):
                try:
                    under_way.append((due, os.read(source, PACKET)))
                except BlockingIOError:
                    break
        now = time.monotonic()
        while under_way and under_way[0][0] <= now:
            packet = under_way.popleft()[1]
            try:
                os.write(sink, packet)
            except OSError:
                pass  # a link may lose a packet


class Hosts:
    def __init__(self, options):
        self.children = []
        self.name = f"bench-hosts-{os.getpid()}"
        self.namespaces = [f"{self.name}-primary", f"{self.name}-standby"]
        self.scratch = tempfile.mkdtemp(prefix="bench-hosts-ssh.")
        os.chmod(self.scratch, 0o755)
        try:
            self.link(options)
            if not options.check:
                self.ssh()
        except BaseException:
            self.close()
            raise

    def link(self, options):
        ends = []
        for namespace, own in zip(self.namespaces, ADDRESSES):
            run("ip", "netns", "add", namespace)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
            run(*inside(namespace, "sysctl", "-qw", *(f"{name}={value}" for name, value in SYSCTLS.items())))
            ends.append(tun(namespace))
            run("ip", "-n", namespace, "address", "add", f"{own}/24", "dev", "wan")
            run("ip", "-n", namespace, "link", "set", "wan", "up", "mtu", "1500", "txqueuelen", "10000")
            # as an attribute of the route: only the first namespace may choose any default
            run("ip", "-n", namespace, "route", "replace", "10.86.0.0/24", "dev", "wan", "src", own, "congctl",
                options.congestion)
            if options.rate:
                run("tc", "-n", namespace, "qdisc", "add", "dev", "wan", "root", "tbf", "rate", f"{options.rate}mbit",
                    "burst", "256kb", "latency", "50ms")
        for source, sink in (ends, ends[::-1]):
            child = os.fork()
            if child == 0:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                try:
                    os.nice(-10)  # a link does not wait for a processor
                except OSError:
                    pass
                carry(source, sink, options.round_trip / 2000)
            self.children.append(child)

    def ssh(self):
        at = lambda name: os.path.join(self.scratch, name)
        for key in ("host", "user"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", at(key))
        shutil.copy(at("user.pub"), at("authorized"))
        os.chmod(at("authorized"), 0o644)
        with open(at("host.pub"), encoding="ascii") as file:
            host_key = file.read()
        with open(at("known"), "w", encoding="ascii") as file:
            file.writelines(f"{name} {host_key}" for name in (*ADDRESSES, *self.namespaces))
        with open(at("sshd"), "w", encoding="utf-8") as file:
            file.write(f"HostKey {at('host')}\nAuthorizedKeysFile {at('authorized')}\nStrictModes no\nUsePAM yes\n"
                       "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPrintMotd no\n")
        common = (f"IdentitiesOnly yes\nUserKnownHostsFile {at('known')}\nGlobalKnownHostsFile /dev/null\n"
                  "LogLevel ERROR\nUser postgres\n")
        with open(at("config"), "w", encoding="utf-8") as file:
            for namespace, address in zip(self.namespaces, ADDRESSES):
                sshd = " ".join(inside(namespace, "/usr/sbin/sshd", "-i", "-f", at("sshd")))
                file.write(f"Host {address}\nHostKeyAlias {address}\nProxyCommand {sshd}\n")
            file.write(f"Host *\nIdentityFile {at('user')}\n{common}")
        # from the one host to the other, for rsync
        shutil.copy(at("user"), at("between"))
        shutil.chown(at("between"), "postgres")
        os.chmod(at("between"), 0o600)
        with open(at("config-between"), "w", encoding="utf-8") as file:
            file.write(f"Host *\nIdentityFile {at('between')}\n{common}")
        os.makedirs("/run/sshd", exist_ok=True)
        command = inside(self.namespaces[1], "/usr/sbin/sshd", "-D", "-e", "-f", at("sshd"), "-o", f"PidFile={at('pid')}",
                         "-o", f"ListenAddress={ADDRESSES[1]}")
        with open(at("log"), "wb") as log:
            daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, start_new_session=True)
        self.children.append(daemon.pid)

    def run(self, command):
        config = os.path.join(self.scratch, "config")
        environment = os.environ | {
            "PRIMARY": f"postgres@{ADDRESSES[0]}",
            "STANDBY": f"postgres@{ADDRESSES[1]}",
            "BENCH_HOSTS_SSH": f"ssh -F {config}",
            "BENCH_HOSTS_SSH_BETWEEN": f"ssh -F {config}-between",
        }
        child = subprocess.Popen(command, env=environment)
        # the command cleans up, and needs the hosts for that
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                pass  # the command has got it as well

    def check(self):
        """What the link itself does: latency, and one and four plain TCP connections."""
        trips = sorted(self.round_trips(50))
        print(f"round trip: {trips[0]:.2f} ms, median {trips[len(trips) // 2]:.2f}, most {trips[-1]:.2f}", flush=True)
        for streams in (1, 4):
            print(f"{streams} TCP streams: {self.flood(streams, 8):.1f} Mbit/s of payload in the last 4 of 8 s", flush=True)

    def round_trips(self, count):
        answerer, asker = (self.socket_in(host, socket.SOCK_DGRAM) for host in (1, 0))
        answerer.bind((ADDRESSES[1], 0))
        asker.connect(answerer.getsockname())
        for _ in range(count):
            began = time.monotonic()
            asker.send(b"?")
            answerer.sendto(*answerer.recvfrom(1))
            asker.recv(1)
            yield (time.monotonic() - began) * 1000
            time.sleep(0.01)

    def flood(self, streams, seconds):
        listener = self.socket_in(1)
        listener.bind((ADDRESSES[1], 0))
        listener.listen()
        end = time.monotonic() + seconds
        counts = [0] * streams
        threads = []
        for number in range(streams):
            sender = self.socket_in(0)
            sender.connect(listener.getsockname())
            receiver, _ = listener.accept()

            def send(sender=sender):
                with sender:
                    while time.monotonic() < end:
                        sender.sendall(bytes(256 << 10))

            def receive(receiver=receiver, number=number):
                buffer = bytearray(256 << 10)
                with receiver:
                    while count := receiver.recv_into(buffer):
                        if end - seconds / 2 <= time.monotonic() < end:
                            counts[number] += count

            threads += [threading.Thread(target=send), threading.Thread(target=receive)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) * 8 / 1e6 / (seconds / 2)

    def socket_in(self, host, kind=socket.SOCK_STREAM):
        here = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            enter(self.namespaces[host])
            return socket.socket(type=kind)
        finally:
            move(here)
            os.close(here)

    def close(self):
        for child in self.children:
            try:
                os.kill(child, signal.SIGTERM)
                os.waitpid(child, 0)
            except (ProcessLookupError, ChildProcessError):
                pass
        for namespace in self.namespaces:
            subprocess.run(["ip", "netns", "delete", namespace], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(self.scratch, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=1000, help="Mbit/s in each direction, 0: no limit (1000)")
    parser.add_argument("--round-trip", type=float, default=53, help="milliseconds (53)")
    parser.add_argument("--congestion", default="cubic", help="congestion control of TCP on both hosts (cubic)")
    parser.add_argument("--check", action="store_true", help="measure the link itself instead of running a command")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if not options.check and not options.command:
        parser.error("no command")
    if os.geteuid() != 0:
        sys.exit("two-hosts: network namespaces need root")
    for program in ("ip", "tc", "nsenter") + (() if options.check else ("ssh-keygen", "/usr/sbin/sshd")):
        if not shutil.which(program):
            sys.exit(f"two-hosts: {program} is missing: install iproute2, util-linux and openssh-server first")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    hosts = Hosts(options)
    try:
        return hosts.check() if options.check else hosts.run(options.command)
    finally:
        hosts.close()


if __name__ == "__main__":
    sys.exit(main())
