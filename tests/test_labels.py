"""AppArmor labels, where the kernel has them: `make test-vm ARGS=tests/test_labels.py` boots one that has."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from patience import PATIENCE

import containerkit as ck
from containerkit import PIPE, Process, Sandbox, Security, SpawnError

PROFILE = "ck-test-profile"
POLICY = f"""
abi <abi/3.0>,
profile {PROFILE} flags=(attach_disconnected, mediate_deleted) {{
  file,
  signal,
  unix,
  deny /**/forbidden rw,
}}
"""

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A profile that is loaded in the kernel."""
    parser = shutil.which("apparmor_parser", path="/usr/sbin:/sbin")
    if not os.path.exists("/proc/self/attr/apparmor/exec"):
        pytest.skip("AppArmor is not active in this kernel")
    if parser is None:
        pytest.skip("apparmor_parser is missing: apt-get install apparmor")
    mounted = not os.path.exists("/sys/kernel/security/apparmor")
    if mounted:
        subprocess.run(["mount", "-t", "securityfs", "securityfs", "/sys/kernel/security"], check=True)
    policy = tmp_path_factory.mktemp("apparmor") / "policy"
    policy.write_text(POLICY)
    try:
        subprocess.run([parser, "--skip-cache", "--replace", policy], check=True)
        try:
            yield PROFILE
        finally:
            subprocess.run([parser, "--remove", policy], check=True)
    finally:
        if mounted:
            subprocess.run(["umount", "/sys/kernel/security"], check=True)


def confined(profile: str) -> Security:
    return attrs.evolve(Security.strict(), apparmor=profile)


def test_a_program_runs_under_its_profile(profile: str) -> None:
    script = "cat /proc/self/attr/current; echo open > /tmp/allowed; echo shut > /tmp/forbidden; ls /tmp"
    done = ck.run(["sh", "-c", script], security=confined(profile))
    assert done.stdout.split() == [profile, "(enforce)", "allowed"]
    assert "Permission denied" in done.stderr
    control = ck.run(["sh", "-c", script])
    assert profile not in control.stdout
    assert "forbidden" in control.stdout


def test_every_program_of_a_sandbox_does(profile: str) -> None:
    with Sandbox(security=confined(profile)) as box:
        for _ in range(2):
            assert profile in box.run(["cat", "/proc/self/attr/current"]).stdout


def test_a_process_of_the_hosts_own_does(profile: str) -> None:
    security = Security(apparmor=profile)
    with Process(["cat", "/proc/self/attr/current"], stdout=PIPE, text=True, security=security) as process:
        assert profile in process.communicate(timeout=60 * PATIENCE)[0]


def test_a_profile_that_is_not_loaded_is_an_error(profile: str) -> None:
    with pytest.raises(SpawnError, match="no such profile or context is loaded"):
        ck.run(["true"], security=confined(f"{profile}-of-nobody"))


def test_a_root_cannot_take_the_label_away(profile: str, busybox_root: Path, tmp_path: Path) -> None:
    """CVE-2019-16884: the label is written through the caller's /proc, whatever the root has there."""
    tmp_path.chmod(0o755)
    (tmp_path / "proc").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "false").write_text("nothing\n")
    mounts = (ck.Bind(busybox_root / "bin", "/bin"), ck.Tmpfs("/proc"), ck.Proc("/real"))
    options = {"namespaces": ck.Namespaces.all(), "root": tmp_path, "mounts": mounts, "security": confined(profile)}
    with Process(["cat", "/real/self/attr/current"], stdout=PIPE, text=True, **options) as process:
        assert profile in process.communicate(timeout=60 * PATIENCE)[0]
