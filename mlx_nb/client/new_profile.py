"""Writing a profile for several hosts: the one for two minis with other names, addresses and paths."""

import ipaddress
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_nb.client.profiles import CONFIG_FILE, list_profiles, profile_roots
from mlx_nb.shared.errors import ProfileError

MODEL = "minis"
"""The profile that is the model of all others for several hosts."""

_NEW = "Type: %mlx_cluster profiles new"


def write_profile(
    name: str, hosts: Sequence[str], network: str | None = None, environment: str | None = None
) -> Path:
    """Write a profile into the user's IPython directory; every setting can be changed in its file afterwards.

    Args:
        name: What ``--profile`` will call it.
        hosts: ``address`` or ``address:ranks``; the notebook runs on the first.
        network: The hosts' network or interface; None for the 256 addresses around theirs.
        environment: The virtual environment, at the same path on every host; None for this one.

    Raises:
        ProfileError: The name is taken or cannot be one, or the hosts are not in one network.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ProfileError(f"'{name}' cannot be a profile's name.", f"{_NEW} my_minis --hosts a,b")
    if name in (known := list_profiles()):
        raise ProfileError(
            f"There is a profile '{name}' already, in {known[name]}.",
            f"Change {known[name] / CONFIG_FILE}, or choose another name.",
        )
    ranks = {}
    for host in hosts:
        address, _, count = host.strip().partition(":")
        if not address or address in ranks or not (count or "1").isdecimal() or int(count or "1") < 1:
            raise ProfileError(
                f"'{host}' is not another host, nor host:ranks.", f"{_NEW} {name} --hosts 10.0.0.1,10.0.0.2:2"
            )
        ranks[address] = int(count or "1")
    if not ranks:
        raise ProfileError(
            "A profile needs to know its hosts.", f"{_NEW} {name} --hosts 192.168.5.1,192.168.5.2"
        )
    folder = profile_roots()[0] / f"profile_{name}"
    text = _rewritten(
        (list_profiles()[MODEL] / CONFIG_FILE).read_text(),
        name,
        folder,
        ranks,
        network or _network(list(ranks), name),
        environment or sys.prefix,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(text)
    return folder


def _rewritten(
    text: str, name: str, folder: Path, ranks: dict[str, int], network: str, environment: str
) -> str:
    """The text of the profile for two minis with another name, other hosts and other paths."""
    addresses = list(ranks)
    total = sum(ranks.values())
    head = f"{total} ranks on {len(ranks)} hosts{' joined by cables' if network.startswith('192.168.5.') else ''}."
    for old, new in (
        (r"Two Mac minis joined by a Thunderbolt cable: one rank on each\.", head),
        (
            r"^ +%mlx_cluster start .*$",
            f"    %mlx_cluster start --profile {name}    in a notebook on the first host",
        ),
        (r"^ +ipcluster start .*$", f"    ipcluster start --profile-dir {folder}    in a terminal there"),
        (r"on both minis:", "on every host:"),
        (r"`ssh-copy-id USER@[\d.]+`", f"`ssh-copy-id USER@{addresses[-1]}`, and so to every other"),
        (r"the other mini finds", "the others find"),
        (r"where the other mini's engine can", "where the others' engines can"),
        (r"the ranks of both minis", "the ranks of all hosts"),
        (r"^HOSTS = \{.*?\}", f"HOSTS = {json.dumps(ranks)}"),
        (r'^NETWORK = ".*?"', f"NETWORK = {json.dumps(network)}"),
        (r'^ENVIRONMENT = ".*?"', f"ENVIRONMENT = {json.dumps(environment)}"),
    ):
        text, count = re.subn(old, new.replace("\\", r"\\"), text, flags=re.MULTILINE)
        assert count, f"the profile {MODEL} no longer says {old}"
    return text


def _network(addresses: list[str], name: str) -> str:
    try:
        networks = {ipaddress.ip_network(f"{address}/24", strict=False) for address in addresses}
    except ValueError:
        networks = set()
    if len(networks) != 1:
        raise ProfileError(
            f"{', '.join(addresses)} do not tell which network joins them.",
            f"{_NEW} {name} --hosts {','.join(addresses)} --network 192.168.5.0/24 (or an interface: bridge0)",
        )
    return str(networks.pop())
