/* A wall clock that can jump, for one process and what it starts (LD_PRELOAD).

   An offset in whole seconds, read from the mapped file CHAOS_CLOCK, is added to CLOCK_REALTIME. Waits until a moment of
   that clock end when this clock, not the kernel's, reaches it; so they also feel a jump. To that end they are cut into
   short pieces, and a piece that is over looks like a spurious wake-up, which every such call may have. The monotonic
   clock stays as it is. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define PIECE 200000000L    /* nanoseconds */
#define SECOND 1000000000L  /* nanoseconds */
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static volatile long long *offset;
static __typeof__(&clock_gettime) real_gettime;
static __typeof__(&syscall) real_syscall;
static __typeof__(&pthread_cond_timedwait) real_timedwait;
static __typeof__(&pthread_cond_clockwait) real_clockwait;
static __typeof__(&sem_timedwait) real_sem;

__attribute__((constructor)) static void start(void) {
  const char *path = getenv("CHAOS_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  real_gettime = NEXT(clock_gettime);
  real_syscall = NEXT(syscall);
  real_timedwait = NEXT(pthread_cond_timedwait);
  real_clockwait = NEXT(pthread_cond_clockwait);
  real_sem = NEXT(sem_timedwait);
  if (file < 0) return;
  void *mapped = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
  if (mapped != MAP_FAILED) offset = mapped;
  close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  if (!real_gettime) real_gettime = NEXT(clock_gettime);
  int code = real_gettime(clock, now);
  if (!code && clock == CLOCK_REALTIME && offset) now->tv_sec += *offset;
  return code;
}

int gettimeofday(struct timeval *now, void *zone) {
  struct timespec exact;
  (void)zone;
  if (clock_gettime(CLOCK_REALTIME, &exact)) return -1;
  now->tv_sec = exact.tv_sec, now->tv_usec = exact.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *now) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (now) *now = exact.tv_sec;
  return exact.tv_sec;
}

/* The end of the next piece of a wait until `deadline`, by the kernel's clock. Returns whether the wait ends with it. */
static int piece(const struct timespec *deadline, struct timespec *end) {
  struct timespec now;
  real_gettime(CLOCK_REALTIME, &now);
  long long ahead = offset ? *offset : 0;
  if (__builtin_sub_overflow(deadline->tv_sec, ahead, &end->tv_sec)) end->tv_sec = LONG_MAX; /* for ever */
  if (end->tv_sec < 0) end->tv_sec = 0; /* long ago; the kernel knows no moment before 1970 */
  end->tv_nsec = deadline->tv_nsec;
  long seconds = end->tv_sec - now.tv_sec;
  if (seconds <= 1 && seconds * SECOND + end->tv_nsec - now.tv_nsec <= PIECE) return 1;
  now.tv_nsec += PIECE;
  end->tv_sec = now.tv_sec + now.tv_nsec / SECOND, end->tv_nsec = now.tv_nsec % SECOND;
  return 0;
}

int pthread_cond_clockwait(pthread_cond_t *cond, pthread_mutex_t *mutex, clockid_t clock, const struct timespec *until) {
  struct timespec end;
  if (!real_clockwait) start();
  if (clock != CLOCK_REALTIME) return real_clockwait(cond, mutex, clock, until);
  int last = piece(until, &end), code = real_clockwait(cond, mutex, clock, &end);
  return code == ETIMEDOUT && !last ? 0 : code;
}

/* Which clock a condition waits by is its secret, but no machine has been up for thirty years. */
int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *until) {
  struct timespec end;
  if (!real_timedwait) start();
  if (until->tv_sec < 1000000000) return real_timedwait(cond, mutex, until);
  int last = piece(until, &end), code = real_timedwait(cond, mutex, &end);
  return code == ETIMEDOUT && !last ? 0 : code;
}

int sem_timedwait(sem_t *semaphore, const struct timespec *until) {
  struct timespec end;
  if (!real_sem) start();
  int last = piece(until, &end), code = real_sem(semaphore, &end);
  if (code && errno == ETIMEDOUT && !last) errno = EINTR;
  return code;
}

/* Abseil, and with it XLA and TensorStore, waits by the futex itself. */
long syscall(long number, ...) {
  long a[6];
  va_list rest;
  va_start(rest, number);
  for (int index = 0; index < 6; index++) a[index] = va_arg(rest, long);
  va_end(rest);
  if (!real_syscall) start();
  const struct timespec *until = (const struct timespec *)a[3];
  int waits = number == SYS_futex && (a[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET && (a[1] & FUTEX_CLOCK_REALTIME);
  if (!waits || !until) return real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
  struct timespec end;
  int last = piece(until, &end);
  long code = real_syscall(number, a[0], a[1], a[2], (long)&end, a[4], a[5]);
  if (code && errno == ETIMEDOUT && !last) errno = EINTR;
  return code;
}
