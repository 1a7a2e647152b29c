"""A container as ``docker container inspect`` says it: the same names for the same things, null for what there is not.

What is ours alone stands beside them, under ``Containerkit``. Programs in Python have the same, typed, as
``container.spec`` and ``container.status``.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from .._image_errors import ImageNotFound
from ..bind import Bind
from ..build import Mount
from ..filesystems import MASKED, READ_ONLY
from ..mounts import Tmpfs
from .health import HealthResult, health_log
from .life import status_of
from .spec import ContainerSpec, Health, signal_name
from .state import Status, is_alive, read_record
from .value_json import dump

if TYPE_CHECKING:
    from ..images.config import ImageConfig
    from ..limits import Limits
    from .container import Container

__all__ = ["inspect"]

_NEVER = "0001-01-01T00:00:00Z"
_NANOSECONDS = 10**9
_SHARES = 1024 / 100  # of a weight of cgroup v2, as our control groups count them


def inspect(container: Container, *, size: bool = False) -> dict[str, Any]:
    """See Container.inspect(). Raises ContainerNotFound."""
    row = container.reload().row()
    spec, status = container.spec, status_of(container, row)
    config = _config_of(container)
    path = f"{container.home.path}/containers/{container.id}"
    sizes = {"SizeRw": (taken := container.size()).rw, "SizeRootFs": taken.root} if size else {}
    return {
        "Id": container.id,
        "Created": _time(container.created),
        "Path": spec.args[0],
        "Args": list(spec.args[1:]),
        "State": _state(container, spec, status),
        "Image": container.image_id,
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        "LogPath": f"{path}/log",
        "Name": f"/{row.name}",
        "RestartCount": status.restarts,
        "Driver": "overlay",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": spec.security.selinux or "",
        "AppArmorProfile": spec.security.apparmor or "",
        "ExecIDs": None,
        "HostConfig": _host_config(spec),
        **sizes,
        "GraphDriver": {"Name": "overlay", "Data": {"UpperDir": f"{path}/rw/upper", "WorkDir": f"{path}/rw/work"}},
        "Mounts": [_mount(container, mount) for mount in spec.mounts],
        "Config": _config(container, spec, config),
        "NetworkSettings": _network(spec),
        "Containerkit": {"Spec": dump(spec)},
    }


# ---- State -----------------------------------------------------------------------------------------------------------


def _state(container: Container, spec: ContainerSpec, status: Status) -> dict[str, Any]:
    state = {
        "Status": status.status,
        "Running": status.running or status.status == "restarting",  # as docker has it
        "Paused": status.status == "paused",
        "Restarting": status.status == "restarting",
        "OOMKilled": status.oom_killed,
        "Dead": status.status == "dead",
        "Pid": status.pid,
        "ExitCode": 0 if status.exit_code is None or status.running else status.exit_code,
        "Error": status.error or "",
        "StartedAt": _time(status.started),
        "FinishedAt": _time(status.finished),
    }
    if spec.health is not None:
        state["Health"] = _health(container, status)
    return state


def _health(container: Container, status: Status) -> dict[str, Any]:
    directory = container.directory.fileno()
    record = read_record(directory) if is_alive(directory) else None
    return {
        "Status": status.health or "none",
        "FailingStreak": record.health_streak if record is not None else 0,
        "Log": [_check(result) for result in health_log(container)],
    }


def _check(result: HealthResult) -> dict[str, Any]:
    return {
        "Start": _time(result.start_ns / 1e9),
        "End": _time(result.end_ns / 1e9),
        "ExitCode": -1 if result.exit_code is None else result.exit_code,
        "Output": result.error or result.output,
    }


def _time(seconds: float | None) -> str:
    """RFC 3339; docker's way to say never."""
    if not seconds:
        return _NEVER
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


# ---- HostConfig ------------------------------------------------------------------------------------------------------


def _host_config(spec: ContainerSpec) -> dict[str, Any]:
    security = spec.security
    return {
        "Binds": [_bind_text(mount) for mount in spec.mounts if _kind(mount) in ("bind", "volume")] or None,
        "ContainerIDFile": "",
        "LogConfig": {
            "Type": "local",
            "Config": {"max-size": str(spec.log_max_size), "max-file": str(spec.log_files)},
        },
        "NetworkMode": spec.network,
        "PortBindings": {},
        "RestartPolicy": {"Name": spec.restart.policy, "MaximumRetryCount": spec.restart.retries},
        "AutoRemove": spec.auto_remove,
        "VolumeDriver": "",
        "VolumesFrom": None,
        "CapAdd": None if security.capabilities is None else list(security.capabilities),
        "CapDrop": None if security.capabilities is None else ["ALL"],
        "CgroupnsMode": "private",
        "Dns": list(spec.dns or ()),
        "DnsOptions": [],
        "DnsSearch": [],
        "ExtraHosts": [f"{name}:{address}" for name, address in spec.extra_hosts.items()] or None,
        "GroupAdd": None,
        "IpcMode": "private",
        "Links": None,
        "OomScoreAdj": 0,
        "PidMode": "",
        "Privileged": False,
        "PublishAllPorts": False,
        "ReadonlyRootfs": spec.read_only,
        "SecurityOpt": _security(spec),
        "UTSMode": "",
        "UsernsMode": "private",
        "ShmSize": 64 << 20,
        "Sysctls": dict(security.sysctls) or None,
        "Runtime": "containerkit",
        "Tmpfs": {_target(one): _tmpfs(one) for one in spec.mounts if isinstance(one, Tmpfs)} or None,
        "Init": spec.init,
        "MaskedPaths": [f"/proc/{name}" for name in MASKED],
        "ReadonlyPaths": [f"/proc/{name}" for name in READ_ONLY],
        **_resources(spec.limits),
    }


