/* Statuses and comms. */
#include <fenv.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "support.h"
#include "tests.h"

void test_status(void) {
  CHECK(strcmp(ferry_last_error(), "") == 0 && ferry_last_error_rank() == -1);
  CHECK(strncmp(ferry_version(), "0.", 2) == 0);
  for (int s = FERRY_OK; s <= FERRY_DEFECT; ++s)
    CHECK(strncmp(ferry_status_name((ferry_status)s), "FERRY_", 6) == 0);
  CHECK(strcmp(ferry_status_name(FERRY_OUT_OF_ORDER), "FERRY_OUT_OF_ORDER") == 0);
  CHECK(strcmp(ferry_status_name((ferry_status)99), "unknown status") == 0);
  CHECK(ferry_wire_row_bytes(FERRY_WIRE_BF16, 100) == 200);
  CHECK(ferry_wire_row_bytes(FERRY_WIRE_FP8, 256) == 272); /* 256 values, two scales, up to 16 */
  CHECK(ferry_wire_row_bytes((ferry_wire)6, 1) == 0 &&
        ferry_wire_row_bytes(FERRY_WIRE_F32, -1) == 0);
}

static ferry_comm_options alone(void) {
  ferry_comm_options options = FERRY_COMM_OPTIONS_INIT;
  options.transport = "inproc";
  options.rank = 0;
  options.num_ranks = 1;
  return options;
}

static ferry_status create(const ferry_comm_options* options) {
  store* s = new_store();
  const ferry_store callbacks = callbacks_of(s);
  ferry_comm* comm = (ferry_comm*)options; /* not NULL */
  const ferry_status status = ferry_comm_create_from_store(options, &callbacks, &comm);
  if (status == FERRY_OK)
    OK(ferry_comm_destroy(comm));
  else
    CHECK(comm == NULL);
  delete_store(s);
  return status;
}

static void head_errors(void) {
  ferry_comm_options o = alone();
  OK(create(&o));
  FAILS(FERRY_INVALID, "ferry_comm_options is NULL", create(NULL));
  o.magic = FERRY_STORE_MAGIC;
  FAILS(FERRY_INVALID, "begin with FERRY_COMM_OPTIONS_INIT", create(&o));
  o = alone();
  o.size -= 1;
  FAILS(FERRY_INVALID, "bytes, this library knows", create(&o));

  /* A newer caller: its own members zero, or not. */
  struct {
    ferry_comm_options options;
    int64_t added;
  } newer = {FERRY_COMM_OPTIONS_INIT, 0};

  newer.options = alone();
  newer.options.size = sizeof newer;
  OK(create(&newer.options));
  newer.added = 1;
  FAILS(FERRY_INVALID, "something is set behind the", create(&newer.options));
}

static void option_errors(void) {
  ferry_comm_options o = alone();
  o.transport = "pigeon";
  FAILS(FERRY_INVALID, "pigeon", create(&o));
  o = alone();
  o.rank = 1;
  FAILS(FERRY_INVALID, "rank 1 of 1 ranks cannot be", create(&o));
  o = alone();
  o.rank = -1;
  FAILS(FERRY_INVALID, "rank -1 of 1", create(&o));
  o = alone();
  o.num_ranks = 0;
  FAILS(FERRY_INVALID, "rank 0 of 0", create(&o));
  o = alone();
  o.threads = 0;
  FAILS(FERRY_INVALID, "0 threads of a rank", create(&o));
  o = alone();
  o.rails = -1;
  FAILS(FERRY_INVALID, "-1 rails", create(&o));
  o = alone();
  o.join_timeout_s = -1;
  FAILS(FERRY_INVALID, "join_timeout_s is -1 s", create(&o));
  o = alone();
  o.start_timeout_s = NAN;
  FAILS(FERRY_INVALID, "start_timeout_s is nan s", create(&o));
  o = alone();
  o.start_timeout_s = INFINITY;
  OK(create(&o));
  o = alone();
  o.place.memory = FERRY_DEVICE;
  FAILS(FERRY_INVALID, "device memory; this works on host memory", create(&o));
  o = alone();
  o.place.memory = 7;
  FAILS(FERRY_INVALID, "ferry_place::memory is 7", create(&o));
  o = alone();
  o.place.queue = &o;
  FAILS(FERRY_INVALID, "with a queue", create(&o));
  o = alone();
  o.num_agreement = 1;
  FAILS(FERRY_INVALID, "agreement is NULL", create(&o));
  const ferry_pair half = {"model", NULL};
  o.agreement = &half;
  FAILS(FERRY_INVALID, "a value of the agreement is NULL", create(&o));
}

