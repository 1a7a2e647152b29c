/* Mounts: detached trees are built first, then moved onto descriptors that were resolved inside the new root.
 *
 * Why each is safe: a source is either a descriptor that the caller opened (TREE), or lies in a mount of our own making
 * (CLONE). A destination is resolved by openat2 with RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS, component by component
 * when it must be created, and the mount goes onto the descriptor that came out, so no later change of a name matters.
 */
#include "ck_init.h"

#include <linux/fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/stat.h>

#ifndef FSCONFIG_SET_FLAG
#define FSCONFIG_SET_FLAG 0
#define FSCONFIG_SET_STRING 1
#define FSCONFIG_CMD_CREATE 6
#endif
#ifndef MOUNT_ATTR_IDMAP
#define MOUNT_ATTR_IDMAP 0x00100000
#endif
#define MS_REC_ 16384
#define MS_PRIVATE_ (1 << 18)
#define MNT_DETACH_ 2
#ifndef STATX_MNT_ID
#define STATX_MNT_ID 0x1000
#endif
#define S_IFMT_ 0170000
#define S_IFDIR_ 0040000

/* Without a slot: the working directory, which is "/" in the first process. */
static int slot_fd(int slot)
{
    return slot >= 0 ? ctx.slots[slot] : FD_CWD;
}

static void set_slot(int slot, int fd)
{
    if (ctx.slots[slot] >= 0)
        SYS1(__NR_close, ctx.slots[slot]);
    ctx.slots[slot] = fd;
}

