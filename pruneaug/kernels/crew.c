/* The threads that kernels share their work among, in place of TVM's: a job is handed over by one store and one load,
   some 0.1 microseconds where TVM's queues take 0.7, which small networks are made of.

   One thread at a time has the crew. Whoever does not get it, or has not asked for it, gets TVM's threads. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <time.h>

typedef int (*Task)(int number, void* group, void* data);
typedef int (*Launch)(Task task, void* data, int tasks);

typedef struct { /* TVM's TVMParallelGroupEnv */
  void* sync_handle;
  int32_t num_task;
} Group;

enum { MOST = 256, LINE = 64, SPINS = 64 };
static const int64_t AWAKE_NS = 2000000; /* longer than any gap between two kernels of a network */
static const int64_t PATIENCE_NS = 100000; /* then another process may have our core */

typedef struct {
  uint64_t posted __attribute__((aligned(LINE))); /* the last job that is this worker's */
  uint64_t done __attribute__((aligned(LINE)));   /* the last job that it has done */
  int code;
} Worker;

static Worker workers[MOST];
static struct {
  Task task;
  void* data;
  int tasks, threads;
} job __attribute__((aligned(LINE)));
static uint64_t jobs;
static int started = 1; /* with the thread that launches */
static int taken;
static int asleep;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static Launch others;
static __thread int wanted; /* threads, by the calling thread */

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int run(int first) {
  Group group = {0, job.tasks};
  int code = 0;
  for (int i = first; i < job.tasks; i += job.threads)
    if (job.task(i, &group, job.data) != 0) code = -1;
  return code;
}

/* Until `*number` is not `old`, but not for long. */
static uint64_t watch(const uint64_t* number, uint64_t old, int64_t most_ns) {
  int64_t start = now_ns();
  do {
    for (int i = 0; i < SPINS; ++i) {
      uint64_t found = __atomic_load_n(number, __ATOMIC_ACQUIRE);
      if (found != old) return found;
      relax();
    }
  } while (now_ns() - start < most_ns);
  return old;
}

static uint64_t sleep_until(const uint64_t* number, uint64_t old) {
  uint64_t found;
  pthread_mutex_lock(&mutex);
  /* Either the launcher sees that somebody sleeps, or we see its job. */
  __atomic_add_fetch(&asleep, 1, __ATOMIC_SEQ_CST);
  while ((found = __atomic_load_n(number, __ATOMIC_SEQ_CST)) == old) pthread_cond_wait(&wake, &mutex);
  __atomic_sub_fetch(&asleep, 1, __ATOMIC_SEQ_CST);
  pthread_mutex_unlock(&mutex);
  return found;
}

static void* work(void* number) {
  int me = (int)(intptr_t)number;
  Worker* worker = &workers[me];
  uint64_t seen = __atomic_load_n(&worker->done, __ATOMIC_RELAXED);
  for (;;) {
    uint64_t next = watch(&worker->posted, seen, AWAKE_NS);
    if (next == seen) next = sleep_until(&worker->posted, seen);
    seen = next;
    worker->code = run(me);
    __atomic_store_n(&worker->done, seen, __ATOMIC_RELEASE);
  }
  return 0;
}

static int start(int threads) {
  for (; started < threads; ++started) {
    pthread_t thread;
    workers[started].posted = workers[started].done = jobs;
    if (pthread_create(&thread, 0, work, (void*)(intptr_t)started) != 0) return 0;
    pthread_detach(thread);
  }
  return 1;
}

static void forget(void) { /* in a child process, which has none of the threads */
  started = 1;
  taken = asleep = 0;
  pthread_mutex_init(&mutex, 0);
  pthread_cond_init(&wake, 0);
}

#ifdef __cplusplus /* whatever compiler links the kernels */
extern "C" {
#endif

/* `launch` is TVM's own TVMBackendParallelLaunch. Called once. */
void pruneaug_crew_begin(Launch launch) {
  others = launch;
  pthread_atfork(0, 0, forget);
}

/* How many threads the kernels use that the calling thread starts; 0: TVM's. */
void pruneaug_crew_threads(int threads) { wanted = threads <= MOST ? threads : 0; }

/* Stands for TVMBackendParallelLaunch: `task` for 0 to tasks - 1; as many as there are threads if `tasks` is 0. */
int pruneaug_crew_launch(Task task, void* data, int tasks) {
  int threads = wanted, code;
  if (threads == 0 || __atomic_exchange_n(&taken, 1, __ATOMIC_ACQUIRE)) return others(task, data, tasks);
  if (!start(threads)) {
    __atomic_store_n(&taken, 0, __ATOMIC_RELEASE);
    return others(task, data, tasks);
  }
  job.task = task;
  job.data = data;
  job.tasks = tasks ? tasks : threads;
  job.threads = threads;
  int busy = job.tasks < threads ? job.tasks : threads;
  ++jobs;
  for (int i = 1; i < busy; ++i) __atomic_store_n(&workers[i].posted, jobs, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&asleep, __ATOMIC_SEQ_CST)) {
    pthread_mutex_lock(&mutex);
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&mutex);
  }
  code = run(0);
  for (int i = 1; i < busy; ++i) {
    for (;;) {
      uint64_t done = __atomic_load_n(&workers[i].done, __ATOMIC_ACQUIRE);
      if (done == jobs || watch(&workers[i].done, done, PATIENCE_NS) == jobs) break;
      sched_yield();
    }
    if (workers[i].code != 0) code = -1;
  }
  __atomic_store_n(&taken, 0, __ATOMIC_RELEASE);
  return code;
}

#ifdef __cplusplus
}
#endif
