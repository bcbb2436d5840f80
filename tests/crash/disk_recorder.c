/* Writes down, in one order, what a process does to the files below one folder.

   Loaded before the C library (LD_PRELOAD). POWER_ROOT names the folder, POWER_LOG the log. Each
   change and each sync is one record: a header, then two blobs. A call and its record are made
   under one lock, so that the order in the log is that of the disk. Syncs are not carried out: the
   reader of the log decides what they would have kept. Calls that would pass unseen here (a file
   opened for writing through stdio) are recorded as UNSEEN, and the reader refuses the log. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind {
    OPEN = 1, CLOSE, WRITE, TRUNCATE, ALLOCATE, PUNCH, SYNC, MKDIR, RMDIR, UNLINK, RENAME, MARK,
    UNSEEN,
};

struct header {
    uint32_t kind;
    int32_t fd;
    int64_t a, b;
    uint32_t first, second;
};

#define MOST_FDS 65536
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static char root[PATH_MAX];
static size_t root_length;
static int log_fd = -1;
static pid_t owner;
static unsigned char is_ours[MOST_FDS];

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("POWER_ROOT"), *path = getenv("POWER_LOG");
    if (folder == NULL || path == NULL) return;
    root_length = strlen(strncpy(root, folder, PATH_MAX - 1));
    owner = getpid();
    log_fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC,
                          0666);
}

static void emit(enum kind kind, int fd, int64_t a, int64_t b, const void *first,
                 size_t first_length, const void *second, size_t second_length) {
    struct header header = {kind, fd, a, b, (uint32_t)first_length, (uint32_t)second_length};
    struct iovec parts[3] = {{&header, sizeof header},
                             {(void *)first, first_length},
                             {(void *)second, second_length}};
    size_t wanted = sizeof header + first_length + second_length;
    int kept = errno;
    if (syscall(SYS_writev, log_fd, parts, 3) != (long)wanted) abort();
    errno = kept;
}

static int recording(void) { return log_fd >= 0 && getpid() == owner; }

static int ours(int fd) { return recording() && fd >= 0 && fd < MOST_FDS && is_ours[fd]; }

/* The absolute path, if it is the folder or lies in it; else NULL. */
static const char *inside(int dirfd, const char *path, char *room) {
    if (!recording() || path == NULL) return NULL;
    if (path[0] == '/') {
        snprintf(room, PATH_MAX, "%s", path);
    } else {
        char link[64];
        ssize_t length;
        snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
        length = dirfd == AT_FDCWD ? (getcwd(room, PATH_MAX) ? (ssize_t)strlen(room) : -1)
                                   : readlink(link, room, PATH_MAX - 1);
        if (length < 0) return NULL;
        snprintf(room + length, PATH_MAX - (size_t)length, "/%s", path);
    }
    if (strncmp(room, root, root_length) != 0) return NULL;
    return room[root_length] == '/' || room[root_length] == 0 ? room : NULL;
}

static int opened(int fd, int dirfd, const char *path, int flags) {
    char room[PATH_MAX];
    const char *full = inside(dirfd, path, room);
    if (fd >= 0 && fd < MOST_FDS && recording()) {
        is_ours[fd] = full != NULL;
        if (full) emit(OPEN, fd, flags, 0, full, strlen(full), NULL, 0);
    }
    return fd;
}

#define MODE(flags, last)                                                                         \
    mode_t mode = 0;                                                                              \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {                                                      \
        va_list rest;                                                                             \
        va_start(rest, last);                                                                     \
        mode = va_arg(rest, mode_t);                                                              \
        va_end(rest);                                                                             \
    }

static int open_at(int dirfd, const char *path, int flags, mode_t mode) {
    int fd;
    pthread_mutex_lock(&lock);
    fd = (int)syscall(SYS_openat, dirfd, path, flags, mode);
    opened(fd, dirfd, path, flags);
    pthread_mutex_unlock(&lock);
    return fd;
}

