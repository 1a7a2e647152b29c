/* The floor that the cost of a control group is measured against.
 *
 *   cgroup_reference N PROGRAM DIRECTORY...
 *
 * starts PROGRAM N times without and N times within a new control group, by turns, and prints one line of JSON:
 *   {"plain_us": [...], "inside_us": [...], "create_us": [...], "remove_us": [...]}
 * `plain` is a start and its reaping. `inside` is that, with the group made before and removed after it; `create` and
 * `remove` are those parts of it. DIRECTORY... are where the group is made: one of v2, one for each v1 hierarchy, or both.
 *
 * The kernel is made to do what containerkit.Cgroup makes it do, and nothing else: mkdir and open in each hierarchy; on v2
 * the start goes straight into the group (CLONE_INTO_CGROUP), on v1 the child writes "0" to each `tasks`; rmdir, again
 * while the last process is still on its way out.
 *
 * Linux 5.7, root.  cc -O2 -std=gnu17 -Wall -Wextra -Werror cgroup_reference.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define DIRECTORIES_MAX 16
#define TRY(call)                                        \
    do {                                                 \
        if ((call) < 0) {                                \
            perror("cgroup_reference: " #call);          \
            return -1;                                   \
        }                                                \
    } while (0)

struct group {
    char name[32];
    int count;
    int base[DIRECTORIES_MAX], directory[DIRECTORIES_MAX], tasks[DIRECTORIES_MAX]; /* tasks: -1 on v2 */
};

struct times {
    double *plain, *inside, *create, *remove;
};

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int is_v2(int directory)
{
    struct statfs fs;
    return fstatfs(directory, &fs) == 0 && fs.f_type == CGROUP2_SUPER_MAGIC;
}

static int create(struct group *g)
{
    for (int i = 0; i < g->count; i++) {
        TRY(mkdirat(g->base[i], g->name, 0755));
        TRY(g->directory[i] = openat(g->base[i], g->name, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        g->tasks[i] = -1;
        if (!is_v2(g->directory[i]))
            TRY(g->tasks[i] = openat(g->directory[i], "tasks", O_WRONLY | O_CLOEXEC));
    }
    return 0;
}

static int remove_group(struct group *g)
{
    for (int i = 0; i < g->count; i++) {
        if (g->tasks[i] >= 0)
            close(g->tasks[i]);
        close(g->directory[i]);
        int r;
        while ((r = unlinkat(g->base[i], g->name, AT_REMOVEDIR)) < 0 && errno == EBUSY)
            usleep(20);
        TRY(r);
    }
    return 0;
}

static int start(char *program, struct group *g)
{
    struct clone_args args = {.flags = CLONE_VFORK, .exit_signal = SIGCHLD};
    for (int i = 0; g && i < g->count; i++)
        if (g->tasks[i] < 0) {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = (uint64_t)g->directory[i];
        }
    char *argv[] = {program, NULL}, *envp[] = {NULL};
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0) {
        for (int i = 0; g && i < g->count; i++)
            if (g->tasks[i] >= 0 && write(g->tasks[i], "0", 1) < 0)
                _exit(70);
        execve(program, argv, envp);
        _exit(71);
    }
    int status;
    TRY(pid);
    TRY(waitpid((pid_t)pid, &status, 0));
    if (status != 0)
        fprintf(stderr, "cgroup_reference: %s ended with status %#x\n", program, (unsigned)status);
    return status == 0 ? 0 : -1;
}

static int measure(char *program, struct group *g, struct times *t, int i)
{
    double begin = now_us();
    TRY(start(program, NULL));
    t->plain[i] = now_us() - begin;

    begin = now_us();
    TRY(create(g));
    double made = now_us();
    int failed = start(program, g);
    double ended = now_us();
    TRY(remove_group(g));
    double removed = now_us();
    t->create[i] = made - begin;
    t->remove[i] = removed - ended;
    t->inside[i] = removed - begin;
    return failed;
}

static void print_list(const char *name, const double *values, int count, const char *end)
{
    printf("\"%s\": [", name);
    for (int i = 0; i < count; i++)
        printf("%s%.1f", i ? ", " : "", values[i]);
    printf("]%s", end);
}

int main(int argc, char **argv)
{
    int runs = argc > 3 ? atoi(argv[1]) : 0;
    struct group group = {.count = argc - 3};
    if (runs < 1 || group.count > DIRECTORIES_MAX) {
        fprintf(stderr, "usage: cgroup_reference N PROGRAM DIRECTORY...\n");
        return 2;
    }
    snprintf(group.name, sizeof group.name, "ckref-%d", getpid());
    for (int i = 0; i < group.count; i++)
        if ((group.base[i] = open(argv[i + 3], O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0) {
            perror(argv[i + 3]);
            return 1;
        }
    double *values = calloc((size_t)runs * 4, sizeof *values);
    if (!values)
        return 1;
    struct times times = {values, values + runs, values + 2 * runs, values + 3 * runs};
    for (int i = 0; i < runs; i++)
        if (measure(argv[2], &group, &times, i) < 0)
            return 1;
    printf("{");
    print_list("plain_us", times.plain, runs, ", ");
    print_list("inside_us", times.inside, runs, ", ");
    print_list("create_us", times.create, runs, ", ");
    print_list("remove_us", times.remove, runs, "}\n");
    return 0;
}
