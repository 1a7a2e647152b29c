"""Linux container primitives for Python: namespaces, cgroups, overlays, mounts and processes that compose.

>>> import containerkit as ck
>>> ck.run(["echo", "hello from a sandbox"]).stdout
'hello from a sandbox\\n'
"""

# Type checkers take this name for true. Importing it from typing would cost more than all the rest of this module.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import aio as aio
    from .bind import Bind as Bind
    from .bind import File as File
    from .cgroup.cgroup import Cgroup as Cgroup
    from .checkup import doctor as doctor
    from .completed import Completed as Completed
    from .completed import Outcome as Outcome
    from .completed import Usage as Usage
    from .containers.container import Container as Container
    from .containers.spec import ContainerSpec as ContainerSpec
    from .containers.spec import Health as Health
    from .containers.spec import Restart as Restart
    from .device import Device as Device
    from .errors import AuthenticationFailed as AuthenticationFailed
    from .errors import BadAddress as BadAddress
    from .errors import Busy as Busy
    from .errors import CallGone as CallGone
    from .errors import CgroupUnavailable as CgroupUnavailable
    from .errors import ClosedHandle as ClosedHandle
    from .errors import ContainerkitError as ContainerkitError
    from .errors import ContainerNotFound as ContainerNotFound
    from .errors import ContentMismatch as ContentMismatch
    from .errors import Exists as Exists
    from .errors import ImageNotFound as ImageNotFound
    from .errors import InUse as InUse
    from .errors import InvalidLayer as InvalidLayer
    from .errors import InvalidValue as InvalidValue
    from .errors import MonitorLost as MonitorLost
    from .errors import NameTaken as NameTaken
    from .errors import NotFound as NotFound
    from .errors import NotPermitted as NotPermitted
    from .errors import ProcessFailed as ProcessFailed
    from .errors import ProgramNotExecutable as ProgramNotExecutable
    from .errors import ProgramNotFound as ProgramNotFound
    from .errors import RegistryError as RegistryError
    from .errors import SpawnError as SpawnError
    from .errors import StatusLost as StatusLost
    from .errors import StoreError as StoreError
    from .errors import SyscallError as SyscallError
    from .errors import TimeoutExpired as TimeoutExpired
    from .errors import TreeProcessLost as TreeProcessLost
    from .errors import Unsupported as Unsupported
    from .errors import VolumeNotFound as VolumeNotFound
    from .errors import WrongState as WrongState
    from .idmap import IdMap as IdMap
    from .idmap import IdRange as IdRange
    from .images.config import ImageConfig as ImageConfig
    from .images.image import Image as Image
    from .images.progress import Progress as Progress
    from .images.reference import Reference as Reference
    from .images.registry import Credentials as Credentials
    from .images.registry import Registry as Registry
    from .layers.diff import Change as Change
    from .layers.limits import LayerLimits as LayerLimits
    from .layers.pack import Packed as Packed
    from .limits import Limits as Limits
    from .mounts import Dev as Dev
    from .mounts import Proc as Proc
    from .mounts import Sysfs as Sysfs
    from .mounts import Tmpfs as Tmpfs
    from .mounttree import MountTree as MountTree
    from .namespace import Namespace as Namespace
    from .namespace import list_namespaces as list_namespaces
    from .namespaces import Namespaces as Namespaces
    from .overlayfs import OverlayFS as OverlayFS
    from .process import DEVNULL as DEVNULL
    from .process import PIPE as PIPE
    from .process import STDOUT as STDOUT
    from .process import Process as Process
    from .rootfs import HOST as HOST
    from .sandbox import Sandbox as Sandbox
    from .sandbox import explain as explain
    from .sandbox import run as run
    from .security import Capabilities as Capabilities
    from .security import Security as Security
    from .security.landlock import Landlock as Landlock
    from .security.seccomp import Seccomp as Seccomp
    from .security.supervisor import Answer as Answer
    from .security.supervisor import Supervisor as Supervisor
    from .store import Store as Store
    from .timeline import Event as Event
    from .timeline import Timeline as Timeline
    from .volumes.volume import Volume as Volume
    from .volumes.volume_mounts import VolumeMount as VolumeMount

__version__ = "0.1.0"

_MODULES = {
    "cgroup.cgroup": ("Cgroup",),
    "completed": ("Completed", "Outcome", "Usage"),
    "checkup": ("doctor",),
    "containers.container": ("Container",),
    "containers.spec": ("ContainerSpec", "Health", "Restart"),
    "device": ("Device",),
    "errors": (
        "AuthenticationFailed", "BadAddress", "Busy", "CallGone", "CgroupUnavailable", "ClosedHandle",
        "ContainerNotFound", "ContainerkitError", "ContentMismatch", "Exists", "ImageNotFound", "InUse",
        "InvalidLayer", "InvalidValue", "MonitorLost", "NameTaken", "NotFound", "NotPermitted", "ProcessFailed",
        "ProgramNotExecutable", "ProgramNotFound", "RegistryError", "SpawnError", "StatusLost", "StoreError",
        "SyscallError", "TimeoutExpired", "TreeProcessLost", "Unsupported", "VolumeNotFound", "WrongState",
    ),
    "idmap": ("IdMap", "IdRange"),
    "images.image": ("Image",),
    "images.reference": ("Reference",),
    "images.config": ("ImageConfig",),
    "images.progress": ("Progress",),
    "images.registry": ("Credentials", "Registry"),
    "layers.limits": ("LayerLimits",),
    "layers.diff": ("Change",),
    "layers.pack": ("Packed",),
    "limits": ("Limits",),
    "bind": ("Bind", "File"),
    "mounts": ("Dev", "Proc", "Sysfs", "Tmpfs"),
    "mounttree": ("MountTree",),
    "namespace": ("Namespace", "list_namespaces"),
    "namespaces": ("Namespaces",),
    "overlayfs": ("OverlayFS",),
    "process": ("DEVNULL", "PIPE", "STDOUT", "Process"),
    "rootfs": ("HOST",),
    "sandbox": ("Sandbox", "explain", "run"),
    "security": ("Capabilities", "Security"),
    "security.landlock": ("Landlock",),
    "security.seccomp": ("Seccomp",),
    "security.supervisor": ("Answer", "Supervisor"),
    "store": ("Store",),
    "timeline": ("Event", "Timeline"),
    "volumes.volume": ("Volume",),
    "volumes.volume_mounts": ("VolumeMount",),
}  # fmt: skip
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", "aio", *sorted(_HOME)]


def __getattr__(name: str) -> object:
    # PEP 562: `import containerkit` runs nothing; a name loads its module when it is first used.
    from importlib import import_module

    if name == "aio":
        return import_module(".aio", __name__)
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
