/* Reads and writes below a folder that fail from a certain call on: see shim.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[4096];
static size_t folder_bytes;
static int left = -1, error_number, on_reading, is_armed;

void torture_arm(const char *path, int count, int number, int reading) {
    strncpy(folder, path, sizeof folder - 1);
    folder_bytes = strlen(folder);
    left = count;
    error_number = number;
    on_reading = reading;
    is_armed = 1;
}

static int fails(int descriptor, int is_read) {
    char link[64], target[4096];
    ssize_t bytes;
    if (!is_armed || is_read != on_reading) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    bytes = readlink(link, target, sizeof target - 1);
    if (bytes < (ssize_t)folder_bytes || strncmp(target, folder, folder_bytes)) return 0;
    if (__atomic_fetch_sub(&left, 1, __ATOMIC_SEQ_CST) > 0) return 0;
    errno = error_number;
    return 1;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *b, size_t n) { REAL(write); return fails(fd, 0) ? -1 : real(fd, b, n); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { REAL(pwrite); return fails(fd, 0) ? -1 : real(fd, b, n, o); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) { REAL(pwrite64); return fails(fd, 0) ? -1 : real(fd, b, n, o); }
ssize_t writev(int fd, const struct iovec *v, int n) { REAL(writev); return fails(fd, 0) ? -1 : real(fd, v, n); }
int fsync(int fd) { REAL(fsync); return fails(fd, 0) ? -1 : real(fd); }
ssize_t read(int fd, void *b, size_t n) { REAL(read); return fails(fd, 1) ? -1 : real(fd, b, n); }
ssize_t pread(int fd, void *b, size_t n, off_t o) { REAL(pread); return fails(fd, 1) ? -1 : real(fd, b, n, o); }
ssize_t pread64(int fd, void *b, size_t n, off64_t o) { REAL(pread64); return fails(fd, 1) ? -1 : real(fd, b, n, o); }
ssize_t preadv(int fd, const struct iovec *v, int n, off_t o) { REAL(preadv); return fails(fd, 1) ? -1 : real(fd, v, n, o); }
ssize_t preadv64(int fd, const struct iovec *v, int n, off64_t o) { REAL(preadv64); return fails(fd, 1) ? -1 : real(fd, v, n, o); }