static ferry_status no_value(void* context,
                             const char* key,
                             double timeout_s,
                             ferry_store_value* value) {
  (void)context, (void)key, (void)timeout_s, (void)value;
  return FERRY_OK;
}

static ferry_status broken(void* context, const char* key) {
  (void)context, (void)key;
  return FERRY_NETWORK;
}

static void store_errors(void) {
  const ferry_comm_options o = alone();
  ferry_comm* comm = NULL;
  store* s = new_store();
  ferry_store callbacks = callbacks_of(s);
  FAILS(FERRY_INVALID, "comm is NULL", ferry_comm_create_from_store(&o, &callbacks, NULL));
  FAILS(FERRY_INVALID, "ferry_store is NULL", ferry_comm_create_from_store(&o, NULL, &comm));
  callbacks.set = NULL;
  FAILS(FERRY_INVALID,
        "ferry_store::set is NULL",
        ferry_comm_create_from_store(&o, &callbacks, &comm));
  callbacks = callbacks_of(s);
  callbacks.wait = NULL;
  FAILS(FERRY_INVALID,
        "ferry_store::wait is NULL",
        ferry_comm_create_from_store(&o, &callbacks, &comm));
  ferry_comm_options two = o;
  two.num_ranks = 2;
  callbacks = callbacks_of(s);
  callbacks.wait = no_value;
  FAILS(FERRY_CALLBACK, "assigned no value", ferry_comm_create_from_store(&two, &callbacks, &comm));
  callbacks = callbacks_of(s);
  callbacks.remove = broken;
  OK(ferry_comm_create_from_store(&o, &callbacks, &comm)); /* alone: nothing to forget */
  OK(ferry_comm_destroy(comm));
  two.join_timeout_s = 0.2;
  two.epoch = 1;
  callbacks = callbacks_of(s);
  FAILS(FERRY_TIMED_OUT, "rank 1", ferry_comm_create_from_store(&two, &callbacks, &comm));
  CHECK(ferry_last_error_rank() == 1 && comm == NULL);
  FAILS(FERRY_INVALID, "value is NULL", ferry_store_value_assign(NULL, "", 1));
  delete_store(s);
}

static void address_errors(void) {
  ferry_comm* comm = NULL;
  ferry_comm_options o = alone();
  const char* home = "127.0.0.1";
  FAILS(FERRY_INVALID, "host is NULL", ferry_comm_create_from_address(&o, NULL, 4000, NULL, &comm));
  FAILS(FERRY_INVALID, "port 0", ferry_comm_create_from_address(&o, home, 0, NULL, &comm));
  FAILS(FERRY_INVALID, "port 65536", ferry_comm_create_from_address(&o, home, 65536, NULL, &comm));
  FAILS(FERRY_INVALID,
        "FERRY_TOKEN is not set",
        ferry_comm_create_from_address(&o, "192.0.2.1", 4000, NULL, &comm));
  o.rank = -1;
  FAILS(FERRY_INVALID, "rank is -1", ferry_comm_create_from_address(&o, home, 4000, NULL, &comm));
  o.rank = 1;
  o.num_ranks = 2;
  o.join_timeout_s = 0.2;
  FAILS(FERRY_TIMED_OUT,
        "the store at",
        ferry_comm_create_from_address(&o, home, free_port(), NULL, &comm));
  FAILS(FERRY_INVALID, "no launcher's variables", ferry_comm_create_from_launcher(&o, &comm));
  setenv("WORLD_SIZE", "1", 1);
  setenv("RANK", "0", 1);
  FAILS(
      FERRY_INVALID, "rank is 1 in the options and 0", ferry_comm_create_from_launcher(&o, &comm));
  o.rank = -1;
  FAILS(FERRY_INVALID,
        "num_ranks is 2 in the options and 1",
        ferry_comm_create_from_launcher(&o, &comm));
  o.num_ranks = 0;
  FAILS(FERRY_INVALID,
        "MASTER_ADDR and MASTER_PORT are not set",
        ferry_comm_create_from_launcher(&o, &comm));
  unsetenv("WORLD_SIZE");
  unsetenv("RANK");
}

