/* The control socket: who connects asks us for something, hears that there is something new, and never waits for us nor
 * we for him. What a program has said is not sent: it is in the log, where everybody reads at his own pace. */
#include "monitor.h"

enum { AF_UNIX_ = 1, SOCK_SEQPACKET_ = 5, O_NONBLOCK_ = 04000, MSG_PEEK_ = 2, MSG_DONTWAIT_ = 0x40, TIOCSWINSZ_ = 0x5414 };

static struct client {
    int fd, subscribed;
    int waits; /* what he wants to write comes after what the program has not taken yet */
} clients[MON_CLIENTS];
static int listener = -1;
static uint8_t input[sizeof(struct mon_request) + MON_INPUT_MAX];
static uint32_t input_at, input_end; /* what the program has not taken yet */

int open_control(void)
{
    struct {
        uint16_t family;
        char path[108];
    } address = {AF_UNIX_, {0}};
    /* Through /proc, because the path of a store may be longer than an address. */
    char *end = address.path + sizeof address.path;
    put_str(put_dec(put_str(address.path, end, "/proc/self/fd/"), end, (uint64_t)mon.directory), end, "/socket");
    for (int i = 0; i < MON_CLIENTS; i++)
        clients[i].fd = -1;
    sys(unlinkat, mon.directory, "socket", 0);
    listener = (int)sys(socket, AF_UNIX_, SOCK_SEQPACKET_ | CLOEXEC | O_NONBLOCK_, 0);
    if (listener < 0)
        return listener;
    long r = sys(bind, listener, &address, sizeof address);
    if (r == 0)
        r = sys(listen, listener, MON_CLIENTS);
    return (int)r;
}

static void drop(struct client *c)
{
    close_fd(&c->fd);
    c->subscribed = c->waits = 0;
}

void wake_subscribers(void)
{
    for (int i = 0; i < MON_CLIENTS; i++)
        if (clients[i].fd >= 0 && clients[i].subscribed)
            send_fds(clients[i].fd, "w", 1, 0, 0); /* when he has not read the last ones, he will look anyway */
}

void drop_input(void)
{
    input_at = input_end = 0;
}

static void feed(void)
{
    int *to = mon.config.flags & MON_TTY ? &mon.pty : &mon.in;
    if (*to < 0)
        return drop_input();
    long n = sys(write, *to, input + input_at, (long)(input_end - input_at));
    if (n > 0)
        input_at += (uint32_t)n;
    else if (n != -EAGAIN && n != -EINTR) {
        if (to == &mon.in)
            close_fd(to); /* nobody will read it */
        input_at = input_end;
    }
}

static void reply(struct client *c, uint32_t kind, int value)
{
    struct mon_request r = {.kind = kind | MON_REPLY, .value = value};
    if (send_fds(c->fd, &r, sizeof r, 0, 0) < 0)
        drop(c);
}

static void give_handles(struct client *c)
{
    static struct message_fds fds;
    struct {
        struct mon_request head;
        uint32_t count, namespaces;
    } r = {.head = {.kind = MON_HANDLES | MON_REPLY, .length = 8}};
    if (mon.state.status != MON_RUNNING)
        return reply(c, MON_HANDLES, -ESRCH);
    fds.fds[r.count++] = mon.first_pidfd;
    fds.fds[r.count++] = mon.program_pidfd >= 0 ? mon.program_pidfd : mon.first_pidfd;
    for (uint32_t i = 0; i < mon.nnamespaces; i++)
        fds.fds[r.count++] = mon.namespaces[i];
    r.namespaces = mon.config.namespaces;
    if (send_fds(c->fd, &r, sizeof r, &fds, r.count) < 0)
        drop(c);
}

static int resize(uint32_t rows, uint32_t columns)
{
    uint16_t size[4] = {(uint16_t)rows, (uint16_t)columns, 0, 0};
    return mon.pty < 0 ? -ENOTTY : (int)sys(ioctl, mon.pty, TIOCSWINSZ_, size);
}

