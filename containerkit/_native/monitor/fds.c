/* Messages with descriptors over a socket (unix(7)). */
#include "monitor.h"

enum { SOL_SOCKET_ = 1, SCM_RIGHTS_ = 1, MSG_NOSIGNAL_ = 0x4000, MSG_DONTWAIT_ = 0x40, MSG_CMSG_CLOEXEC_ = 0x40000000 };

struct msghdr_k {
    void *name;
    int namelen;
    struct iovec_k {
        void *base;
        size_t len;
    } *iov;
    size_t iovlen;
    void *control;
    size_t controllen;
    unsigned flags;
};

/* One message; the descriptors that came with it are close-on-exec. 0: the other end is closed. */
long receive(int sock, void *data, size_t length, struct message_fds *fds, uint32_t *nfds, int flags)
{
    struct iovec_k iov = {data, length};
    struct msghdr_k m = {.iov = &iov, .iovlen = 1, .control = fds, .controllen = fds ? sizeof *fds : 0};
    long r;
    do
        r = sys(recvmsg, sock, &m, MSG_CMSG_CLOEXEC_ | flags);
    while (r == -EINTR);
    if (nfds) {
        int has = fds && r > 0 && m.controllen >= offsetof(struct message_fds, fds) && fds->type == SCM_RIGHTS_;
        *nfds = has ? (uint32_t)((fds->len - offsetof(struct message_fds, fds)) / sizeof(int)) : 0;
    }
    return r;
}

/* Never waits: who does not read does not hold us up. */
long send_fds(int sock, const void *data, size_t length, struct message_fds *fds, uint32_t nfds)
{
    struct iovec_k iov = {(void *)(uintptr_t)data, length};
    struct msghdr_k m = {.iov = &iov, .iovlen = 1};
    if (nfds) {
        fds->len = offsetof(struct message_fds, fds) + nfds * sizeof(int);
        fds->level = SOL_SOCKET_;
        fds->type = SCM_RIGHTS_;
        m.control = fds;
        m.controllen = fds->len;
    }
    long r;
    do
        r = sys(sendmsg, sock, &m, MSG_NOSIGNAL_ | MSG_DONTWAIT_);
    while (r == -EINTR);
    return r;
}