static int open_in(int base, const char *path, uint64_t flags, uint64_t resolve)
{
    struct open_how how = {.flags = flags | CLOEXEC, .resolve = resolve | RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
    int fd = -EAGAIN; /* ".." while anybody renames or mounts anything: ask again, but not for ever */
    for (int i = 0; i < 1000 && fd == -EAGAIN; i++)
        fd = (int)sys(openat2, base, path[0] ? path : ".", &how, sizeof how);
    return fd;
}

static uint64_t resolve_flags(uint32_t flags)
{
    return flags & CK_F_NOSYMLINK ? RESOLVE_NO_SYMLINKS : 0;
}

/* Make what is missing of `path`. Every prefix is resolved from the root again, so a link in it stays inside; mkdirat
 * gets one plain name below a descriptor, so it cannot be led anywhere. A dangling link is EEXIST to mkdirat and ENOENT
 * to openat2: refused. */
static int make_path(int base, const char *path, uint32_t flags, unsigned mode)
{
    char prefix[4096];
    size_t len = strlen(path), at = 0;
    int parent = base, fd = -ENOENT;
    if (len >= sizeof prefix)
        return -ENAMETOOLONG;
    if (len == 0)
        return open_in(base, "", OPEN_PATH, 0);
    while (at < len) {
        size_t next = at;
        while (next < len && path[next] != '/')
            next++;
        memcpy(prefix, path, next);
        prefix[next] = 0;
        int last = next == len;
        fd = last && at == 0 ? -ENOENT : open_in(base, prefix, OPEN_PATH, resolve_flags(flags));
        if (fd == -ENOENT) {
            long r = last && flags & CK_F_MKFILE ? sys(mknodat, parent, prefix + at, 0100000 | mode, 0)
                                                 : sys(mkdirat, parent, prefix + at, last ? mode : 0755);
            fd = r < 0 && r != -EEXIST ? (int)r : open_in(base, prefix, OPEN_PATH, resolve_flags(flags));
        }
        if (parent != base)
            SYS1(__NR_close, parent);
        if (fd < 0)
            return fd;
        parent = fd;
        at = next + 1;
    }
    return fd;
}

static int dest_fd(int base, const char *path, uint32_t flags, unsigned mode)
{
    int fd = open_in(base, path, OPEN_PATH, resolve_flags(flags));
    if (fd == -ENOENT && (flags & (CK_F_MKDIR | CK_F_MKFILE)))
        return make_path(base, path, flags, mode);
    return fd;
}

static int move_onto(int mount, int dest)
{
    return (int)sys(move_mount, mount, "", dest, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}

static int set_attr(int fd, uint64_t set, uint64_t clear, uint64_t propagation, int userns, int recursive)
{
    struct mount_attr attr = {.attr_set = set, .attr_clr = clear, .propagation = propagation,
                              .userns_fd = userns >= 0 ? (uint64_t)userns : 0};
    return (int)sys(mount_setattr, fd, "", EMPTY_PATH | (recursive ? AT_RECURSIVE : 0), &attr, sizeof attr);
}

static int clone_tree(int fd, int recursive)
{
    return (int)sys(open_tree, fd, "", EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC |
                    (recursive ? AT_RECURSIVE : 0));
}

/* The user namespace of the first process, for idmapped mounts. */
int userns_fd(void)
{
    char path[64];
    if (ctx.userns_fd < 0)
        ctx.userns_fd = (int)sys(openat, FD_CWD, first_path(path, sizeof path, "/ns/user"), CLOEXEC, 0);
    return ctx.userns_fd;
}

/* In a new mount namespace the caller's descriptor belongs to a mount of the old one and cannot be cloned. The path is
 * opened again here and must be the very object that the caller opened. */
static int reopen_same(int held, const char *path)
{
    struct statx a, b;
    int fd = (int)sys(openat, FD_CWD, path, OPEN_PATH | CLOEXEC, 0);
    if (fd < 0)
        return fd;
    long r = sys(statx, held, "", EMPTY_PATH, STATX_INO, &a);
    if (r == 0)
        r = sys(statx, fd, "", EMPTY_PATH, STATX_INO, &b);
    if (r == 0 && (a.stx_ino != b.stx_ino || a.stx_dev_major != b.stx_dev_major || a.stx_dev_minor != b.stx_dev_minor))
        r = -ESTALE;
    if (r < 0) {
        SYS1(__NR_close, fd);
        return (int)r;
    }
    return fd;
}

/* Where the clone comes from: a detached mount of the caller's, taken as it is; a path of the host's that only root can
 * change (/dev/null, /usr), named without a descriptor; or what the caller opened. */
static int take_tree(const struct ck_op *op)
{
    int recursive = !!(op->flags & CK_F_RECURSIVE);
    if (op->flags & CK_F_DETACHED)
        return (int)sys(fcntl, op->fd, DUPFD_CLOEXEC, 3);
    if (op->fd < 0)
        return (int)sys(open_tree, FD_CWD, op_str(op, 0, 0),
                        OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (recursive ? AT_RECURSIVE : 0));
    if (op->stage != CK_STAGE_INSIDE)
        return clone_tree(op->fd, recursive);
    int src = reopen_same(op->fd, op_str(op, 0, 0));
    if (src < 0)
        return src;
    int tree = clone_tree(src, recursive);
    SYS1(__NR_close, src);
    return tree;
}

int op_tree(const struct ck_op *op)
{
    int recursive = !!(op->flags & CK_F_RECURSIVE), idmap = !!(op->flags & CK_F_IDMAP), tree = take_tree(op);
    if (tree < 0)
        return tree;
    int userns = idmap ? userns_fd() : -1;
    if (idmap && userns < 0)
        return userns;
    if (op->a || op->b || idmap) {
        int r = set_attr(tree, op->a | (idmap ? MOUNT_ATTR_IDMAP : 0), 0, op->b, userns, recursive);
        if (r < 0)
            return r;
    }
    set_slot(op->slot, tree);
    return 0;
}

int op_fs(const struct ck_op *op)
{
    int fs = (int)sys(fsopen, op_str(op, 0, 0), FSOPEN_CLOEXEC), r;
    if (fs < 0)
        return fs;
    for (uint32_t i = 1; i + 1 < op->nstr; i += 2) {
        const char *key = op_str(op, i, 0), *value = op_str(op, i + 1, 0);
        r = value[0] ? (int)sys(fsconfig, fs, FSCONFIG_SET_STRING, key, value, 0)
                     : (int)sys(fsconfig, fs, FSCONFIG_SET_FLAG, key, 0, 0);
        ctx.fail_arg = (int)i;
        if (r < 0)
            goto fail;
    }
    ctx.fail_arg = -1;
    r = (int)sys(fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0);
    if (r < 0)
        goto fail;
    int mnt = (int)sys(fsmount, fs, FSMOUNT_CLOEXEC, op->a);
    if (mnt < 0)
        return mnt;
    SYS1(__NR_close, fs);
    set_slot(op->slot, mnt);
    return 0;
fail:;
    /* The file system says in words what it did not like. */
    long n = SYS3(__NR_read, fs, ctx.detail, sizeof ctx.detail);
    ctx.detail_len = n > 0 ? (uint32_t)n : 0;
    return r;
}

/* Into a file system that we have just made and that nobody else can reach: one plain name, made and used. What is there
 * already is ours, too: the second of two mounts on one name covers the first. */
static int attach_ours(const struct ck_op *op)
{
    int base = slot_fd(op->base);
    const char *name = op_str(op, 0, 0);
    long r = op->flags & CK_F_MKFILE ? sys(mknodat, base, name, 0100000 | op->a, 0)
             : op->flags & CK_F_MKDIR ? sys(mkdirat, base, name, op->a) : 0;
    if (r < 0 && r != -EEXIST)
        return (int)r;
    return (int)sys(move_mount, slot_fd(op->slot), "", base, name, MOVE_MOUNT_F_EMPTY_PATH);
}

int op_attach(const struct ck_op *op)
{
    if (op->flags & CK_F_OURS)
        return attach_ours(op);
    int dest = dest_fd(slot_fd(op->base), op_str(op, 0, 0), op->flags, (unsigned)op->a);
    if (dest < 0)
        return dest;
    int r = move_onto(slot_fd(op->slot), dest);
    SYS1(__NR_close, dest);
    return r;
}

static int clone_below(int base, const char *path, uint64_t attr, int recursive)
{
    int at = open_in(base, path, OPEN_PATH, 0);
    if (at < 0)
        return at;
    int tree = clone_tree(at, recursive);
    SYS1(__NR_close, at);
    if (tree < 0 || !attr)
        return tree;
    int r = set_attr(tree, attr, 0, 0, -1, recursive);
    if (r < 0)
        SYS1(__NR_close, tree);
    return r < 0 ? r : tree;
}

int op_clone(const struct ck_op *op)
{
    int base = slot_fd(op->base), recursive = !!(op->flags & CK_F_RECURSIVE);
    int tree = op->flags & CK_F_SAME_MOUNT ? open_in(base, op_str(op, 0, 0), OPEN_PATH, 0)
                                           : clone_below(base, op_str(op, 0, 0), op->a, recursive);
    if (tree == -ENOENT && (op->flags & CK_F_OPTIONAL))
        return 0;
    if (tree < 0)
        return tree;
    set_slot(op->slot, tree);
    return 0;
}

int op_attr(const struct ck_op *op)
{
    return set_attr(slot_fd(op->slot), op->a, op->b, 0, -1, !!(op->flags & CK_F_RECURSIVE));
}

int op_scratch(const struct ck_op *op)
{
    int fd = slot_fd(op->slot);
    int r = (int)sys(move_mount, fd, "", FD_CWD, "/", MOVE_MOUNT_F_EMPTY_PATH);
    if (r < 0)
        return r;
    ctx.scratch_fd = fd;
    return (int)sys(fchdir, fd);
}

int op_mkdir(const struct ck_op *op)
{
    for (uint32_t i = 0; i < op->nstr; i++) {
        ctx.fail_arg = (int)i;
        int fd = op->flags & CK_F_OURS ? (int)sys(mkdirat, slot_fd(op->base), op_str(op, i, 0), op->a)
                                       : make_path(slot_fd(op->base), op_str(op, i, 0), CK_F_MKDIR, (unsigned)op->a);
        if (fd < 0)
            return fd;
        if (!(op->flags & CK_F_OURS))
            SYS1(__NR_close, fd);
    }
    return 0;
}

/* The directory that holds a path's last name, and that name. */
static int parent_of(int base, const char *path, const char **name)
{
    char dir[4096];
    size_t cut = strlen(path);
    while (cut && path[cut - 1] != '/')
        cut--;
    *name = path + cut;
    if (cut >= sizeof dir)
        return -ENAMETOOLONG;
    memcpy(dir, path, cut);
    dir[cut ? cut - 1 : 0] = 0;
    return dest_fd(base, dir, CK_F_MKDIR, 0755);
}

int op_symlink(const struct ck_op *op)
{
    const char *name = op_str(op, 1, 0);
    if (op->flags & CK_F_OURS)
        return (int)sys(symlinkat, op_str(op, 0, 0), slot_fd(op->base), name);
    int dir = parent_of(slot_fd(op->base), name, &name);
    if (dir < 0)
        return dir;
    int r = (int)sys(symlinkat, op_str(op, 0, 0), dir, name);
    SYS1(__NR_close, dir);
    return r;
}

int op_file(const struct ck_op *op)
{
    const char *name;
    uint32_t len;
    const char *content = op_str(op, 1, &len);
    int dir = parent_of(slot_fd(op->base), op_str(op, 0, 0), &name);
    if (dir < 0)
        return dir;
    int fd = (int)sys(openat, dir, name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | CLOEXEC, op->a);
    SYS1(__NR_close, dir);
    if (fd < 0)
        return fd;
    long r = 0;
    while (len && (r = sys(write, fd, content, len)) > 0) {
        content += r;
        len -= (uint32_t)r;
    }
    SYS1(__NR_close, fd);
    return len ? (r < 0 ? (int)r : -ENOSPC) : 0;
}

/* What covers a path is an inode of our own tmpfs, never one of the container's: a root file system may hold anything
 * under the name /dev/null (CVE-2025-31133). The paths are the kernel's own, in a file system that we have just made:
 * nobody can change what a name means there, so it is used as it is. */
int op_mask(const struct ck_op *op)
{
    int base = slot_fd(op->base), masks = slot_fd(op->slot), r = 0;
    const char *name = op->flags & CK_F_MKDIR ? "dir" : "file";
    for (uint32_t i = 0; i < op->nstr && r == 0; i++) {
        ctx.fail_arg = (int)i;
        int cover = (int)sys(open_tree, masks, name, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
        if (cover < 0)
            return cover;
        r = (int)sys(move_mount, cover, "", base, op_str(op, i, 0), MOVE_MOUNT_F_EMPTY_PATH);
        SYS1(__NR_close, cover);
        if (r == -ENOENT)
            r = 0;
    }
    return r;
}

int op_readonly(const struct ck_op *op)
{
    int base = slot_fd(op->base), r = 0;
    uint64_t attr = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    for (uint32_t i = 0; i < op->nstr && r == 0; i++) {
        ctx.fail_arg = (int)i;
        int tree = (int)sys(open_tree, base, op_str(op, i, 0),
                            OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE | AT_SYMLINK_NOFOLLOW);
        if (tree == -ENOENT)
            continue;
        if (tree < 0)
            return tree;
        r = set_attr(tree, attr, 0, 0, -1, 1);
        if (r == 0)
            r = (int)sys(move_mount, tree, "", base, op_str(op, i, 0), MOVE_MOUNT_F_EMPTY_PATH);
        SYS1(__NR_close, tree);
    }
    return r;
}

int op_private(const struct ck_op *op)
{
    return (int)sys(mount, 0, "/", 0, MS_REC_ | (op->a ? op->a : MS_PRIVATE_), 0);
}

/* pivot_root(".", ".") stacks the old root on the new one (pivot_root(2), NOTES), and on the old root lies the workbench:
 * two layers to take off, the topmost first, because "." means whatever is mounted on top. Then the proof that we left:
 * the working directory is "/", and the way up from it leads to the very same mount. Were something still stacked there,
 * ".." would step onto it. */
int op_pivot(const struct ck_op *op)
{
    char cwd[8];
    struct statx root, up;
    int r = (int)sys(fchdir, slot_fd(op->slot));
    if (r == 0)
        r = (int)sys(pivot_root, ".", ".");
    if (r == 0)
        r = (int)sys(umount2, ".", MNT_DETACH_);
    if (r == 0)
        r = (int)sys(umount2, ".", MNT_DETACH_);
    if (r == 0)
        r = (int)sys(chdir, "/");
    if (r == 0)
        r = (int)sys(statx, slot_fd(op->slot), "", EMPTY_PATH, STATX_INO | STATX_MNT_ID, &root);
    if (r == 0)
        r = (int)sys(statx, FD_CWD, "/..", 0, STATX_INO | STATX_MNT_ID, &up);
    if (r < 0)
        return r;
    long n = sys(getcwd, cwd, sizeof cwd);
    if (n != 2 || cwd[0] != '/' || root.stx_mnt_id != up.stx_mnt_id || root.stx_ino != up.stx_ino)
        return -EXDEV;
    return 0;
}
