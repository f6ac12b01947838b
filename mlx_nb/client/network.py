"""Which interface an address belongs to, and what it is: a cable, Wi-Fi, or only this machine."""

import ipaddress
import re
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

SYSTEM_CLASS = Path("/sys/class/net")
ETHERNET, WIFI, THUNDERBOLT, LOOPBACK, VIRTUAL = "Ethernet", "Wi-Fi", "Thunderbolt", "loopback", "virtual"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A network interface with one of its addresses.

    Attributes:
        name: The system's name: ``en5``, ``bridge0``, ``eth0``.
        address: Its IPv4 address.
        network: The address's network: ``192.168.5.0/24``.
        kind: ``Ethernet``, ``Wi-Fi``, ``Thunderbolt``, ``loopback`` or ``virtual``.
        speed_mbit: What the link should carry, in Mbit/s; 0 if the system does not tell.
    """

    name: str
    address: str
    network: str
    kind: str
    speed_mbit: int = 0

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def interfaces() -> list[Interface]:
    """Every interface of this machine that is up and has an IPv4 address."""
    ports = _mac_ports() if sys.platform == "darwin" else {}
    states = psutil.net_if_stats()
    found = []
    for name, addresses in psutil.net_if_addrs().items():
        state = states.get(name)
        for one in addresses:
            if one.family == socket.AF_INET and one.netmask and (state is None or state.isup):
                network = ipaddress.ip_network(f"{one.address}/{one.netmask}", strict=False)
                kind = mac_kind(name, ports) if ports else _linux_kind(name)
                speed = state.speed if state else 0
                if kind == THUNDERBOLT and not speed:
                    speed = 10_000  # what IP over Thunderbolt is sold as; the bridge itself tells nothing
                found.append(
                    Interface(
                        name=name,
                        address=one.address,
                        network=str(network),
                        kind=kind,
                        speed_mbit=0 if kind in (LOOPBACK, VIRTUAL) else speed,
                    )
                )
    return found


def _linux_kind(name: str) -> str:
    if name == "lo":
        return LOOPBACK
    folder = SYSTEM_CLASS / name
    if (folder / "wireless").exists() or (folder / "phy80211").exists():
        return WIFI
    if name.startswith("thunderbolt"):
        return THUNDERBOLT
    return ETHERNET if (folder / "device").exists() else VIRTUAL


def _mac_ports() -> dict[str, str]:
    done = subprocess.run(
        ["/usr/sbin/networksetup", "-listallhardwareports"], capture_output=True, text=True, check=False
    )
    return parse_ports(done.stdout)


def parse_ports(text: str) -> dict[str, str]:
    """Interface to hardware port, out of what ``networksetup -listallhardwareports`` prints.

    >>> parse_ports("Hardware Port: Wi-Fi\\nDevice: en0\\nEthernet Address: a4:83:e7:00:00:01\\n")
    {'en0': 'Wi-Fi'}
    """
    return {device: port for port, device in re.findall(r"Hardware Port: (.+)\nDevice: (\S+)", text)}


def mac_kind(name: str, ports: dict[str, str]) -> str:
    """What an interface of macOS is, by its hardware port."""
    port = ports.get(name, "")
    if name.startswith("lo"):
        return LOOPBACK
    if "Wi-Fi" in port or "AirPort" in port:
        return WIFI
    if "Thunderbolt" in port:
        return THUNDERBOLT
    return ETHERNET if port else VIRTUAL
