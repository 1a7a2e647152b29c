"""The system calls: their numbers, by architecture. Written by tests/tools/generate_syscalls.py: do not edit.

Up to Linux 6.19. A name is the kernel's own; a number in a list is that of the name after it, the others count on.
"""

from __future__ import annotations

__all__ = ["ELSEWHERE", "INTS", "numbers"]

_X86_64 = """
0 read write open close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn
ioctl pread64 pwrite64 readv writev access pipe select sched_yield mremap msync mincore madvise shmget shmat shmctl
dup dup2 pause nanosleep getitimer alarm setitimer getpid sendfile socket connect accept sendto recvfrom sendmsg
recvmsg shutdown bind listen getsockname getpeername socketpair setsockopt getsockopt clone fork vfork execve exit
wait4 kill uname semget semop semctl shmdt msgget msgsnd msgrcv msgctl fcntl flock fsync fdatasync truncate ftruncate
getdents getcwd chdir fchdir rename mkdir rmdir creat link unlink symlink readlink chmod fchmod chown fchown lchown
umask gettimeofday getrlimit getrusage sysinfo times ptrace getuid syslog getgid setuid setgid geteuid getegid setpgid
getppid getpgrp setsid setreuid setregid getgroups setgroups setresuid getresuid setresgid getresgid getpgid setfsuid
setfsgid getsid capget capset rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend sigaltstack utime mknod
uselib personality ustat statfs fstatfs sysfs getpriority setpriority sched_setparam sched_getparam sched_setscheduler
sched_getscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval mlock munlock mlockall
munlockall vhangup modify_ldt pivot_root _sysctl prctl arch_prctl adjtimex setrlimit chroot sync acct settimeofday
mount umount2 swapon swapoff reboot sethostname setdomainname iopl ioperm create_module init_module delete_module
get_kernel_syms query_module quotactl nfsservctl getpmsg putpmsg afs_syscall tuxcall security gettid readahead
setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr
fremovexattr tkill time futex sched_setaffinity sched_getaffinity set_thread_area io_setup io_destroy io_getevents
io_submit io_cancel get_thread_area lookup_dcookie epoll_create epoll_ctl_old epoll_wait_old remap_file_pages
getdents64 set_tid_address restart_syscall semtimedop fadvise64 timer_create timer_settime timer_gettime
timer_getoverrun timer_delete clock_settime clock_gettime clock_getres clock_nanosleep exit_group epoll_wait epoll_ctl
tgkill utimes vserver mbind set_mempolicy get_mempolicy mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify
mq_getsetattr kexec_load waitid add_key request_key keyctl ioprio_set ioprio_get inotify_init inotify_add_watch
inotify_rm_watch migrate_pages openat mkdirat mknodat fchownat futimesat newfstatat unlinkat renameat linkat symlinkat
readlinkat fchmodat faccessat pselect6 ppoll unshare set_robust_list get_robust_list splice tee sync_file_range
vmsplice move_pages utimensat epoll_pwait signalfd timerfd_create eventfd fallocate timerfd_settime timerfd_gettime
accept4 signalfd4 eventfd2 epoll_create1 dup3 pipe2 inotify_init1 preadv pwritev rt_tgsigqueueinfo perf_event_open
recvmmsg fanotify_init fanotify_mark prlimit64 name_to_handle_at open_by_handle_at clock_adjtime syncfs sendmmsg setns
getcpu process_vm_readv process_vm_writev kcmp finit_module sched_setattr sched_getattr renameat2 seccomp getrandom
memfd_create kexec_file_load bpf execveat userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect
pkey_alloc pkey_free statx io_pgetevents rseq uretprobe uprobe
"""

