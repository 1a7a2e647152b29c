/* seccomp_load ROUNDS CALLS FILTER...: each filter is loaded in ROUNDS processes of its own, in turn with the others, and
 * then getppid is called CALLS times. Prints a line for each: nanoseconds to load and nanoseconds of a call, as medians.
 * "-" is no filter.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define FILTERS_MAX 16

struct filter {
    unsigned short size;
    void *code;
};

struct result {
    uint64_t load, call;
};

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void measure(const struct filter *filter, long calls, struct result *result)
{
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    uint64_t begin = now();
    if (filter->size && syscall(SYS_seccomp, 1 /* SET_MODE_FILTER */, 4 /* SPEC_ALLOW */, filter) != 0)
        _exit(1);
    uint64_t loaded = now();
    for (long i = 0; i < calls; i++)
        syscall(SYS_getppid);
    result->call = (now() - loaded) * 1000 / (uint64_t)calls; /* picoseconds: they are few */
    result->load = loaded - begin;
}

int main(int argc, char **argv)
{
    struct filter filters[FILTERS_MAX] = {0};
    int count = argc - 3;
    if (count < 1 || count > FILTERS_MAX)
        return 2;
    long rounds = atol(argv[1]), calls = atol(argv[2]);
    for (int i = 0; i < count; i++) {
        int fd = strcmp(argv[i + 3], "-") ? open(argv[i + 3], O_RDONLY) : -1;
        filters[i].code = malloc(4096 * 8);
        filters[i].size = (unsigned short)((fd < 0 ? 0 : read(fd, filters[i].code, 4096 * 8)) / 8);
    }
    size_t size = (size_t)(rounds * count) * sizeof(struct result);
    struct result *results = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (long round = 0; round < rounds; round++)
        for (int i = 0; i < count; i++) {
            int status = 1;
            pid_t child = fork();
            if (child == 0) {
                measure(&filters[i], calls, &results[i * rounds + round]);
                _exit(0);
            }
            if (waitpid(child, &status, 0) != child || status != 0)
                return 1;
        }
    uint64_t *column = malloc((size_t)rounds * sizeof *column);
    for (int i = 0; i < count; i++)
        for (int what = 0; what < 2; what++) {
            for (long round = 0; round < rounds; round++)
                column[round] = what ? results[i * rounds + round].call : results[i * rounds + round].load;
            qsort(column, (size_t)rounds, sizeof *column, compare);
            printf("%llu%c", (unsigned long long)column[rounds / 2], what ? '\n' : ' ');
        }
    return 0;
}