static void obey(struct client *c, const struct mon_request *m)
{
    switch (m->kind) {
    case MON_SUBSCRIBE:
        c->subscribed = m->value;
        if (m->value)
            send_fds(c->fd, "w", 1, 0, 0); /* for what came since he asked: he may have looked before that */
        break;
    case MON_STDIN_DATA:
        input_at = sizeof *m;
        input_end = input_at + m->length;
        feed();
        break;
    case MON_STDIN_EOF:
        if (!(mon.config.flags & MON_TTY))
            close_fd(&mon.in);
        reply(c, m->kind, 0);
        break;
    case MON_RESIZE:
        reply(c, m->kind, resize((uint32_t)m->value, m->value2));
        break;
    case MON_SIGNAL:
        reply(c, m->kind, signal_program(m->value));
        break;
    case MON_STOP:
    case MON_RESTART:
        ask_to_stop(m->value, m->value2, m->kind == MON_RESTART);
        reply(c, m->kind, 0);
        break;
    case MON_HANDLES:
        give_handles(c);
        break;
    case MON_POLICY:
        mon.config.policy = (uint32_t)m->value;
        mon.config.retries = m->value2;
        reply(c, m->kind, 0);
        break;
    case MON_PAUSED:
        health_pause(m->value);
        reply(c, m->kind, 0);
        break;
    default:
        reply(c, m->kind, -EINVAL);
    }
}

/* Of one who left before he had read all that we sent, the kernel tells that first; what he has sent is there still. */
static long hear(struct client *c, void *data, size_t length, int flags)
{
    long n = receive(c->fd, data, length, 0, 0, MSG_DONTWAIT_ | flags);
    return n == -ECONNRESET ? receive(c->fd, data, length, 0, 0, MSG_DONTWAIT_ | flags) : n;
}

static int is_about_input(struct client *c)
{
    uint32_t kind = 0;
    hear(c, &kind, sizeof kind, MSG_PEEK_);
    return kind == MON_STDIN_DATA || kind == MON_STDIN_EOF;
}

/* A program that does not read keeps waiting who writes to it, and nobody else: it can still be stopped. */
static void listen_to(struct client *c)
{
    struct mon_request m;
    int full = input_at < input_end;
    if (full && is_about_input(c)) {
        c->waits = 1;
        return;
    }
    long n = hear(c, full ? (void *)&m : input, full ? sizeof m : sizeof input, 0);
    if (n == -EAGAIN)
        return;
    if (!full)
        memcpy(&m, input, sizeof m);
    if (n < (long)sizeof m || m.length != (uint64_t)n - sizeof m)
        return drop(c);
    obey(c, &m);
}

static void take_client(void)
{
    int fd = (int)sys(accept4, listener, 0, 0, CLOEXEC | O_NONBLOCK_);
    for (int i = 0; fd >= 0 && i < MON_CLIENTS; i++)
        if (clients[i].fd < 0) {
            clients[i].fd = fd;
            return;
        }
    close_fd(&fd);
}

void control_polls(struct pollfd_k *p)
{
    int full = input_at < input_end;
    p[0] = (struct pollfd_k){listener, POLLIN_, 0};
    p[1] = (struct pollfd_k){full ? (mon.config.flags & MON_TTY ? mon.pty : mon.in) : -1, POLLOUT_, 0};
    for (int i = 0; i < MON_CLIENTS; i++) {
        clients[i].waits &= full;
        p[i + 2] = (struct pollfd_k){clients[i].waits ? -1 : clients[i].fd, POLLIN_, 0};
    }
}

void control_events(struct pollfd_k *p)
{
    if (p[1].revents)
        feed();
    for (int i = 0; i < MON_CLIENTS; i++)
        if (clients[i].fd >= 0 && clients[i].fd == p[i + 2].fd && p[i + 2].revents) {
            if (p[i + 2].revents & POLLIN_)
                listen_to(&clients[i]);
            else if (p[i + 2].revents & (POLLHUP_ | POLLERR_))
                drop(&clients[i]);
        }
    if (p[0].revents)
        take_client();
}
