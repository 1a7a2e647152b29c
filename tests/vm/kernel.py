"""A kernel from Debian's archive, and the initial file system that gets a machine with it to the host's files."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# What the machine is made of, and what tests expect a kernel to have: it finds no modprobe later.
MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_console", "9pnet_virtio", "9p", "ext4", "crc32c_generic", "overlay"),
    *("fuse", "loop", "squashfs", "erofs", "veth", "bridge", "dummy"),
)

COMMANDS = ("sh", "mount", "umount", "insmod", "cat", "cp", "mkdir", "chmod", "poweroff", "switch_root")


@dataclass(frozen=True)
class Kernel:
    image: Path
    modules: Path

    @classmethod
    def fetch(cls, package: str, cache: Path) -> Kernel:
        """Debian's package, or the one that this package stands for, unpacked below ``cache``; nothing is installed."""
        name = _real_package(package)
        place = cache / name
        if not place.exists():
            downloads = cache / "downloads"
            downloads.mkdir(exist_ok=True)
            subprocess.run(["apt-get", "download", "-q", name], cwd=downloads, check=True)
            (archive,) = downloads.glob(f"{name}_*.deb")
            unpacked = cache / f"{name}.part"
            subprocess.run(["dpkg-deb", "--extract", archive, unpacked], check=True)
            unpacked.rename(place)
            archive.unlink()
        (image,) = (place / "boot").glob("vmlinuz-*")
        (modules,) = next(p for p in (place / "lib/modules", place / "usr/lib/modules") if p.exists()).iterdir()
        return cls(image, modules)

    def initramfs(self, directory: Path) -> Path:
        """An archive of busybox, the modules in their order and ``initramfs.sh``, made in ``directory``."""
        tree = directory / "initramfs"
        for name in ("bin", "modules", "proc", "sys", "dev", "host", "disk", "root"):
            (tree / name).mkdir(parents=True)
        busybox = shutil.which("busybox")
        assert busybox, "apt-get install busybox-static"
        shutil.copy(busybox, tree / "bin/busybox")
        for name in COMMANDS:
            (tree / "bin" / name).symlink_to("busybox")
        ordered = list(dict.fromkeys(path for name in MODULES for path in self._with_needed(name)))
        for path in ordered:
            shutil.copy(path, tree / "modules")
        (tree / "modules/order").write_text("\n".join(path.name for path in ordered))
        shutil.copy(Path(__file__).with_name("initramfs.sh"), tree / "init")
        (tree / "init").chmod(0o755)
        archive = directory / "initramfs.cpio"
        with archive.open("wb") as output:
            names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
            argv = [busybox, "cpio", "--create", "--format=newc", "--quiet"]
            subprocess.run(argv, cwd=tree, input=names.encode(), stdout=output, check=True, stderr=subprocess.DEVNULL)
        return archive

    def _with_needed(self, name: str) -> Iterator[Path]:
        """The files of a module, those that it needs first; none for what is built in."""
        found = [path for path in self.modules.rglob("*.ko") if path.stem.replace("-", "_") == name.replace("-", "_")]
        for path in found:
            depends = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
            for needed in depends[1].decode().split(",") if depends else []:
                if needed:
                    yield from self._with_needed(needed)
            yield path


def _real_package(package: str) -> str:
    argv = ["apt-cache", "show", "--no-all-versions", package]
    shown = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    depends = re.search(r"^Depends: .*?(linux-image-[\w.+-]*\d[\w.+-]*)", shown, re.MULTILINE)
    return depends[1] if depends else package
