"""Which system calls a program may make: a policy as a value, compiled to the filter that the kernel runs.

A :class:`Seccomp` is a default and a list of rules. The last rule that matches a call decides, as in .gitignore, so a
policy is changed by adding to it::

    Seccomp.strict().allow("ptrace", "process_vm_readv")                # a debugger's sandbox
    Seccomp.strict().deny("socket", where=Arg(0, "!=", AF_UNIX))        # no network, whatever the namespaces say

Names are the kernel's own (syscalls(2)). Those of the other architecture that we know are accepted and have no effect.
"""

from __future__ import annotations

import errno as _errno
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import InvalidValue, Unsupported
from ..value import Value, field, frozen
from . import syscalls

if TYPE_CHECKING:
    from attrs import Attribute

    from .capabilities import Capabilities

__all__ = ["Action", "Arg", "Rule", "Seccomp"]

ARCHITECTURES = ("x86_64", "aarch64")

FLAG_LOG, FLAG_SPEC_ALLOW, FLAG_NEW_LISTENER, FLAG_WAIT_KILLABLE = 2, 4, 8, 32

_U64 = (1 << 64) - 1


class Action(int):
    """What becomes of a call: the number that a filter returns (seccomp(2)).

    ``Action.ALLOW``, ``Action.errno("EPERM")``, ``Action.KILL`` (the process dies of SIGSYS), ``Action.LOG`` (it goes
    ahead, and into the kernel's audit log), ``Action.NOTIFY`` (a supervisor decides), ``Action.TRAP`` (SIGSYS, which
    the program may catch).
    """

    __slots__ = ()

    KILL: ClassVar[Action]
    TRAP: ClassVar[Action]
    NOTIFY: ClassVar[Action]
    LOG: ClassVar[Action]
    ALLOW: ClassVar[Action]

    @classmethod
    def errno(cls, error: int | str) -> Action:
        """The call is not made and fails with this error: ``EPERM`` by name or number."""
        number = getattr(_errno, error, None) if isinstance(error, str) else error
        if not isinstance(number, int) or not 0 <= number < 4096:
            raise InvalidValue(f"errno {error!r} must be a name as in errno(3), or a number from 0 to 4095")
        return cls(_ERRNO | number)

    def __str__(self) -> str:
        if self >> 16 == _ERRNO >> 16:
            return _errno.errorcode.get(self & 0xFFFF, f"errno {self & 0xFFFF}")
        return _ACTION_NAMES.get(int(self), f"{int(self):#x}")

    def __repr__(self) -> str:
        name = str(self)
        return f"Action.errno({name!r})" if self >> 16 == _ERRNO >> 16 else f"Action.{name.upper()}"


_ERRNO = 0x00050000
_ACTION_NAMES = {0x80000000: "kill", 0x00030000: "trap", 0x7FC00000: "notify", 0x7FFC0000: "log", 0x7FFF0000: "allow"}
for _value, _name in _ACTION_NAMES.items():
    setattr(Action, _name.upper(), Action(_value))

_ENOSYS = Action.errno(_errno.ENOSYS)


# ---- values ----------------------------------------------------------------------------------------------------------

# Converters are functions of our own, annotated: of a class or a builtin, attrs asks inspect for the signature, which
# takes 4 ms to read it out of a docstring.


def _action(value: int) -> Action:
    return Action(value)


