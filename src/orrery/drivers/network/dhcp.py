# SPDX-License-Identifier: AGPL-3.0-or-later
"""DHCP and DNS for the guests of our own bridge: dnsmasq, jailed, as its own user, with the capabilities it needs.

It outlives us as the guests do. Which process it is follows from its arguments alone, which name a configuration file
after the root and the file's contents: no record of it can be lost or stale (dnsmasq(8)).
"""

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path
from typing import Final

from orrery.errors import Failure
from orrery.system import files, process
from orrery.system.jail import Bind, Capability, Jail, account, unlimited_core_less
from orrery.system.paths import Paths
from orrery.system.process import ProcessId

_PROGRAM: Final = "dnsmasq"
_USER: Final = "dnsmasq"  # the jail knows it by this name even where the host lacks it
_INSIDE: Final = "/state"
_LEASES: Final = "leases"
_RESOLV: Final = "resolv.conf"
_HOST_RESOLV: Final = Path("/etc/resolv.conf")
_START_SECONDS: Final = 0.3  # a bad configuration or a taken port shows within


@dataclass(frozen=True, slots=True)
class Lease:
    """An address that a guest has; `expires` in seconds since 1970, `name` what the guest calls itself."""

    mac: str
    address: IPv4Address
    expires: int
    name: str | None


def configuration(bridge: str, subnet: IPv4Network) -> str:
    """The service's configuration. The first addresses stay free for what is set up by hand."""
    first, last = subnet[16], subnet[-2]
    return f"""# Written by Orrery; changes are lost.
user={_USER}
group={_USER}
keep-in-foreground
log-facility=-
pid-file=
interface={bridge}
except-interface=lo
bind-interfaces
no-hosts
resolv-file={_INSIDE}/{_RESOLV}
domain-needed
bogus-priv
cache-size=1000
dhcp-range={first},{last},{subnet.netmask},1h
dhcp-option=option:router,{subnet[1]}
dhcp-option=option:dns-server,{subnet[1]}
dhcp-leasefile={_INSIDE}/{_LEASES}
dhcp-lease-max={int(last) - int(first) + 1}
dhcp-authoritative
no-ping
quiet-dhcp
# A guest that calls itself wpad would become every browser's proxy.
dhcp-name-match=set:wpad,wpad
dhcp-ignore-names=tag:wpad
"""


def parse_leases(text: str) -> list[Lease]:
    """Read the lease file: a line of expiry, MAC, address, name or `*`, client id. Broken lines are left out."""
    leases = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 4 or not fields[0].isdigit():
            continue
        with suppress(ValueError):
            address = ip_address(fields[2])
            if isinstance(address, IPv4Address):
                name = None if fields[3] == "*" else fields[3]
                leases.append(Lease(fields[1].upper(), address, int(fields[0]), name))
    return leases


def host_name_servers() -> list[IPv4Address]:
    """IPv4 name servers of the host (resolv.conf(5))."""
    try:
        lines = _HOST_RESOLV.read_text().splitlines()
    except OSError:
        return []
    servers = []
    for fields in (line.split() for line in lines):
        if fields[:1] == ["nameserver"] and len(fields) > 1:
            with suppress(ValueError):
                servers.append(IPv4Address(fields[1]))
    return servers


class DhcpService:
    """The service of one root."""

    def __init__(self, paths: Paths) -> None:
        self._folder = paths.network_lib
        self._log = paths.dnsmasq_log
        self._mark = f"orrery-{paths.root_digest[:16]}"

    # --- life

    def start(self, bridge: str, subnet: IPv4Network) -> None:
        """Run with this configuration: as it runs already, or anew. Raises Failure with the reason from its log."""
        text = configuration(bridge, subnet)
        name = self._configuration_name(text)
        self.refresh()
        running = self.processes()
        if len(running) == 1 and process.search(self._argument(name)) == running:
            return
        self.stop()
        self._write(name, text)
        self._run(name)

    def _write(self, name: str, text: str) -> None:
        user = account(_USER)
        for old in self._folder.glob("*.conf"):
            if old.name != _RESOLV:
                old.unlink(missing_ok=True)
        files.write_atomic(self._folder / name, text.encode(), 0o644)
        leases = os.open(self._folder / _LEASES, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.fchown(leases, user.uid, user.gid)
        finally:
            os.close(leases)

    def _run(self, name: str) -> None:
        user = account(_USER)
        jail = Jail(
            user.uid,
            user.gid,
            user=_USER,
            capabilities=frozenset({Capability.NET_ADMIN, Capability.NET_BIND_SERVICE}),
            binds=(Bind(self._folder, _INSIDE, writable=True),),
            tmp_size=0,
            limits={**unlimited_core_less()},
        )
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            begin = os.fstat(log).st_size
            started = process.spawn([_PROGRAM, self._argument(name)], name=_PROGRAM, jail=jail, stderr=log)
        finally:
            os.close(log)
        if process.wait(started, _START_SECONDS):
            process.reap(started)
            with self._log.open("rb") as handle:
                handle.seek(begin)
                lines = handle.read().decode("utf-8", "replace").strip().splitlines()
            raise Failure(f"DHCP service failed to start: {lines[-1] if lines else 'it ended without a word'}")

    def stop(self) -> None:
        """End it (idempotent). Raises Failure when it does not go."""
        for running in self.processes():
            process.terminate(running)

    def processes(self) -> list[ProcessId]:
        """The service's process, whatever its configuration is; more than one after an accident."""
        found = (process.search(self._argument(path.name)) for path in self._folder.glob(f"{self._mark}-*.conf"))
        return sorted(running for some in found for running in some)

    def _configuration_name(self, text: str) -> str:
        return f"{self._mark}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.conf"

    def _argument(self, name: str) -> str:
        return f"--conf-file={_INSIDE}/{name}"

    # --- what it reads and writes

    def refresh(self) -> None:
        """Bring the host's name servers into the jail; the service notices by itself."""
        try:
            wanted = _HOST_RESOLV.read_bytes()
        except OSError:
            wanted = b""
        target = self._folder / _RESOLV
        if not target.exists() or target.read_bytes() != wanted:
            files.write_atomic(target, wanted, 0o644)

    def leases(self) -> list[Lease]:
        """Addresses given to guests."""
        try:
            return parse_leases((self._folder / _LEASES).read_text())
        except FileNotFoundError:
            return []
