#include "support.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

void check(int holds, const char* condition, const char* file, int line) {
  if (holds) return;
  fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, condition);
  exit(1);
}

void check_status(ferry_status got,
                  ferry_status expected,
                  const char* text,
                  const char* call,
                  const char* file,
                  int line) {
  const char* said = ferry_last_error();
  if (got == expected && (text == NULL || strstr(said, text) != NULL) && strchr(said, '\n') == NULL)
    return;
  fprintf(stderr,
          "%s:%d: %s returned %s (%s), not %s (%s)\n",
          file,
          line,
          call,
          ferry_status_name(got),
          said,
          ferry_status_name(expected),
          text != NULL ? text : "");
  exit(1);
}

/* --- A store ---------------------------------------------------------------------------------- */

struct entry {
  char* key;
  void* value;
  size_t bytes;
  struct entry* next;
};

struct store {
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  struct entry* entries;
};

store* new_store(void) {
  store* s = calloc(1, sizeof *s);
  CHECK(s != NULL);
  pthread_mutex_init(&s->mutex, NULL);
  pthread_cond_init(&s->changed, NULL);
  return s;
}

static struct entry** find(store* s, const char* key) {
  struct entry** at = &s->entries;
  while (*at != NULL && strcmp((*at)->key, key) != 0) at = &(*at)->next;
  return at;
}

static void drop(struct entry** at) {
  struct entry* e = *at;
  *at = e->next;
  free(e->key);
  free(e->value);
  free(e);
}

void delete_store(store* s) {
  while (s->entries != NULL) drop(&s->entries);
  pthread_mutex_destroy(&s->mutex);
  pthread_cond_destroy(&s->changed);
  free(s);
}

static ferry_status set(void* context, const char* key, const void* value, size_t bytes) {
  store* s = context;
  struct entry* e = calloc(1, sizeof *e);
  e->key = malloc(strlen(key) + 1);
  strcpy(e->key, key);
  e->value = malloc(bytes + 1);
  memcpy(e->value, value, bytes);
  e->bytes = bytes;
  pthread_mutex_lock(&s->mutex);
  struct entry** at = find(s, key);
  if (*at != NULL) drop(at);
  e->next = s->entries;
  s->entries = e;
  pthread_cond_broadcast(&s->changed);
  pthread_mutex_unlock(&s->mutex);
  return FERRY_OK;
}

static ferry_status wait_for(void* context,
                             const char* key,
                             double timeout_s,
                             ferry_store_value* value) {
  store* s = context;
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  if (timeout_s > 1e6) timeout_s = 1e6;
  until.tv_sec += (time_t)timeout_s;
  until.tv_nsec += (long)((timeout_s - floor(timeout_s)) * 1e9);
  if (until.tv_nsec >= 1000000000L) {
    until.tv_nsec -= 1000000000L;
    ++until.tv_sec;
  }
  ferry_status status = FERRY_TIMED_OUT;
  pthread_mutex_lock(&s->mutex);
  for (;;) {
    struct entry* e = *find(s, key);
    if (e != NULL) {
      status = ferry_store_value_assign(value, e->value, e->bytes);
      break;
    }
    if (timeout_s <= 0 || pthread_cond_timedwait(&s->changed, &s->mutex, &until) != 0) break;
  }
  pthread_mutex_unlock(&s->mutex);
  return status;
}

static ferry_status forget(void* context, const char* key) {
  store* s = context;
  pthread_mutex_lock(&s->mutex);
  struct entry** at = find(s, key);
  if (*at != NULL) drop(at);
  pthread_mutex_unlock(&s->mutex);
  return FERRY_OK;
}

ferry_store callbacks_of(store* s) {
  ferry_store callbacks = FERRY_STORE_INIT;
  callbacks.context = s;
  callbacks.set = set;
  callbacks.wait = wait_for;
  callbacks.remove = forget;
  return callbacks;
}

/* --- Ranks ------------------------------------------------------------------------------------ */