def _names(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(names)


def _rules(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(rules)


def _index(instance: object, attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, int) or not 0 <= value < 6:
        raise InvalidValue(f"{attribute.name}={value!r} must be from 0 to 5: a system call has six arguments")


def _op(instance: object, attribute: Attribute[Any], value: object) -> None:
    if value not in ("==", "!=", "<", "<=", ">", ">=", "in", "not in"):
        raise InvalidValue(f"{attribute.name}={value!r} must be one of ==, !=, <, <=, >, >=, in, not in")


def _u64(value: int) -> int:
    """As the register holds it: a negative number is its two's complement."""
    if not isinstance(value, int) or not -(1 << 63) <= value <= _U64:
        raise InvalidValue(f"{value!r} must be a number of at most 64 bits: a filter sees no more of an argument")
    return value & _U64


def _values(value: int | Iterable[int]) -> int | tuple[int, ...]:
    return _u64(value) if isinstance(value, int) else tuple(_u64(one) for one in value)


@frozen()
class Arg(Value):
    """A condition on an argument: ``Arg(0, "in", (1, 2, 10))``, ``Arg(0, "==", 0, mask=CLONE_NEWUSER)``.

    The numbers are unsigned, and what the kernel does not read is not compared: of an argument that it takes as an
    ``int``, such as the request of ioctl, only 32 bits are, or a program could pass others and go unseen
    (CVE-2019-10063). What a pointer points to cannot be seen.
    """

    index: int = field(validator=_index)
    op: str = field(validator=_op)
    value: int | tuple[int, ...] = field(converter=_values)
    mask: int = field(default=_U64, kw_only=True, converter=_u64)

    def __attrs_post_init__(self) -> None:
        if isinstance(self.value, tuple) is not self.op.endswith("in"):
            raise InvalidValue(f"op {self.op!r} does not fit {self.value!r}: in and not in take several numbers")
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        if "<" not in self.op and ">" not in self.op and any(value & ~self.mask for value in values):
            raise InvalidValue(f"{self}: no number is equal to one that has bits outside of the mask")

    def __str__(self) -> str:
        shown = f"argument {self.index}"
        if self.mask != _U64:
            shown = f"({shown} & {self.mask:#x})"
        if isinstance(self.value, tuple):
            return f"{shown} {self.op} ({', '.join(map(_shown_number, self.value))})"
        return f"{shown} {self.op} {_shown_number(self.value)}"


def _shown_number(value: int) -> str:
    return str(value) if value < 4096 else hex(value)


def _conditions(where: Arg | Iterable[Arg]) -> tuple[Arg, ...]:
    return (where,) if isinstance(where, Arg) else tuple(where)


def _known_names(instance: object, attribute: Attribute[Any], names: Iterable[str]) -> None:
    unknown = set(names)
    for architecture in (*ARCHITECTURES, "i386"):  # of which most policies need only the first
        unknown.difference_update(syscalls.numbers(architecture))
        if not unknown:
            return
    raise InvalidValue(f"unknown system call {min(unknown)!r}; they are named as in syscalls(2), in lower case")


@frozen()
class Rule(Value):
    """An action, the calls that it is for, and conditions which must all hold."""

    action: Action = field(converter=_action)
    names: tuple[str, ...] = field(converter=_names, validator=_known_names)
    where: tuple[Arg, ...] = field(default=(), converter=_conditions)

    def __str__(self) -> str:
        count = f" ({len(self.names)} calls)" if len(self.names) > 8 else ""
        condition = f" where {' and '.join(map(str, self.where))}" if self.where else ""
        return f"{self.action}{count}: {' '.join(sorted(self.names))}{condition}"


@frozen()
class Seccomp(Value):
    """A policy for system calls.

    * ``default``: what becomes of a call that no rule matches, and of one that is newer than this library: ENOSYS makes
      programs fall back to what they did before that call existed.
    * ``rules``: the last one that matches decides.
    * ``multiarch``: whether 32-bit x86 programs may run, under the same rules. Calls of other architectures, and of
      x32, which no distribution uses, fail with ENOSYS.
    * ``log``: the kernel's audit log tells what was refused (SECCOMP_FILTER_FLAG_LOG).
    """

    default: Action = field(default=_ENOSYS, converter=_action)
    rules: tuple[Rule, ...] = field(default=(), converter=_rules)
    multiarch: bool = field(default=False, kw_only=True)
    log: bool = field(default=False, kw_only=True)

    # ---- policies from policies

    def rule(self, action: Action, *names: str, where: Arg | Iterable[Arg] = ()) -> Seccomp:
        """This policy, and one more rule, which goes before all that it has."""
        import attrs

        return attrs.evolve(self, rules=(*self.rules, Rule(action, names, where)))

    def allow(self, *names: str, where: Arg | Iterable[Arg] = ()) -> Seccomp:
        """These calls are made."""
        return self.rule(Action.ALLOW, *names, where=where)

    def deny(self, *names: str, where: Arg | Iterable[Arg] = (), errno: int | str = "EPERM") -> Seccomp:
        """These calls fail."""
        return self.rule(Action.errno(errno), *names, where=where)

    def kill(self, *names: str, where: Arg | Iterable[Arg] = ()) -> Seccomp:
        """These calls are the process's last."""
        return self.rule(Action.KILL, *names, where=where)

    def notify(self, *names: str, where: Arg | Iterable[Arg] = ()) -> Seccomp:
        """A :class:`Supervisor` decides about these calls (seccomp_unotify(2))."""
        return self.rule(Action.NOTIFY, *names, where=where)

    # ---- for the kernel

    def program(self, architecture: str | None = None) -> bytes:
        """The filter: an array of ``struct sock_filter``, for this machine or ``"x86_64"`` or ``"aarch64"``.

        Raises InvalidValue if it is longer than the kernel takes (4096 instructions), Unsupported on other machines.
        """
        machine = architecture or os.uname().machine
        if machine not in ARCHITECTURES:
            raise Unsupported(f"seccomp policies are for {' and '.join(ARCHITECTURES)}, not for {machine!r}")
        compiled: dict[str, bytes] = self.__dict__.setdefault("_compiled", {})
        program = compiled.get(machine)
        if program is None:
            from .bpf import compile_filter

            program = compiled[machine] = compile_filter(self, machine)
        return program

    @property
    def flags(self) -> int:
        """For seccomp(2), with SECCOMP_SET_MODE_FILTER.

        SPEC_ALLOW: without it, Linux before 5.16 slows all of the program against a leak between its own threads.
        WAIT_KILLABLE_RECV: once a supervisor has a call, only a fatal signal interrupts it (Linux 5.19; the helper does
        without it on an older kernel, where a call that a signal interrupts comes twice).
        """
        listener = FLAG_NEW_LISTENER | FLAG_WAIT_KILLABLE if self.notifies else 0
        return FLAG_SPEC_ALLOW | (FLAG_LOG if self.log else 0) | listener

    @property
    def notifies(self) -> bool:
        """Whether a supervisor decides about some calls; a process with this policy needs ``supervisor=``."""
        return Action.NOTIFY in (self.default, *(rule.action for rule in self.rules))

    # ---- for people

    def __str__(self) -> str:
        rules = f"{len(self.rules)} rule{'s' * (len(self.rules) != 1)}"
        return f"seccomp: {self.default} but for {rules}" if self.rules else f"seccomp: {self.default}"

    def explain(self) -> str:
        """The policy in words, the rule that is asked first at the top."""
        lines = [str(rule) for rule in reversed(self.rules)]
        lines.append(f"{self.default}: everything else")
        lines.append("ENOSYS: calls of other architectures" + (", but for 32-bit x86" if self.multiarch else ""))
        if self.log:
            lines.append("what is refused goes to the audit log")
        from textwrap import fill

        return "\n".join(fill(line, 100, subsequent_indent="    ") for line in lines)

    # ---- presets

    @classmethod
    def strict(cls) -> Seccomp:
        """For untrusted programs: interpreters, compilers, shells and git run, the rest of the kernel is out of reach.

        What is known to be dangerous fails with EPERM, what is unknown with ENOSYS, sockets but for local, IP and
        routing ones with EAFNOSUPPORT. Debuggers, nested containers, io_uring and kernel AIO do not work.
        """
        return _preset("strict", _strict)

    @classmethod
    def service(cls) -> Seccomp:
        """For daemons and package managers: strict, and chroot, device nodes, kernel AIO, NUMA placement, any protocol
        over IP, file handles by name, reading the clock's state. Capabilities still decide what of it succeeds."""
        return _preset("service", _service)

    @classmethod
    def compat(cls, capabilities: Capabilities | None = None) -> Seccomp:
        """For what runs under docker's and podman's defaults: service, and ptrace, every kind of socket but two, 32-bit
        programs, and what is only for ``capabilities``, of which None has none. See containerkit/security/compat.py."""
        from .capabilities import Capabilities
        from .compat import compat

        return compat(capabilities or Capabilities())

    @classmethod
    def from_json(
        cls,
        profile: str | bytes | Mapping[str, Any],
        *,
        capabilities: Capabilities | None = None,
        architecture: str | None = None,
        kernel: tuple[int, int] | None = None,
    ) -> Seccomp:
        """A profile in the format of docker and podman (``seccomp.json``), or of ``linux.seccomp`` in an OCI config.

        Args:
            profile: its text, or what json made of it.
            capabilities: which the program has; None is none. Profiles let some calls through with them.
            architecture, kernel: instead of this machine's.

        Raises InvalidValue on what cannot be kept as it is written. How this differs from the runtimes, to the stricter
        side, stands at the head of containerkit/security/profile.py.
        """
        from .profile import from_profile

        machine = architecture or os.uname().machine
        return from_profile(profile, capabilities=capabilities, architecture=machine, kernel=kernel)


# ---- presets ---------------------------------------------------------------------------------------------------------

_presets: dict[str, Seccomp] = {}


def _preset(name: str, make: Any) -> Seccomp:
    made = _presets.get(name)
    if made is None:
        made = _presets.setdefault(name, make())
    return made


_ALLOWED = """
accept accept4 access alarm arch_prctl bind brk capget capset chdir chmod chown clock_getres clock_gettime
clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl
epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64
fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork
fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake futimesat
get_mempolicy get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups
getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage
getsid getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat inotify_add_watch inotify_init
inotify_init1 inotify_rm_watch ioctl ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset
landlock_restrict_self lchown lgetxattr link linkat listen listxattr listxattrat llistxattr lremovexattr lseek
lsetxattr lstat madvise map_shadow_stack membarrier memfd_create mincore mkdir mkdirat mlock mlock2 mlockall mmap
mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv
msgsnd msync munlock munlockall munmap nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal
pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2 prlimit64 pselect6 pwrite64
pwritev pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr
removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask
rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max
sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop
semtimedop sendfile sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid
setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt setuid
setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 splice stat statfs statx
symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun
timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask uname unlink
unlinkat uprobe uretprobe utime utimensat utimes vfork wait4 waitid write writev
"""
"""What ordinary programs use. setuid and its like are here because without privilege they can change nothing, and
programs that drop privilege (busybox) end if they fail. uprobe and uretprobe are how a tracer on the host, which the
program knows nothing of, gets back into it; anybody else who calls them dies."""

_REFUSED = """
_sysctl acct add_key adjtimex afs_syscall bpf chroot clock_adjtime clock_settime create_module delete_module
fanotify_init fanotify_mark finit_module fsconfig fsmount fsopen fspick get_kernel_syms getpmsg init_module
io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie
lsm_set_self_attr mbind migrate_pages modify_ldt mount mount_setattr move_mount move_pages name_to_handle_at
nfsservctl open_by_handle_at open_tree open_tree_attr perf_event_open pidfd_getfd pivot_root process_madvise
process_mrelease process_vm_readv process_vm_writev ptrace putpmsg query_module quotactl quotactl_fd reboot
request_key security set_mempolicy set_mempolicy_home_node setdomainname sethostname setns settimeofday swapoff swapon
sysfs syslog tuxcall umount2 unshare uselib userfaultfd ustat vhangup vmsplice vserver
"""
"""EPERM, as the kernel would say without the privilege: attack surface, or other processes' and the host's business.
And what the kernel has no longer, as docker has it; one answer for neighbours makes the filter shorter."""

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
_SOCK_TYPE = 0xF
_SOCK_RAW, _SOCK_PACKET = 3, 10
_IP_PROTOCOLS = (0, 1, 6, 17, 58, 136, 262)  # any, ICMP, TCP, UDP, ICMPv6, UDP-Lite, MPTCP

_S_IFCHR = 0o020000  # a bit of the two kinds of device, and of no file, FIFO, or socket

# CLONE_NEW*; NEWTIME, which shares its bit with the exit signal, cannot be asked for here. The flags of clone3 lie
# behind a pointer, so it does not exist: C libraries fall back to clone.
_NAMESPACES = 0x7E020080

_TIOCSTI, _TIOCLINUX, _TIOCSETD = 0x5412, 0x541C, 0x5423  # type into, paste into, put a line discipline on a terminal

_ASK, _HARMLESS = 0xFFFFFFFF, 0x20008  # of personality: 32 bits, kernel 2.6


def _strict() -> Seccomp:
    allow, refuse = Action.ALLOW, Action.errno(_errno.EPERM)
    return Seccomp(
        _ENOSYS,
        (
            Rule(allow, tuple(_ALLOWED.split())),
            Rule(refuse, ("clone", "mknod", "mknodat", "personality", *_REFUSED.split())),
            Rule(allow, ("clone",), Arg(0, "==", 0, mask=_NAMESPACES)),
            Rule(refuse, ("ioctl",), Arg(1, "in", (_TIOCSTI, _TIOCLINUX, _TIOCSETD))),
            Rule(allow, ("mknod",), Arg(1, "==", 0, mask=_S_IFCHR)),
            Rule(allow, ("mknodat",), Arg(2, "==", 0, mask=_S_IFCHR)),
            Rule(allow, ("personality",), Arg(0, "==", 0, mask=~_HARMLESS)),
            Rule(allow, ("personality",), Arg(0, "==", _ASK)),
            # What a kernel says that was built without the rest.
            Rule(Action.errno(_errno.EAFNOSUPPORT), ("socket", "socketpair")),
            Rule(allow, ("socket", "socketpair"), Arg(0, "==", AF_UNIX)),
            Rule(Action.errno(_errno.EPROTONOSUPPORT), ("socket",), Arg(0, "in", (AF_INET, AF_INET6, AF_NETLINK))),
            Rule(
                allow,
                ("socket",),
                (
                    Arg(0, "in", (AF_INET, AF_INET6)),
                    # Type 10 is an old name for AF_PACKET; SCTP, DCCP and SMC load modules that few have read.
                    Arg(1, "<=", _SOCK_RAW, mask=_SOCK_TYPE),  # and stream, and datagram
                    Arg(2, "in", _IP_PROTOCOLS),
                ),
            ),
            Rule(allow, ("socket",), (Arg(0, "==", AF_NETLINK), Arg(2, "==", 0))),
        ),
    )


_SERVICE = """
adjtimex chroot clock_adjtime io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit mbind mknod mknodat
name_to_handle_at set_mempolicy set_mempolicy_home_node
"""


def _service() -> Seccomp:
    any_of_ip = (Arg(0, "in", (AF_INET, AF_INET6)), Arg(1, "!=", _SOCK_PACKET, mask=_SOCK_TYPE))
    return (
        Seccomp.strict()
        .allow(*_SERVICE.split())
        .allow("socket", where=any_of_ip)
        .allow("unshare", where=Arg(0, "==", 0, mask=_NAMESPACES))  # of open files or the working directory
    )
