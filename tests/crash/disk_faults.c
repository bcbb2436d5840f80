/* Lets the n-th call to the disk about one file fail, whoever makes it: DuckDB or Python.

   Loaded before the C library (LD_PRELOAD). Calls about a file named FAULTY_FILE, or about its log
   (the same with .wal), are counted while armed, and told by kind: open for writing (o), write (w),
   sync (s), cut (t), remove (u). */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST 65536

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int armed, at, lasting, error, half, count, struck;
static char kinds[MOST];

void fault_arm(int call, int with, int halved, int for_good) {
    pthread_mutex_lock(&lock);
    armed = 1, at = call, error = with, half = halved, lasting = for_good, count = struck = 0;
    pthread_mutex_unlock(&lock);
}

/* All is well from now on. How many calls failed. */
int fault_heal(void) {
    armed = 0;
    return struck;
}

const char *fault_kinds(void) {
    kinds[count] = 0;
    return kinds;
}

/* Is this call, about this path, to fail? */
static int strikes(char kind, const char *path) {
    const char *end = getenv("FAULTY_FILE"), *name = path ? strrchr(path, '/') : NULL;
    size_t length = end ? strlen(end) : 0;
    int hit;
    if (!armed || !length || name == NULL || strncmp(name + 1, end, length) != 0) return 0;
    if (name[1 + length] != 0 && strcmp(name + 1 + length, ".wal") != 0) return 0;
    pthread_mutex_lock(&lock);
    if (count + 1 < MOST) kinds[count++] = kind;
    hit = count == at || (lasting && at > 0 && count > at);
    if (hit && half && kind != 'w') hit = 0;
    if (hit && error == ENOSPC && strchr("tu", kind)) hit = 0;
    if (hit) struck++, errno = error;
    pthread_mutex_unlock(&lock);
    return hit;
}

static int strikes_fd(char kind, int fd) {
    char link[64], path[PATH_MAX];
    ssize_t length;
    if (!armed) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strikes(kind, path);
}

static int open_at(int folder, const char *path, int flags, mode_t mode) {
    if (flags & (O_WRONLY | O_RDWR) && strikes('o', path)) return -1;
    return (int)syscall(SYS_openat, folder, path, flags, mode);
}

#define OPENS(name, folder, ...)                                                                  \
    int name(__VA_ARGS__, const char *path, int flags, ...) {                                     \
        va_list rest;                                                                             \
        mode_t mode;                                                                              \
        va_start(rest, flags);                                                                    \
        mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;                                        \
        va_end(rest);                                                                             \
        return open_at(folder, path, flags, mode);                                                \
    }
OPENS(openat, folder, int folder)
OPENS(openat64, folder, int folder)
#undef OPENS
#define OPENS(name)                                                                               \
    int name(const char *path, int flags, ...) {                                                  \
        va_list rest;                                                                             \
        mode_t mode;                                                                              \
        va_start(rest, flags);                                                                    \
        mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;                                        \
        va_end(rest);                                                                             \
        return open_at(AT_FDCWD, path, flags, mode);                                              \
    }
OPENS(open)
OPENS(open64)

ssize_t write(int fd, const void *data, size_t length) {
    if (strikes_fd('w', fd)) {
        if (!half || length < 2) return -1;
        length /= 2;
    }
    return syscall(SYS_write, fd, data, length);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) {
    if (strikes_fd('w', fd)) {
        if (!half || length < 2) return -1;
        length /= 2;
    }
    return syscall(SYS_pwrite64, fd, data, length, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) {
    return pwrite(fd, data, length, offset);
}

int fsync(int fd) { return strikes_fd('s', fd) ? -1 : (int)syscall(SYS_fsync, fd); }
int fdatasync(int fd) { return strikes_fd('s', fd) ? -1 : (int)syscall(SYS_fdatasync, fd); }

int ftruncate(int fd, off_t size) {
    return strikes_fd('t', fd) ? -1 : (int)syscall(SYS_ftruncate, fd, size);
}
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

int unlink(const char *path) {
    return strikes('u', path) ? -1 : (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}
int remove(const char *path) {
    int done = unlink(path);
    return done != 0 && errno == EISDIR ? rmdir(path) : done;
}