_AARCH64 = """
0 io_setup io_destroy io_submit io_cancel io_getevents setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr
listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr getcwd lookup_dcookie eventfd2 epoll_create1
epoll_ctl epoll_pwait dup dup3 fcntl inotify_init1 inotify_add_watch inotify_rm_watch ioctl ioprio_set ioprio_get
flock mknodat mkdirat unlinkat symlinkat linkat renameat umount2 mount pivot_root nfsservctl statfs fstatfs truncate
ftruncate fallocate faccessat chdir fchdir chroot fchmod fchmodat fchownat fchown openat close vhangup pipe2 quotactl
getdents64 lseek read write readv writev pread64 pwrite64 preadv pwritev sendfile pselect6 ppoll signalfd4 vmsplice
splice tee readlinkat newfstatat fstat sync fsync fdatasync sync_file_range timerfd_create timerfd_settime
timerfd_gettime utimensat acct capget capset personality exit exit_group waitid set_tid_address unshare futex
set_robust_list get_robust_list nanosleep getitimer setitimer kexec_load init_module delete_module timer_create
timer_gettime timer_getoverrun timer_settime timer_delete clock_settime clock_gettime clock_getres clock_nanosleep
syslog ptrace sched_setparam sched_setscheduler sched_getscheduler sched_getparam sched_setaffinity sched_getaffinity
sched_yield sched_get_priority_max sched_get_priority_min sched_rr_get_interval restart_syscall kill tkill tgkill
sigaltstack rt_sigsuspend rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigreturn
setpriority getpriority reboot setregid setgid setreuid setuid setresuid getresuid setresgid getresgid setfsuid
setfsgid times setpgid getpgid getsid setsid getgroups setgroups uname sethostname setdomainname getrlimit setrlimit
getrusage umask prctl getcpu gettimeofday settimeofday adjtimex getpid getppid getuid geteuid getgid getegid gettid
sysinfo mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr msgget msgctl msgrcv msgsnd semget
semctl semtimedop semop shmget shmctl shmat shmdt socket socketpair bind listen accept connect getsockname getpeername
sendto recvfrom setsockopt getsockopt shutdown sendmsg recvmsg readahead brk munmap mremap add_key request_key keyctl
clone execve mmap fadvise64 swapon swapoff mprotect msync mlock munlock mlockall munlockall mincore madvise
remap_file_pages mbind get_mempolicy set_mempolicy migrate_pages move_pages rt_tgsigqueueinfo perf_event_open accept4
recvmmsg 260 wait4 prlimit64 fanotify_init fanotify_mark name_to_handle_at open_by_handle_at clock_adjtime syncfs
setns sendmmsg process_vm_readv process_vm_writev kcmp finit_module sched_setattr sched_getattr renameat2 seccomp
getrandom memfd_create bpf execveat userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect
pkey_alloc pkey_free statx io_pgetevents rseq kexec_file_load
"""

