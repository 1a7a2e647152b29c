"""One emulated machine, from its start to its end."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kernel import Kernel

HERE = Path(__file__).parent

# Slow is the emulated processor, so it is spared what guards against faults that it has not.
BOOT = "console=ttyS0 panic=-1 mitigations=off quiet fstab=no"

UNIT = """
[Unit]
Description=containerkit's tests
Wants=basic.target dbus.socket systemd-logind.service
After=basic.target dbus.socket systemd-logind.service

[Service]
Type=oneshot
ExecStart=/bin/sh /run/vm/guest.sh
StandardOutput=file:/dev/hvc0
StandardError=inherit
TimeoutStartSec=infinity
"""


class MachineError(Exception):
    """The machine did not come to the end of its work."""


@dataclass(frozen=True)
class Machine:
    kernel: Kernel
    directory: Path  # ours alone
    memory: str
    cpus: int

    def run(self, script: str, *, systemd: bool, timeout: float) -> int:
        """Boot, run a shell script, turn off; its exit status. Its output goes to ours."""
        shared = self._shared(script, systemd=systemd)
        try:
            subprocess.run(self._qemu(shared), stdin=subprocess.DEVNULL, timeout=timeout, check=True)
        except subprocess.TimeoutExpired as error:
            raise MachineError(f"not finished after {timeout:.0f} s: --timeout\n{self._console()}") from error
        except subprocess.CalledProcessError as error:
            raise MachineError(f"qemu: exit status {error.returncode}") from error
        status = shared / "status"
        if not status.exists():
            raise MachineError(f"the machine went off before its work was done\n{self._console()}")
        return int(status.read_text())

    def _shared(self, script: str, *, systemd: bool) -> Path:
        """The folder that both sides see: in the machine, /run/vm."""
        shared = self.directory / "shared"
        shared.mkdir()
        shutil.copy(HERE / "guest.sh", shared)
        (shared / "command").write_text(script)
        (shared / "ck-tests.service").write_text(UNIT)
        first = "/lib/systemd/systemd --unit=ck-tests.service" if systemd else "/bin/sh /run/vm/guest.sh"
        (shared / "init").write_text(first)
        return shared

    def _disk(self) -> Path:
        disk = self.directory / "disk"
        with disk.open("wb") as file:
            file.truncate(8 << 30)  # a file of holes: what the machine writes is what it takes
        subprocess.run(["/sbin/mkfs.ext4", "-q", "-F", "-O", "^has_journal", disk], check=True)
        return disk

    def _qemu(self, shared: Path) -> list[str]:
        return [
            "qemu-system-x86_64",
            *("-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", self.memory, "-smp", str(self.cpus)),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-kernel", str(self.kernel.image), "-append", BOOT),
            *("-initrd", str(self.kernel.initramfs(self.directory))),
            *("-drive", f"file={self._disk()},format=raw,if=virtio,cache=unsafe"),
            # Numbers of devices are not those of the host, so that a file of another file system is another file.
            *("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"),
            *("-virtfs", f"local,path={shared},mount_tag=shared,security_model=none"),
            *("-serial", f"file:{self.directory}/console"),
            *("-device", "virtio-serial-pci", "-chardev", "stdio,id=output,signal=off"),
            *("-device", "virtconsole,chardev=output"),
        ]

    def _console(self) -> str:
        console = self.directory / "console"
        return console.read_text(errors="replace")[-2000:] if console.exists() else ""