def _resources(limits: Limits) -> dict[str, Any]:
    memory, swap = limits.memory_max, limits.memory_swap_max
    return {
        "CgroupParent": "",
        "CpuShares": 0 if limits.cpu_weight is None else round(limits.cpu_weight * _SHARES),
        "Memory": memory or 0,
        "MemoryReservation": limits.memory_low or 0,
        "MemorySwap": 0 if memory is None or swap is None else memory + swap,  # docker counts both together
        "MemorySwappiness": None,
        "NanoCpus": 0 if limits.cpu_max is None else round(limits.cpu_max * _NANOSECONDS),
        "CpuPeriod": 0,
        "CpuQuota": 0,
        "CpusetCpus": limits.cpuset_cpus or "",
        "CpusetMems": limits.cpuset_mems or "",
        "BlkioWeight": limits.io_weight or 0,
        "Devices": [],
        "DeviceCgroupRules": None if limits.devices is None else [str(device) for device in limits.devices],
        "OomKillDisable": None,
        "PidsLimit": limits.pids_max,
        "Ulimits": _ulimits(limits),
    }


def _ulimits(limits: Limits) -> list[dict[str, Any]]:
    made = []
    for name, value in limits.rlimits().items():
        soft, hard = value if isinstance(value, tuple) else (value, value)
        made.append({"Name": name, "Soft": soft, "Hard": hard})
    return made


def _security(spec: ContainerSpec) -> list[str]:
    security = spec.security
    said = ["no-new-privileges"] if security.no_new_privs else []
    said += ["seccomp=unconfined"] if security.seccomp is None else []
    said += [f"apparmor={security.apparmor}"] if security.apparmor else []
    return said + ([f"label={security.selinux}"] if security.selinux else [])


# ---- Mounts ----------------------------------------------------------------------------------------------------------


def _kind(mount: Mount) -> str:
    if isinstance(mount, Bind):
        return "bind"
    return "volume" if hasattr(mount, "volume") else type(mount).__name__.lower()


def _target(mount: Mount) -> str:
    return os.fsdecode(mount.target)


def _is_read_only(mount: Mount) -> bool:
    return bool(getattr(mount, "read_only", not isinstance(mount, Tmpfs)))


def _bind_text(mount: Any) -> str:
    source = str(mount.source) if isinstance(mount, Bind) else mount.volume
    options = [word for word, said in (("ro", mount.read_only), ("nocopy", getattr(mount, "nocopy", False))) if said]
    return ":".join([source, _target(mount), *([",".join(options)] if options else [])])


def _tmpfs(mount: Tmpfs) -> str:
    return f"size={mount.size},mode={mount.mode:o}" + (",noexec" if mount.noexec else "")


def _mount(container: Container, mount: Any) -> dict[str, Any]:
    kind = _kind(mount)
    said = {
        "Type": kind,
        "Source": "",
        "Destination": _target(mount),
        "Mode": "ro" if kind in ("bind", "volume") and mount.read_only else "",
        "RW": not _is_read_only(mount),
        "Propagation": "",
    }
    if kind == "bind":
        said |= {"Source": str(mount.source), "Propagation": f"r{mount.propagation}"}
    elif kind == "volume":
        source = f"{container.home.path}/volumes/{mount.volume}/d"
        below = f"/{mount.subpath}" if mount.subpath else ""
        said |= {"Name": mount.volume, "Source": source + below, "Driver": "local"}
    return said


# ---- Config ----------------------------------------------------------------------------------------------------------


def _config_of(container: Container) -> ImageConfig | None:
    try:
        return container.image.config
    except ImageNotFound:  # removed with this container, just now
        return None


def _config(container: Container, spec: ContainerSpec, image: ImageConfig | None) -> dict[str, Any]:
    said = {
        "Hostname": spec.hostname or container.short_id,
        "Domainname": spec.domainname or "",
        "User": spec.user or "",
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "ExposedPorts": {port: {} for port in image.exposed_ports} if image is not None else {},
        "Tty": spec.tty,
        "OpenStdin": spec.stdin_open,
        "StdinOnce": False,
        "Env": [f"{name}={value}" for name, value in spec.env.items() if value is not None],
        "Cmd": list(spec.cmd) or None,
        "Image": _image_name(container),
        "Volumes": {_target(mount): {} for mount in spec.mounts if getattr(mount, "anonymous", False)} or None,
        "WorkingDir": spec.cwd,
        "Entrypoint": list(spec.entrypoint) or None,
        "OnBuild": None,
        "Labels": dict(spec.labels),
        "StopSignal": signal_name(spec.stop_signal),
        "StopTimeout": spec.stop_timeout,
    }
    if spec.health is not None:
        said["Healthcheck"] = _healthcheck(spec.health)
    return said


def _image_name(container: Container) -> str:
    try:
        names = container.image.names
    except ImageNotFound:
        names = []
    return names[0] if names else container.image_id


def _healthcheck(health: Health) -> dict[str, Any]:
    return {
        "Test": ["CMD", *health.test],
        "Interval": round(health.interval * _NANOSECONDS),
        "Timeout": round(health.timeout * _NANOSECONDS),
        "StartPeriod": round(health.start_period * _NANOSECONDS),
        "Retries": health.retries,
    }


def _network(spec: ContainerSpec) -> dict[str, Any]:
    return {"Ports": {}, "Networks": {spec.network: {"IPAddress": "", "Gateway": "", "MacAddress": ""}}}
