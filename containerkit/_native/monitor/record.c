/* What others read of us: the state, the log, events. */
#include "monitor.h"

static int state_fd = -1, log_fd = -1;
static uint64_t log_size;

enum { O_WRONLY_ = 1, O_RDWR_ = 2, O_CREAT_ = 0100, O_TRUNC_ = 01000, O_APPEND_ = 02000 };
#if defined(__aarch64__)
enum { O_NOFOLLOW_ = 0100000, O_DIRECTORY_ = 040000 };
#else
enum { O_NOFOLLOW_ = 0400000, O_DIRECTORY_ = 0200000 };
#endif

void write_state(void)
{
    if (state_fd < 0)
        state_fd = (int)sys(openat, mon.directory, "state", O_WRONLY_ | O_CREAT_ | O_NOFOLLOW_ | CLOEXEC, 0600);
    mon.state.seq_end = ++mon.state.seq;
    sys(pwrite64, state_fd, &mon.state, sizeof mon.state, 0);
    wake_subscribers();
}

/* ---- the log --------------------------------------------------------------------------------------------------------- */

/* A file of its own for each life of a monitor: what a killed one left unfinished ends its file. */
static int open_log_file(void)
{
    char name[24];
    put_dec(name, name + sizeof name, mon.state.log_number);
    close_fd(&log_fd);
    log_fd = (int)sys(openat, mon.log_directory, name, O_WRONLY_ | O_CREAT_ | O_APPEND_ | O_NOFOLLOW_ | CLOEXEC, 0600);
    log_size = 0;
    return log_fd < 0 ? log_fd : 0;
}

int open_log(void)
{
    mon.log_directory = (int)sys(openat, mon.directory, "log", O_DIRECTORY_ | O_NOFOLLOW_ | CLOEXEC, 0);
    mon.events = -1;
    mon.state.log_number = mon.config.log_number;
    return mon.log_directory < 0 ? mon.log_directory : open_log_file();
}

static void rotate(void)
{
    char name[24];
    mon.state.log_number++;
    open_log_file();
    while (mon.state.log_number - mon.config.log_oldest >= mon.config.log_files) {
        put_dec(name, name + sizeof name, mon.config.log_oldest++);
        sys(unlinkat, mon.log_directory, name, 0);
    }
}

/* One frame, in one write; on a full disk it is lost, and nothing of it is left: the container goes on. */
void log_frame(int stream, uint8_t *frame, uint32_t length)
{
    uint64_t now = clock_ns(0);
    uint8_t header[LOG_HEADER] = {0};
    memcpy(header, &now, 8);
    memcpy(header + 8, &length, 4);
    header[12] = (uint8_t)stream;
    memcpy(frame, header, LOG_HEADER);
    long whole = LOG_HEADER + (long)length;
    if (log_size && log_size + (uint64_t)whole > mon.config.log_max)
        rotate();
    long r = sys(write, log_fd, frame, whole);
    if (r == whole)
        log_size += (uint64_t)r;
    else if (r > 0)
        sys(ftruncate, log_fd, log_size);
}

void log_mark(const char *text)
{
    uint8_t frame[LOG_HEADER + 64];
    uint32_t length = (uint32_t)strlen(text);
    if (length > 64)
        length = 64;
    memcpy(frame + LOG_HEADER, text, length);
    log_frame(LOG_MARK, frame, length);
}

/* ---- events ---------------------------------------------------------------------------------------------------------- */

void tell_event(const char *action, const char *name, const char *value)
{
    char line[512] = "", *end = line + sizeof line - 1, id[65];
    memcpy(id, mon.config.id, 64);
    id[64] = 0;
    char *p = put_str(line, end, "{\"time\": ");
    p = put_dec(p, end, clock_ns(0));
    p = put_str(p, end, ", \"type\": \"container\", \"action\": \"");
    p = put_str(p, end, action);
    p = put_str(p, end, "\", \"id\": \"");
    p = put_str(p, end, id);
    p = put_str(p, end, "\", \"attributes\": {");
    if (name) {
        p = put_str(put_str(p, end, "\""), end, name);
        p = put_str(put_str(p, end, "\": \""), end, value);
        p = put_str(p, end, "\"");
    }
    p = put_str(p, end, "}}\n");
    /* By name each time: who rotates the file renames it. */
    int fd = (int)sys(openat, mon.directory, "../../events/log", O_WRONLY_ | O_CREAT_ | O_APPEND_ | O_NOFOLLOW_ | CLOEXEC, 0600);
    if (fd >= 0)
        sys(write, fd, line, (long)(p - line));
    close_fd(&fd);
}