int open(const char *path, int flags, ...) {
    MODE(flags, flags)
    return open_at(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE(flags, flags)
    return open_at(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}
int openat(int dirfd, const char *path, int flags, ...) {
    MODE(flags, flags)
    return open_at(dirfd, path, flags, mode);
}
int openat64(int dirfd, const char *path, int flags, ...) {
    MODE(flags, flags)
    return open_at(dirfd, path, flags | O_LARGEFILE, mode);
}
int creat(const char *path, mode_t mode) {
    return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

static void stdio_opens(const char *path, const char *how) {
    char room[PATH_MAX];
    const char *full = inside(AT_FDCWD, path, room);
    if (full && (how[0] != 'r' || strchr(how, '+'))) {
        emit(UNSEEN, -1, 0, 0, full, strlen(full), NULL, 0);
    }
}
FILE *fopen(const char *path, const char *how) {
    stdio_opens(path, how);
    return REAL(fopen)(path, how);
}
FILE *fopen64(const char *path, const char *how) {
    stdio_opens(path, how);
    return REAL(fopen64)(path, how);
}

int close(int fd) {
    int done;
    pthread_mutex_lock(&lock);
    if (ours(fd)) {
        is_ours[fd] = 0;
        emit(CLOSE, fd, 0, 0, NULL, 0, NULL, 0);
    }
    done = (int)syscall(SYS_close, fd);
    pthread_mutex_unlock(&lock);
    return done;
}

/* Where a write without an offset begins. */
static int64_t at_now(int fd) {
    struct stat found;
    int flags = (int)syscall(SYS_fcntl, fd, F_GETFL);
    if (flags & O_APPEND && fstat(fd, &found) == 0) return found.st_size;
    return lseek(fd, 0, SEEK_CUR);
}

static ssize_t written(int fd, int64_t at, const void *data, ssize_t done) {
    if (done > 0) emit(WRITE, fd, at, 0, data, (size_t)done, NULL, 0);
    return done;
}

ssize_t write(int fd, const void *data, size_t length) {
    int64_t at;
    ssize_t done;
    if (!ours(fd)) return syscall(SYS_write, fd, data, length);
    pthread_mutex_lock(&lock);
    at = at_now(fd);
    done = written(fd, at, data, syscall(SYS_write, fd, data, length));
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at) {
    ssize_t done;
    if (!ours(fd)) return syscall(SYS_pwrite64, fd, data, length, at);
    pthread_mutex_lock(&lock);
    done = written(fd, at, data, syscall(SYS_pwrite64, fd, data, length, at));
    pthread_mutex_unlock(&lock);
    return done;
}
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t at) {
    return pwrite(fd, data, length, at);
}

static ssize_t vector(int fd, const struct iovec *parts, int count, int64_t at, int has_place) {
    ssize_t all = 0;
    for (int i = 0; i < count; i++) {
        ssize_t done = has_place ? pwrite(fd, parts[i].iov_base, parts[i].iov_len, at + all)
                                 : write(fd, parts[i].iov_base, parts[i].iov_len);
        if (done < 0) return all ? all : done;
        all += done;
        if ((size_t)done < parts[i].iov_len) break;
    }
    return all;
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (!ours(fd)) return syscall(SYS_writev, fd, parts, count);
    return vector(fd, parts, count, 0, 0);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    if (!ours(fd)) return REAL(pwritev)(fd, parts, count, at);
    return vector(fd, parts, count, at, 1);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) {
    return pwritev(fd, parts, count, at);
}

int ftruncate(int fd, off_t size) {
    int done;
    pthread_mutex_lock(&lock);
    done = (int)syscall(SYS_ftruncate, fd, size);
    if (done == 0 && ours(fd)) emit(TRUNCATE, fd, size, 0, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

int truncate(const char *path, off_t size) {
    int fd = open(path, O_WRONLY | O_CLOEXEC), done;
    if (fd < 0) return -1;
    done = ftruncate(fd, size);
    close(fd);
    return done;
}
int truncate64(const char *path, off64_t size) { return truncate(path, size); }

int fallocate(int fd, int how, off_t at, off_t length) {
    int done;
    pthread_mutex_lock(&lock);
    done = (int)syscall(SYS_fallocate, fd, how, at, length);
    if (done == 0 && ours(fd)) {
        if (how & ~FALLOC_FL_KEEP_SIZE) {
            enum kind kind = how & FALLOC_FL_PUNCH_HOLE ? PUNCH : UNSEEN;
            emit(kind, fd, at, length, NULL, 0, NULL, 0);
        } else if (how == 0) {
            emit(ALLOCATE, fd, at, length, NULL, 0, NULL, 0);
        }
    }
    pthread_mutex_unlock(&lock);
    return done;
}
int fallocate64(int fd, int how, off64_t at, off64_t length) {
    return fallocate(fd, how, at, length);
}
int posix_fallocate(int fd, off_t at, off_t length) {
    return fallocate(fd, 0, at, length) == 0 ? 0 : errno;
}
int posix_fallocate64(int fd, off64_t at, off64_t length) {
    return posix_fallocate(fd, at, length);
}

/* A sync is an event with the file's identity, as a process would see it then. */
static int synced(int fd) {
    struct stat found;
    int64_t identity[5];
    pthread_mutex_lock(&lock);
    if (fstat(fd, &found) == 0) {
        identity[0] = (int64_t)found.st_dev;
        identity[1] = (int64_t)found.st_ino;
        identity[2] = found.st_size;
        identity[3] = found.st_mtim.tv_sec * 1000000000LL + found.st_mtim.tv_nsec;
        identity[4] = found.st_ctim.tv_sec * 1000000000LL + found.st_ctim.tv_nsec;
        emit(SYNC, fd, 0, 0, identity, sizeof identity, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return 0;
}
int fsync(int fd) { return ours(fd) ? synced(fd) : (int)syscall(SYS_fsync, fd); }
int fdatasync(int fd) { return ours(fd) ? synced(fd) : (int)syscall(SYS_fdatasync, fd); }

static int named(enum kind kind, int done, int dirfd, const char *path) {
    char room[PATH_MAX];
    const char *full = inside(dirfd, path, room);
    if (done == 0 && full) emit(kind, -1, 0, 0, full, strlen(full), NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}

int mkdirat(int dirfd, const char *path, mode_t mode) {
    pthread_mutex_lock(&lock);
    return named(MKDIR, (int)syscall(SYS_mkdirat, dirfd, path, mode), dirfd, path);
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int unlinkat(int dirfd, const char *path, int flags) {
    pthread_mutex_lock(&lock);
    return named(flags & AT_REMOVEDIR ? RMDIR : UNLINK,
                 (int)syscall(SYS_unlinkat, dirfd, path, flags), dirfd, path);
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path) {
    int done = unlink(path);
    return done != 0 && errno == EISDIR ? rmdir(path) : done;
}

int renameat2(int from, const char *path, int to, const char *target, unsigned flags) {
    char first[PATH_MAX], second[PATH_MAX];
    int done;
    pthread_mutex_lock(&lock);
    done = (int)syscall(SYS_renameat2, from, path, to, target, flags);
    if (done == 0) {
        const char *one = inside(from, path, first), *other = inside(to, target, second);
        if (one && other && !flags) {
            emit(RENAME, -1, 0, 0, one, strlen(one), other, strlen(other));
        } else if (one || other) {
            const char *seen = one ? one : other;
            emit(UNSEEN, -1, 0, 0, seen, strlen(seen), NULL, 0);
        }
    }
    pthread_mutex_unlock(&lock);
    return done;
}
int renameat(int from, const char *path, int to, const char *target) {
    return renameat2(from, path, to, target, 0);
}
int rename(const char *path, const char *target) {
    return renameat2(AT_FDCWD, path, AT_FDCWD, target, 0);
}

/* A word of the process itself, in its place in the order. */
void power_mark(const void *data, size_t length) {
    pthread_mutex_lock(&lock);
    if (recording()) emit(MARK, -1, 0, 0, data, length, NULL, 0);
    pthread_mutex_unlock(&lock);
}
