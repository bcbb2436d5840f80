/* Preloaded into a process: its wall clock and its boot clock stand as far off the machine's as the
   file named by RECONCILER_TEST_CLOCK says (two 64-bit numbers of nanoseconds), from one moment to
   the next. The monotonic clock, and so every sleep and timeout, stays as it is. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
#include <dlfcn.h>

static volatile int64_t *offsets;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("RECONCILER_TEST_CLOCK");
    real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    if (path == NULL)
        return;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    void *there = fd < 0 ? MAP_FAILED : mmap(NULL, 16, PROT_READ, MAP_SHARED, fd, 0);
    if (there == MAP_FAILED)
        abort();
    close(fd);
    offsets = there;
}

int clock_gettime(clockid_t id, struct timespec *at)
{
    int done = real ? real(id, at) : (int)syscall(SYS_clock_gettime, id, at);
    if (done != 0 || offsets == NULL)
        return done;
    int64_t by = 0;
    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE || id == CLOCK_TAI)
        by = offsets[0];
    else if (id == CLOCK_BOOTTIME || id == CLOCK_BOOTTIME_ALARM)
        by = offsets[1];
    int64_t ns = (int64_t)at->tv_nsec + by % 1000000000;
    at->tv_sec += by / 1000000000;
    if (ns < 0) {
        ns += 1000000000;
        at->tv_sec -= 1;
    } else if (ns >= 1000000000) {
        ns -= 1000000000;
        at->tv_sec += 1;
    }
    at->tv_nsec = ns;
    return 0;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at != NULL)
        *at = now.tv_sec;
    return now.tv_sec;
}