struct rank_thread {
  pthread_t thread;
  int rank, ranks;
  store* meet;
  void (*body)(ferry_comm*, void*);
  void* context;
};

static void* run_rank(void* argument) {
  struct rank_thread* r = argument;
  ferry_comm_options options = FERRY_COMM_OPTIONS_INIT;
  options.transport = "inproc";
  options.rank = r->rank;
  options.num_ranks = r->ranks;
  ferry_store callbacks = callbacks_of(r->meet);
  ferry_comm* comm = NULL;
  OK(ferry_comm_create_from_store(&options, &callbacks, &comm));
  r->body(comm, r->context);
  OK(ferry_comm_destroy(comm));
  return NULL;
}

void on_threads(int ranks, void (*body)(ferry_comm*, void*), void* context) {
  struct rank_thread all[16];
  CHECK(ranks <= 16);
  store* meet = new_store();
  for (int r = 0; r < ranks; ++r) {
    struct rank_thread one = {0, r, ranks, meet, body, context};
    all[r] = one;
    CHECK(pthread_create(&all[r].thread, NULL, run_rank, &all[r]) == 0);
  }
  for (int r = 0; r < ranks; ++r) pthread_join(all[r].thread, NULL);
  delete_store(meet);
}

void on_processes(int ranks, void (*body)(ferry_comm*, void*), void* context, int* statuses) {
  const ferry_comm_options options = FERRY_COMM_OPTIONS_INIT;
  on_processes_with(&options, ranks, body, context, statuses);
}

void on_processes_with(const ferry_comm_options* with,
                       int ranks,
                       void (*body)(ferry_comm*, void*),
                       void* context,
                       int* statuses) {
  pid_t pids[16];
  const int port = free_port();
  CHECK(ranks <= 16);
  fflush(NULL);
  for (int r = 0; r < ranks; ++r) {
    pids[r] = fork();
    if (pids[r] != 0) continue;
    ferry_comm_options options = *with;
    options.rank = r;
    options.num_ranks = ranks;
    ferry_comm* comm = NULL;
    OK(ferry_comm_create_from_address(&options, "127.0.0.1", port, NULL, &comm));
    body(comm, context);
    OK(ferry_comm_destroy(comm));
    exit(0);
  }
  for (int r = 0; r < ranks; ++r) {
    int status = 0;
    CHECK(waitpid(pids[r], &status, 0) == pids[r]);
    if (WIFEXITED(status)) CHECK(WEXITSTATUS(status) == 0);
    statuses[r] = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  }
}

static ferry_comm_info info_of(ferry_comm* comm) {
  ferry_comm_info info = FERRY_COMM_INFO_INIT;
  OK(ferry_comm_info_get(comm, &info));
  return info;
}

int rank_of(ferry_comm* comm) { return info_of(comm).rank; }

int ranks_of(ferry_comm* comm) { return info_of(comm).num_ranks; }

/* --- This process ----------------------------------------------------------------------------- */

int long_tests(void) { return getenv("FERRY_LONG_TESTS") != NULL; }

static long entries_of(const char* directory) {
  DIR* d = opendir(directory);
  long count = 0;
  CHECK(d != NULL);
  while (readdir(d) != NULL) ++count;
  closedir(d);
  return count;
}

long open_descriptors(void) { return entries_of("/proc/self/fd"); }

long threads(void) { return entries_of("/proc/self/task"); }

long resident_kb(void) {
  long pages = 0;
  FILE* statm = fopen("/proc/self/statm", "r");
  CHECK(statm != NULL && fscanf(statm, "%*d %ld", &pages) == 1);
  fclose(statm);
  return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

int free_port(void) {
  struct sockaddr_in address;
  socklen_t length = sizeof address;
  const int s = socket(AF_INET, SOCK_STREAM, 0);
  memset(&address, 0, sizeof address);
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(s >= 0 && bind(s, (struct sockaddr*)&address, sizeof address) == 0);
  CHECK(getsockname(s, (struct sockaddr*)&address, &length) == 0);
  close(s);
  return ntohs(address.sin_port);
}