static void errors_of_one(ferry_comm* comm, void* context) {
  (void)context;
  ferry_comm* part = NULL;
  ferry_status failure = FERRY_DEFECT;
  uint8_t masked[2] = {9, 9};
  ferry_comm_info info = FERRY_COMM_INFO_INIT;
  FAILS(FERRY_INVALID, "the comm is NULL", ferry_comm_split(NULL, 0, 0, &part));
  FAILS(FERRY_INVALID, "out is NULL", ferry_comm_split(comm, 0, 0, NULL));
  FAILS(FERRY_INVALID, "the comm is NULL", ferry_comm_abort(NULL, "x"));
  FAILS(FERRY_INVALID, "the comm is NULL", ferry_comm_async_error(NULL, &failure));
  FAILS(FERRY_INVALID, "failure is NULL", ferry_comm_async_error(comm, NULL));
  FAILS(FERRY_INVALID, "the comm is NULL", ferry_comm_progress(NULL));
  FAILS(FERRY_INVALID, "the comm is NULL", ferry_comm_barrier(NULL, 1));
  FAILS(FERRY_INVALID, "timeout_s is -1", ferry_comm_barrier(comm, -1));
  FAILS(FERRY_INVALID, "the comm is NULL", ferry_comm_mask(NULL, 0));
  FAILS(FERRY_INVALID, "rank 0 cannot be masked by rank 0 of 1", ferry_comm_mask(comm, 0));
  FAILS(FERRY_INVALID, "rank 1 cannot be masked", ferry_comm_mask(comm, 1));
  FAILS(FERRY_INVALID, "the comm is NULL", ferry_comm_masked(NULL, masked, 1));
  FAILS(FERRY_INVALID, "masked is NULL", ferry_comm_masked(comm, NULL, 1));
  FAILS(FERRY_INVALID, "room for 2 ranks; there are 1", ferry_comm_masked(comm, masked, 2));
  FAILS(FERRY_INVALID, "the comm is NULL", ferry_comm_info_get(NULL, &info));
  FAILS(FERRY_INVALID, "ferry_comm_info is NULL", ferry_comm_info_get(comm, NULL));
  info.magic = 0;
  FAILS(FERRY_INVALID, "FERRY_COMM_INFO_INIT", ferry_comm_info_get(comm, &info));
  /* None of that was a failure of the comm. */
  OK(ferry_comm_async_error(comm, &failure));
  CHECK(failure == FERRY_OK);
  OK(ferry_comm_progress(comm));
  OK(ferry_comm_barrier(comm, 10));
  OK(ferry_comm_masked(comm, masked, 1));
  CHECK(masked[0] == 0 && masked[1] == 9);
}

void test_comm_errors(void) {
  head_errors();
  option_errors();
  store_errors();
  address_errors();
  on_threads(1, errors_of_one, NULL);
  OK(ferry_comm_destroy(NULL));
}

static void look_around(ferry_comm* comm, void* context) {
  ferry_comm_info info = FERRY_COMM_INFO_INIT;
  OK(ferry_comm_info_get(comm, &info));
  CHECK(info.num_ranks == *(int*)context && info.rank >= 0 && info.rank < info.num_ranks);
  CHECK(info.host == 0 && info.reads_peers == 1 && info.threads == 1);
  CHECK(strcmp(info.transport, info.one_process ? "inproc" : "shm") == 0);
  OK(ferry_comm_barrier(comm, 30));
}

static void by_launcher(void) {
  ferry_comm_options o = FERRY_COMM_OPTIONS_INIT;
  ferry_comm* comm = NULL;
  int one = 1;
  char port[16];
  snprintf(port, sizeof port, "%d", free_port());
  setenv("RANK", "0", 1);
  setenv("WORLD_SIZE", "1", 1);
  setenv("MASTER_ADDR", "127.0.0.1", 1);
  setenv("MASTER_PORT", port, 1);
  o.threads = 1;
  OK(ferry_comm_create_from_launcher(&o, &comm));
  look_around(comm, &one);
  OK(ferry_comm_destroy(comm));
}

void test_comm_ways(void) {
  int statuses[3], ranks = 3;
  on_threads(ranks, look_around, &ranks);
  on_processes(ranks, look_around, &ranks, statuses);
  by_launcher();
}

void split_on(ferry_comm* comm, void* context) {
  const int rank = rank_of(comm), ranks = ranks_of(comm);
  ferry_comm* part = NULL;
  (void)context;
  /* The last rank is in none; the others by parity, the greatest first. */
  OK(ferry_comm_split(comm, rank == ranks - 1 ? -1 : rank % 2, -rank, &part));
  CHECK((part == NULL) == (rank == ranks - 1));
  if (part != NULL) {
    const int of_parity = (ranks - 1 + 1 - rank % 2) / 2;
    CHECK(ranks_of(part) == of_parity && rank_of(part) == of_parity - 1 - rank / 2);
    OK(ferry_comm_barrier(part, 30));
    OK(ferry_comm_destroy(part));
  }
  OK(ferry_comm_barrier(comm, 30));
}

void test_comm_split(void) {
  int statuses[4];
  on_threads(5, split_on, NULL);
  on_processes(4, split_on, NULL, statuses);
}

