"""What is asked of ipyparallel and mpirun."""

import sys
from pathlib import Path

import pytest
from traitlets.config import Config, PyFileConfigLoader

from mlx_nb.client import launch
from mlx_nb.client.new_profile import write_profile
from mlx_nb.client.profiles import find_profile, list_profiles, load_profile
from mlx_nb.shared.errors import ClusterStartError, ProfileError
from mlx_nb.shared.spec import ClusterSpec


def command(spec: ClusterSpec, tmp_path: Path, profile: Config | None = None) -> list[str]:
    built = launch.build("local-0000", spec, tmp_path, profile or Config())
    config = built.config.MPIEngineSetLauncher
    return [*config.mpi_cmd, *config.mpi_args]


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_mpiexec_is_the_environments_own_by_its_whole_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("MLX_NB_MPIEXEC", raising=False)

    assert launch.find_mpiexec() == str(Path(sys.prefix) / "bin" / "mpiexec")


def test_mpiexec_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "mpiexec"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("MLX_NB_MPIEXEC", str(own))

    assert command(ClusterSpec(ranks=2), tmp_path)[0] == str(own)
    own.chmod(0o644)
    with pytest.raises(ClusterStartError, match="no such program can be run"):
        launch.find_mpiexec()


def test_the_measured_flags_are_there(tmp_path: Path) -> None:
    words = command(ClusterSpec(ranks=2), tmp_path)

    assert after(words, "--with-ft") == "ulfm"
    assert after(words, "--bind-to") == "none"
    assert "--oversubscribe" in words
    assert words[words.index("mpi_yield_when_idle") + 1] == "1"
    assert after(words, "--output") == f"dir={tmp_path}/log/ranks:nocopy,merge"


def test_more_mca_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLX_NB_MCA", "btl self,tcp; btl_base_verbose 1")

    words = command(ClusterSpec(ranks=2), tmp_path)

    assert words[-6:] == ["--mca", "btl", "self,tcp", "--mca", "btl_base_verbose", "1"]


def test_ranks_that_share_a_machine_get_one_blas_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    threads = "OPENBLAS_NUM_THREADS"

    assert launch.engine_environment(ClusterSpec(ranks=2))[threads] == "1"
    assert "OMP_NUM_THREADS" not in launch.engine_environment(ClusterSpec(ranks=2))
    assert threads not in launch.engine_environment(ClusterSpec(ranks=1))
    apart = ClusterSpec(ranks=2, hosts=("10.0.0.1", "10.0.0.2"))
    assert threads not in launch.engine_environment(apart)
    both = ClusterSpec(ranks=4, hosts=("10.0.0.1:2", "10.0.0.2:2"))
    assert launch.engine_environment(both)[threads] == "1"


def test_root_is_allowed_only_for_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.os, "geteuid", lambda: 0)
    assert launch.engine_environment(ClusterSpec(ranks=1))["OMPI_ALLOW_RUN_AS_ROOT"] == "1"
    monkeypatch.setattr(launch.os, "geteuid", lambda: 501)
    assert launch.engine_environment(ClusterSpec(ranks=1)) == {}


def test_defaults_come_from_hosts_then_profile_then_two() -> None:
    assert launch.resolve(None, None, None, 0)[0].ranks == 2
    assert launch.resolve(None, ["a:2", "b"], None, 0)[0].ranks == 3
    assert launch.resolve(None, "a,b", None, 0)[0].hosts == ("a", "b")
    assert launch.resolve(None, None, "minis", 0)[0].ranks == 2
    assert launch.resolve(1, ["a", "b"], None, 0)[0].ranks == 1


def test_the_startup_limit_comes_from_environment_then_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = Config({"Cluster": {"engine_timeout": 90}})
    monkeypatch.delenv("MLX_NB_START_TIMEOUT", raising=False)
    assert launch.start_timeout_s(Config()) == 60
    assert launch.start_timeout_s(profile) == 90
    monkeypatch.setenv("MLX_NB_START_TIMEOUT", "7")
    assert launch.start_timeout_s(profile) == 7


def test_hosts_are_reached_over_their_own_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launch, "find_link", lambda _hosts: ("10.7.0.1", "10.7.0.0/24"))
    spec = ClusterSpec(ranks=3, hosts=("10.7.0.1:2", "10.7.0.2"))

    built = launch.build("hosts-0000", spec, tmp_path, Config())
    words = built.config.MPIEngineSetLauncher.mpi_args

    assert after(words, "--host") == "10.7.0.1:2,10.7.0.2:1"
    assert after(words, "--prefix") == sys.prefix
    assert "--leave-session-attached" in words
    assert after(words, "btl_tcp_if_include") == after(words, "prte_if_include") == "10.7.0.0/24"
    forwarded = {words[i + 1] for i, word in enumerate(words) if word == "-x"}
    assert {"IPP_CONNECTION_INFO", "IPP_CLUSTER_ID", "MLX_NB_CLUSTER", "OPENBLAS_NUM_THREADS"} <= forwarded
    assert (built.controller_ip, built.controller_location) == ("10.7.0.1", "10.7.0.1")


@pytest.mark.parametrize("profile", ["minis", None])
def test_across_hosts_the_controller_encrypts_and_still_signs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, profile: str | None
) -> None:
    monkeypatch.setattr(launch, "find_link", lambda _hosts: ("10.7.0.1", "10.7.0.0/24"))
    spec = ClusterSpec(ranks=2, hosts=() if profile else ("10.7.0.1", "10.7.0.2"), profile=profile)
    built = launch.build("hosts-0000", spec, tmp_path, load_profile(profile))

    launch.sign_and_encrypt(built, tmp_path)

    # On the command line ipyparallel would take the flag as a wish not to sign.
    assert not [word for word in built.config.LocalControllerLauncher.controller_args if "curve" in word]
    file = tmp_path / launch.CONTROLLER_FILE
    config = PyFileConfigLoader(file.name, path=str(tmp_path)).load_config()
    assert config.IPController.enable_curve is True
    assert len(config.Session.key) == 64
    assert file.stat().st_mode & 0o777 == 0o600


