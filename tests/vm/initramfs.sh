#!/bin/sh
# The machine's first program: loads modules, mounts the host's files with a disk of its own over them, goes on there.
set -e
trap 'poweroff -f' EXIT

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod "/modules/$module"; done

transport=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o "ro,cache=loose,$transport" host /host
mount -t ext4 -o noatime /dev/vda /disk
mkdir -p /disk/upper /disk/work /disk/tmp
chmod 1777 /disk/tmp
mount -t overlay -o lowerdir=/host,upperdir=/disk/upper,workdir=/disk/work root /root

# Overlays of the tests lie in /tmp: not on an overlay, which could not be their upper layer.
mount --bind /disk/tmp /root/tmp
mount -t devtmpfs dev /root/dev
mount -t tmpfs -o mode=755 run /root/run
mkdir -p /root/run/vm /root/run/systemd/system
mount -t 9p -o "$transport" shared /root/run/vm
cp /root/run/vm/ck-tests.service /root/run/systemd/system

first=$(cat /root/run/vm/init)
umount /dev /sys /proc
trap - EXIT
exec switch_root /root $first