static void* abort_later(void* comm) {
  const struct timespec while_others_wait = {0, 50000000};
  nanosleep(&while_others_wait, NULL);
  FAILS(FERRY_OUT_OF_ORDER, "another call on this comm", ferry_comm_progress(comm));
  FAILS(FERRY_OUT_OF_ORDER, "another call on this comm", ferry_comm_destroy(comm));
  OK(ferry_comm_abort(comm, "the user has\nseen enough"));
  return NULL;
}

static void give_up(ferry_comm* comm, void* context) {
  (void)context;
  pthread_t other;
  ferry_status failure = FERRY_OK;
  const int first = rank_of(comm) == 0;
  if (first) {
    CHECK(pthread_create(&other, NULL, abort_later, comm) == 0);
    FAILS(FERRY_ABORTED, "the user has seen enough", ferry_comm_barrier(comm, 60));
    pthread_join(other, NULL);
  } else {
    /* Comes when rank 0 has given up, and hears of it instead of waiting. */
    const struct timespec late = {0, 300000000};
    nanosleep(&late, NULL);
    FAILS(FERRY_ABORTED, "the user has seen enough", ferry_comm_barrier(comm, 60));
    CHECK(ferry_last_error_rank() == 0);
  }
  OK(ferry_comm_async_error(comm, &failure));
  CHECK(failure == FERRY_ABORTED && strstr(ferry_last_error(), "seen enough") != NULL);
  FAILS(FERRY_ABORTED, "the user has seen enough", ferry_comm_progress(comm)); /* from now on */
}

/* Rank 1 fails and is destroyed; rank 0 need not wait for its deadline to hear why. */
static void fail_and_leave(ferry_comm* comm, void* context) {
  (void)context;
  if (rank_of(comm) == 1)
    FAILS(FERRY_TIMED_OUT,
          "the other ranks did not come within 0.1 s",
          ferry_comm_barrier(comm, 0.1));
  else {
    const struct timespec late = {0, 400000000};
    nanosleep(&late, NULL);
    FAILS(FERRY_ABORTED, "did not come within 0.1 s", ferry_comm_barrier(comm, 60));
    CHECK(ferry_last_error_rank() == 1);
  }
}

void test_comm_abort(void) {
  int statuses[2];
  on_threads(2, give_up, NULL);
  on_processes(2, give_up, NULL, statuses);
  on_threads(2, fail_and_leave, NULL);
  on_processes(2, fail_and_leave, NULL, statuses);
}

void die_on(ferry_comm* comm, void* context) {
  (void)context;
  uint8_t masked[3];
  if (rank_of(comm) == 1) kill(getpid(), SIGKILL);
  FAILS(FERRY_PEER_DIED, "rank 1", ferry_comm_barrier(comm, 60));
  CHECK(ferry_last_error_rank() == 1);
  FAILS(FERRY_PEER_DIED, "rank 1", ferry_comm_barrier(comm, 60));
  OK(ferry_comm_mask(comm, 1));
  OK(ferry_comm_masked(comm, masked, 3));
  CHECK(!masked[0] && masked[1] && !masked[2]);
  OK(ferry_comm_barrier(comm, 60)); /* of those that are left */
}

void test_comm_dead_rank(void) {
  int statuses[3];
  on_processes(3, die_on, NULL, statuses);
  CHECK(statuses[0] == 0 && statuses[1] == SIGKILL && statuses[2] == 0);
}

/* A store function sees the mode that its caller came with, and the caller has it again. */
static ferry_status mode_seen(void* context, const char* key) {
  (void)key;
  *(int*)context = fegetround();
  return FERRY_OK;
}

static ferry_status set_and_see(void* context, const char* key, const void* value, size_t bytes) {
  (void)value, (void)bytes;
  return mode_seen(context, key);
}

void test_comm_floating_point(void) {
  ferry_comm_options o = alone();
  ferry_comm* comm = NULL;
  ferry_store callbacks = FERRY_STORE_INIT;
  int seen = -1;
  callbacks.context = &seen;
  callbacks.set = set_and_see;
  callbacks.wait = no_value;
  o.num_ranks = 2;
  fesetround(FE_UPWARD);
  feraiseexcept(FE_OVERFLOW);
  FAILS(FERRY_CALLBACK, "assigned no value", ferry_comm_create_from_store(&o, &callbacks, &comm));
  CHECK(seen == FE_UPWARD && fegetround() == FE_UPWARD && fetestexcept(FE_OVERFLOW));
  FAILS(FERRY_INVALID, "NULL", ferry_comm_progress(NULL));
  CHECK(fegetround() == FE_UPWARD);
  fesetround(FE_TONEAREST);
}