def test_on_one_machine_the_controller_does_not_encrypt(tmp_path: Path) -> None:
    built = launch.build("local-0000", ClusterSpec(ranks=2), tmp_path, Config())

    launch.sign_and_encrypt(built, tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_the_users_hosts_replace_the_profiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launch, "find_link", lambda _hosts: ("10.7.0.1", "10.7.0.0/24"))
    spec = ClusterSpec(ranks=2, hosts=("10.7.0.1", "10.7.0.2"), profile="minis")

    words = command(spec, tmp_path, load_profile("minis"))

    assert words.count("--host") == words.count("--prefix") == 1
    assert after(words, "--host") == "10.7.0.1:1,10.7.0.2:1"


def test_a_host_that_no_network_reaches_is_refused() -> None:
    with pytest.raises(ClusterStartError, match="None of this machine's addresses"):
        launch.find_link(("203.0.113.7",))


def test_the_networks_address_and_range_are_found() -> None:
    assert launch.find_link(("127.0.0.9",)) == ("127.0.0.1", "127.0.0.0/8")


def test_the_local_profile_says_what_is_done_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in launch.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    profile = load_profile("local")
    spec = ClusterSpec(ranks=2)

    plain = launch.build("local-0000", spec, tmp_path, Config())
    spelled = launch.build("local-0000", spec, tmp_path, profile)

    for section, key in (
        ("MPIEngineSetLauncher", "mpi_args"),
        ("MPIEngineSetLauncher", "mpi_cmd"),
        ("MPIEngineSetLauncher", "environment"),
        ("LocalControllerLauncher", "controller_args"),
        ("MPIEngineSetLauncher", "engine_args"),
    ):
        assert spelled.config[section][key] == plain.config[section][key]
    assert spelled.controller_ip == plain.controller_ip == "127.0.0.1"


def test_the_minis_profile_keeps_to_the_cable(tmp_path: Path) -> None:
    spec, profile = launch.resolve(None, None, "minis", 0)

    built = launch.build("minis-0000", spec, tmp_path, profile)
    words = built.config.MPIEngineSetLauncher.mpi_args

    assert after(words, "--host") == "192.168.5.1:1,192.168.5.2:1"
    assert after(words, "btl_tcp_if_include") == "192.168.5.0/24"
    assert {"IPP_CONNECTION_INFO", "MLX_NB_CLUSTER"} <= {
        words[i + 1] for i, w in enumerate(words) if w == "-x"
    }
    assert built.controller_ip == "192.168.5.1"


def test_profiles_are_found_by_name_and_by_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    own = tmp_path / "profile_own"
    own.mkdir()
    (own / "ipcluster_config.py").write_text("c = get_config()\nc.Cluster.n = 5\n")

    assert list(list_profiles()) == ["local", "minis", "minis4", "own"]
    assert find_profile("own") == own
    assert load_profile(str(own)).Cluster.n == 5
    assert sorted(path.name for path in own.iterdir()) == ["ipcluster_config.py"]  # a template stays clean


def test_a_broken_profile_says_which_file(tmp_path: Path) -> None:
    (tmp_path / "ipcluster_config.py").write_text("c = get_config()\n1 / 0\n")

    with pytest.raises(ProfileError, match="cannot be read: ZeroDivisionError") as error:
        load_profile(str(tmp_path))
    assert str(tmp_path / "ipcluster_config.py") in error.value.fix


def test_a_new_profile_says_what_the_one_for_minis_says_about_other_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))

    folder = write_profile("lab", ["10.7.0.1:2", "10.7.0.3"], environment="/opt/it's\\mine")
    spec, profile = launch.resolve(None, None, "lab", 0)
    words = command(spec, tmp_path, profile)

    assert folder == tmp_path / "profile_lab"
    assert spec.ranks == 3
    assert after(words, "--host") == "10.7.0.1:2,10.7.0.3:1"
    assert after(words, "btl_tcp_if_include") == "10.7.0.0/24"
    assert words[0] == "/opt/it's\\mine/bin/mpiexec"
    assert profile.Cluster.controller_ip == "10.7.0.1"
    with pytest.raises(ProfileError, match="There is a profile 'lab' already"):
        write_profile("lab", ["10.7.0.1"])


@pytest.mark.parametrize(
    ("name", "hosts", "words"),
    [
        ("../up", ["10.7.0.1"], "cannot be a profile's name"),
        ("lab", [], "needs to know its hosts"),
        ("lab", ["10.7.0.1:0"], "is not another host"),
        ("lab", ["10.7.0.1", "10.7.0.1"], "is not another host"),
        ("lab", ["mini1", "mini2"], "which network joins them"),
        ("lab", ["10.7.0.1", "10.8.0.1"], "which network joins them"),
    ],
)
def test_what_makes_no_profile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hosts: list[str], words: str
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))

    with pytest.raises(ProfileError, match=words):
        write_profile(name, hosts)
    assert list(tmp_path.iterdir()) == []


def test_four_minis_are_two_minis_with_two_more(tmp_path: Path) -> None:
    spec, profile = launch.resolve(None, None, "minis4", 0)
    words = command(spec, tmp_path, profile)

    assert spec.ranks == 4
    assert after(words, "--host") == ",".join(f"192.168.5.{number}:1" for number in range(1, 5))
    assert after(words, "btl_tcp_if_include") == "192.168.5.0/24"
    assert profile.Cluster.controller_ip == "192.168.5.1"
