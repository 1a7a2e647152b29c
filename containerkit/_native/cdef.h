struct ck_usage {
    uint64_t utime_us, stime_us, maxrss_kib;
    uint64_t minflt, majflt, inblock, oublock, nvcsw, nivcsw;
};

/* spawn */
int ck_spawn(int helper, const int *fds, int nfds, int *pidfd);
int ck_recv(int sock, void *buf, size_t len, int *fds, int *nfds, int timeout_ms);
int ck_waitid(int pidfd, int options, int *status, struct ck_usage *usage);
int ck_socketpair(int *fds);
int ck_pidfd_pid(int pidfd);
int ck_pidfd_getfd(int pidfd, int fd);
int ck_pidfd_exit_status(int pidfd, int *status);
int ck_poll(int *fds, int nfds, int timeout_ms);

/* mounts */
int ck_fsopen(const char *fstype, unsigned int flags);
int ck_fsconfig(int fs, unsigned int cmd, const char *key, const char *value, int aux);
int ck_fsmount(int fs, unsigned int flags, unsigned int attrs);
int ck_open_tree(int dirfd, const char *path, unsigned int flags);
int ck_move_mount(int from, const char *from_path, int to, const char *to_path, unsigned int flags);
int ck_mount_setattr(int dirfd, const char *path, unsigned int flags, uint64_t set, uint64_t clear,
                     uint64_t propagation, int userns);
int ck_umount2(const char *target, int flags);
int ck_listmount(uint64_t mount_id, uint64_t last, uint64_t *out, size_t count);

/* files and descriptors */
int ck_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve);
int ck_mount_id(const char *path, uint64_t *id);
int ck_statfs_type(int fd, uint64_t *type);
int ck_syncfs(int fd);

/* namespaces */
int ck_ioctl(int fd, unsigned long request, uint64_t arg);

/* security */
int ck_landlock_abi(void);
int ck_bpf(int command, void *attr, unsigned int size);