_I386 = """
0 restart_syscall exit fork read write open close waitpid creat link unlink execve chdir time mknod chmod lchown break
oldstat lseek getpid mount umount setuid getuid stime ptrace alarm oldfstat pause utime stty gtty access nice ftime
sync kill rename mkdir rmdir dup pipe times prof brk setgid getgid signal geteuid getegid acct umount2 lock ioctl
fcntl mpx setpgid ulimit oldolduname umask chroot ustat dup2 getppid getpgrp setsid sigaction sgetmask ssetmask
setreuid setregid sigsuspend sigpending sethostname setrlimit getrlimit getrusage gettimeofday settimeofday getgroups
setgroups select symlink oldlstat readlink uselib swapon reboot readdir mmap munmap truncate ftruncate fchmod fchown
getpriority setpriority profil statfs fstatfs ioperm socketcall syslog setitimer getitimer stat lstat fstat olduname
iopl vhangup idle vm86old wait4 swapoff sysinfo ipc fsync sigreturn clone setdomainname uname modify_ldt adjtimex
mprotect sigprocmask create_module init_module delete_module get_kernel_syms quotactl getpgid fchdir bdflush sysfs
personality afs_syscall setfsuid setfsgid _llseek getdents _newselect flock msync readv writev getsid fdatasync
_sysctl mlock munlock mlockall munlockall sched_setparam sched_getparam sched_setscheduler sched_getscheduler
sched_yield sched_get_priority_max sched_get_priority_min sched_rr_get_interval nanosleep mremap setresuid getresuid
vm86 query_module poll nfsservctl setresgid getresgid prctl rt_sigreturn rt_sigaction rt_sigprocmask rt_sigpending
rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend pread64 pwrite64 chown getcwd capget capset sigaltstack sendfile getpmsg
putpmsg vfork ugetrlimit mmap2 truncate64 ftruncate64 stat64 lstat64 fstat64 lchown32 getuid32 getgid32 geteuid32
getegid32 setreuid32 setregid32 getgroups32 setgroups32 fchown32 setresuid32 getresuid32 setresgid32 getresgid32
chown32 setuid32 setgid32 setfsuid32 setfsgid32 pivot_root mincore madvise getdents64 fcntl64 224 gettid readahead
setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr
fremovexattr tkill sendfile64 futex sched_setaffinity sched_getaffinity set_thread_area get_thread_area io_setup
io_destroy io_getevents io_submit io_cancel fadvise64 252 exit_group lookup_dcookie epoll_create epoll_ctl epoll_wait
remap_file_pages set_tid_address timer_create timer_settime timer_gettime timer_getoverrun timer_delete clock_settime
clock_gettime clock_getres clock_nanosleep statfs64 fstatfs64 tgkill utimes fadvise64_64 vserver mbind get_mempolicy
set_mempolicy mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr kexec_load waitid 286 add_key
request_key keyctl ioprio_set ioprio_get inotify_init inotify_add_watch inotify_rm_watch migrate_pages openat mkdirat
mknodat fchownat futimesat fstatat64 unlinkat renameat linkat symlinkat readlinkat fchmodat faccessat pselect6 ppoll
unshare set_robust_list get_robust_list splice sync_file_range tee vmsplice move_pages getcpu epoll_pwait utimensat
signalfd timerfd_create eventfd fallocate timerfd_settime timerfd_gettime signalfd4 eventfd2 epoll_create1 dup3 pipe2
inotify_init1 preadv pwritev rt_tgsigqueueinfo perf_event_open recvmmsg fanotify_init fanotify_mark prlimit64
name_to_handle_at open_by_handle_at clock_adjtime syncfs sendmmsg setns process_vm_readv process_vm_writev kcmp
finit_module sched_setattr sched_getattr renameat2 seccomp getrandom memfd_create bpf execveat socket socketpair bind
connect listen accept4 getsockopt setsockopt getsockname getpeername sendto sendmsg recvfrom recvmsg shutdown
userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc pkey_free statx arch_prctl
io_pgetevents rseq 393 semget semctl shmget shmctl shmat shmdt msgget msgsnd msgrcv msgctl clock_gettime64
clock_settime64 clock_adjtime64 clock_getres_time64 clock_nanosleep_time64 timer_gettime64 timer_settime64
timerfd_gettime64 timerfd_settime64 utimensat_time64 pselect6_time64 ppoll_time64 416 io_pgetevents_time64
recvmmsg_time64 mq_timedsend_time64 mq_timedreceive_time64 semtimedop_time64 rt_sigtimedwait_time64 futex_time64
sched_rr_get_interval_time64
"""

_COMMON = """
424 pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount fsopen fsconfig fsmount
fspick pidfd_open clone3 close_range openat2 pidfd_getfd faccessat2 process_madvise epoll_pwait2 mount_setattr
quotactl_fd landlock_create_ruleset landlock_add_rule landlock_restrict_self memfd_secret process_mrelease futex_waitv
set_mempolicy_home_node cachestat fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue statmount listmount
lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat getxattrat listxattrat removexattrat
open_tree_attr file_getattr file_setattr listns
"""

ELSEWHERE = """
arm_fadvise64_64 arm_sync_file_range atomic_barrier atomic_cmpxchg_32 breakpoint cachectl cacheflush get_tls
multiplexer pciconfig_iobase pciconfig_read pciconfig_write recv riscv_flush_icache riscv_hwprobe rtas
s390_guarded_storage s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr s390_sthyi send set_tls spu_create
spu_run subpage_prot swapcontext switch_endian sync_file_range2 sys_debug_setcontext syscall sysmips timerfd usr26
usr32
"""
"""Names that only other architectures have: no rule about them can have an effect here."""

