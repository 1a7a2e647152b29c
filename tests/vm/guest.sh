# In the machine, as its first process or as systemd's service: mounts what a system has, runs the command, turns it off.
cd /
if [ $$ = 1 ]; then
    exec >/dev/hvc0 2>&1
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mkdir -p /dev/pts /dev/shm
    mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
    mount -t tmpfs -o mode=1777 shm /dev/shm
    mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
    mount -t securityfs securityfs /sys/kernel/security
    mount -t mqueue mqueue /dev/mqueue 2>/dev/null
    ln -s /proc/self/fd /dev/fd
    ip link set lo up
    # As systemd has them: what a container fails to keep to itself is seen.
    mount --make-rshared /
fi
# The first process of a machine has no parent that reaps, and its session is the kernel's: the command has its own.
setsid --wait sh /run/vm/command </dev/null
echo $? >/run/vm/status
sync
busybox poweroff -f
