/* The C interface over networks: the same bodies as over shared memory. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support.h"
#include "tests.h"

static int has(const char* transport) {
  ferry_comm_options o = FERRY_COMM_OPTIONS_INIT;
  ferry_comm* comm = NULL;
  o.transport = transport;
  o.rank = 0;
  o.num_ranks = 1;
  store* s = new_store();
  const ferry_store callbacks = callbacks_of(s);
  const ferry_status status = ferry_comm_create_from_store(&o, &callbacks, &comm);
  delete_store(s);
  if (status == FERRY_OK) {
    OK(ferry_comm_destroy(comm));
    return 1;
  }
  CHECK(status == FERRY_INVALID && strstr(ferry_last_error(), "is not available") != NULL);
  printf("skipped: %s\n", ferry_last_error());
  return 0;
}

static void network(ferry_comm* comm, void* context) {
  ferry_comm_info info = FERRY_COMM_INFO_INIT;
  OK(ferry_comm_info_get(comm, &info));
  CHECK(strcmp(info.transport, context) == 0);
}

void test_fabric(void) {
  const char* providers[] = {"tcp", "shm"};
  const char* backends[] = {"pplx", "deepep", "alltoallv", "mooncake", "ascend_fuseep", NULL};
  ferry_comm_options o = FERRY_COMM_OPTIONS_INIT;
  int statuses[4];
  if (!has("fabric")) return;
  o.transport = "fabric";
  for (int p = 0; p < 2; ++p) {
    for (int per_host = 0; per_host <= 1; ++per_host) {
      o.provider = providers[p];
      o.ranks_per_host =
          per_host; /* 1: as if each were a host of its own, so that rows are pushed */
      on_processes_with(&o, 2, network, "fabric", statuses);
      on_processes_with(&o, 3, exchange_on, backends, statuses);
      for (int b = 0; b < 2; ++b) on_processes_with(&o, 3, moe_forward_on, &backends[b], statuses);
      on_processes_with(&o, 4, split_on, NULL, statuses);
    }
    on_processes_with(&o, 3, die_on, NULL, statuses);
    CHECK(statuses[0] == 0 && statuses[1] == SIGKILL && statuses[2] == 0);
  }
}

/* By mpirun, which has made the ranks. Alone there is nothing to be tested. */
void test_mpi(void) {
  const char* backends[] = {
      "pplx", "alltoallv", "none", "ascend_fuseep", NULL}; /* those that mask no rank */
  ;
  ferry_comm_options o = FERRY_COMM_OPTIONS_INIT;
  ferry_comm* comm = NULL;
  if (getenv("OMPI_COMM_WORLD_SIZE") == NULL && getenv("PMI_SIZE") == NULL) {
    o.transport = "mpi";
    o.rank = 0;
    o.num_ranks = 1;
    store* s = new_store();
    const ferry_store callbacks = callbacks_of(s);
    FAILS(FERRY_INVALID,
          "transport mpi is not available",
          ferry_comm_create_from_store(&o, &callbacks, &comm));
    delete_store(s);
    return;
  }
  o.transport = "mpi";
  OK(ferry_comm_create_from_launcher(&o, &comm));
  network(comm, "mpi");
  exchange_on(comm, backends);
  for (int b = 0; b < 2; ++b) moe_forward_on(comm, &backends[b]);
  split_on(comm, NULL);
  OK(ferry_comm_destroy(comm));
}