INTS = {
    "accept": 0b1, "accept4": 0b1001, "access": 0b10, "add_key": 0b10000, "alarm": 0b1, "arch_prctl": 0b1,
    "bind": 0b101, "bpf": 0b101, "cachestat": 0b1001, "chmod": 0b10, "chown": 0b110, "clock_adjtime": 0b1,
    "clock_getres": 0b1, "clock_gettime": 0b1, "clock_nanosleep": 0b11, "clock_settime": 0b1, "clone": 0b1,
    "close": 0b1, "close_range": 0b111, "connect": 0b101, "copy_file_range": 0b100101, "creat": 0b10, "dup": 0b1,
    "dup2": 0b11, "dup3": 0b111, "epoll_create": 0b1, "epoll_create1": 0b1, "epoll_ctl": 0b111, "epoll_pwait": 0b1101,
    "epoll_pwait2": 0b101, "epoll_wait": 0b1101, "eventfd": 0b1, "eventfd2": 0b11, "execveat": 0b10001, "exit": 0b1,
    "exit_group": 0b1, "faccessat": 0b101, "faccessat2": 0b1101, "fadvise64": 0b1001, "fallocate": 0b11,
    "fanotify_init": 0b11, "fanotify_mark": 0b1011, "fchdir": 0b1, "fchmod": 0b11, "fchmodat": 0b101,
    "fchmodat2": 0b1101, "fchown": 0b111, "fchownat": 0b11101, "fcntl": 0b11, "fdatasync": 0b1, "fgetxattr": 0b1,
    "file_getattr": 0b10001, "file_setattr": 0b10001, "flistxattr": 0b1, "flock": 0b11, "fremovexattr": 0b1,
    "fsconfig": 0b10011, "fsetxattr": 0b10001, "fsmount": 0b111, "fsopen": 0b10, "fspick": 0b101, "fstat": 0b1,
    "fstatfs": 0b1, "fsync": 0b1, "ftruncate": 0b1, "futex": 0b100110, "futex_requeue": 0b1110,
    "futex_wait": 0b101000, "futex_waitv": 0b10110, "futex_wake": 0b1100, "futimesat": 0b1, "get_robust_list": 0b1,
    "getdents": 0b101, "getdents64": 0b101, "getgroups": 0b1, "getitimer": 0b1, "getpeername": 0b1, "getpgid": 0b1,
    "getpriority": 0b11, "getrandom": 0b100, "getrlimit": 0b1, "getrusage": 0b1, "getsid": 0b1, "getsockname": 0b1,
    "getsockopt": 0b111, "getxattrat": 0b101, "inotify_add_watch": 0b101, "inotify_init1": 0b1,
    "inotify_rm_watch": 0b11, "io_setup": 0b1, "io_uring_enter": 0b1111, "io_uring_register": 0b1011,
    "io_uring_setup": 0b1, "ioctl": 0b11, "ioperm": 0b100, "iopl": 0b1, "ioprio_get": 0b11, "ioprio_set": 0b111,
    "kcmp": 0b111, "keyctl": 0b1, "kill": 0b11, "landlock_add_rule": 0b1011, "landlock_create_ruleset": 0b100,
    "landlock_restrict_self": 0b11, "lchown": 0b110, "linkat": 0b10101, "listen": 0b11, "listmount": 0b1000,
    "listxattrat": 0b101, "lseek": 0b101, "lsetxattr": 0b10000, "lsm_get_self_attr": 0b1001,
    "lsm_list_modules": 0b100, "lsm_set_self_attr": 0b1101, "madvise": 0b100, "mbind": 0b100000, "membarrier": 0b111,
    "memfd_create": 0b10, "memfd_secret": 0b1, "migrate_pages": 0b1, "mkdir": 0b10, "mkdirat": 0b101, "mknod": 0b110,
    "mknodat": 0b1101, "mlock2": 0b100, "mlockall": 0b1, "modify_ldt": 0b1, "mount_setattr": 0b101,
    "move_mount": 0b10101, "move_pages": 0b100001, "mq_getsetattr": 0b1, "mq_notify": 0b1, "mq_open": 0b110,
    "mq_timedreceive": 0b1, "mq_timedsend": 0b1001, "msgctl": 0b11, "msgget": 0b11, "msgrcv": 0b10001,
    "msgsnd": 0b1001, "msync": 0b100, "name_to_handle_at": 0b10001, "newfstatat": 0b1001, "open": 0b110,
    "open_by_handle_at": 0b101, "open_tree": 0b101, "open_tree_attr": 0b101, "openat": 0b1101, "openat2": 0b1,
    "perf_event_open": 0b1110, "personality": 0b1, "pidfd_getfd": 0b111, "pidfd_open": 0b11,
    "pidfd_send_signal": 0b1011, "pipe2": 0b10, "pkey_free": 0b1, "pkey_mprotect": 0b1000, "poll": 0b110,
    "ppoll": 0b10, "prctl": 0b1, "pread64": 0b1, "preadv2": 0b100000, "prlimit64": 0b11, "process_madvise": 0b11001,
    "process_mrelease": 0b11, "process_vm_readv": 0b1, "process_vm_writev": 0b1, "pselect6": 0b1, "pwrite64": 0b1,
    "pwritev2": 0b100000, "quotactl": 0b101, "quotactl_fd": 0b111, "read": 0b1, "readahead": 0b1, "readlink": 0b100,
    "readlinkat": 0b1001, "reboot": 0b111, "recvfrom": 0b1001, "recvmmsg": 0b1101, "recvmsg": 0b101,
    "removexattrat": 0b101, "renameat": 0b101, "renameat2": 0b10101, "request_key": 0b1000, "rseq": 0b1110,
    "rt_sigaction": 0b1, "rt_sigprocmask": 0b1, "rt_sigqueueinfo": 0b11, "rt_tgsigqueueinfo": 0b111,
    "sched_get_priority_max": 0b1, "sched_get_priority_min": 0b1, "sched_getaffinity": 0b11,
    "sched_getattr": 0b1101, "sched_getparam": 0b1, "sched_getscheduler": 0b1, "sched_rr_get_interval": 0b1,
    "sched_setaffinity": 0b11, "sched_setattr": 0b101, "sched_setparam": 0b1, "sched_setscheduler": 0b11,
    "seccomp": 0b11, "select": 0b1, "semctl": 0b111, "semget": 0b111, "semop": 0b101, "semtimedop": 0b101,
    "sendfile": 0b11, "sendmmsg": 0b1101, "sendmsg": 0b101, "sendto": 0b101001, "set_mempolicy": 0b1,
    "setdomainname": 0b10, "setfsgid": 0b1, "setfsuid": 0b1, "setgid": 0b1, "setgroups": 0b1, "sethostname": 0b10,
    "setitimer": 0b1, "setns": 0b11, "setpgid": 0b11, "setpriority": 0b111, "setregid": 0b11, "setresgid": 0b111,
    "setresuid": 0b111, "setreuid": 0b11, "setrlimit": 0b1, "setsockopt": 0b10111, "setuid": 0b1, "setxattr": 0b10000,
    "setxattrat": 0b101, "shmat": 0b101, "shmctl": 0b11, "shmget": 0b101, "shutdown": 0b11, "signalfd": 0b1,
    "signalfd4": 0b1001, "socket": 0b111, "socketpair": 0b111, "splice": 0b100101, "statmount": 0b1000,
    "statx": 0b1101, "swapon": 0b10, "symlinkat": 0b10, "sync_file_range": 0b1001, "syncfs": 0b1, "sysfs": 0b1,
    "syslog": 0b101, "tee": 0b1011, "tgkill": 0b111, "timer_create": 0b1, "timer_delete": 0b1,
    "timer_getoverrun": 0b1, "timer_gettime": 0b1, "timer_settime": 0b11, "timerfd_create": 0b11,
    "timerfd_gettime": 0b1, "timerfd_settime": 0b11, "tkill": 0b11, "umask": 0b1, "umount2": 0b10, "unlinkat": 0b101,
    "userfaultfd": 0b1, "ustat": 0b1, "utimensat": 0b1001, "vmsplice": 0b1001, "wait4": 0b101, "waitid": 0b1011,
    "write": 0b1,
}  # fmt: skip
"""Which arguments the kernel takes as 32 bits or less, one bit each. It throws the upper half away."""

_LISTS = {"x86_64": _X86_64, "aarch64": _AARCH64, "i386": _I386}
_numbers: dict[str, dict[str, int]] = {}


def numbers(architecture: str) -> dict[str, int]:
    """The numbers by name for ``x86_64``, ``aarch64`` or ``i386``; not to be changed. KeyError for others."""
    known = _numbers.get(architecture)
    if known is None:
        known, number = {}, 0
        for word in (_LISTS[architecture] + _COMMON).split():
            if word.isdigit():
                number = int(word)
            else:
                known[word] = number
                number += 1
        _numbers[architecture] = known
    return known
