/* Tests of the C interface, in C: c_api_test [NAME], each in a process of its own under ctest. */
#include <stdio.h>
#include <string.h>

#include "tests.h"

static const struct {
  const char* name;
  void (*run)(void);
} all[] = {
    {"status", test_status},
    {"comm_errors", test_comm_errors},
    {"comm_ways", test_comm_ways},
    {"comm_split", test_comm_split},
    {"comm_abort", test_comm_abort},
    {"comm_dead_rank", test_comm_dead_rank},
    {"comm_floating_point", test_comm_floating_point},
    {"all_to_all", test_all_to_all},
    {"all_to_all_errors", test_all_to_all_errors},
    {"all_to_all_mask", test_all_to_all_mask},
    {"moe_forward", test_moe_forward},
    {"moe_errors", test_moe_errors},
    {"rounds", test_rounds},
    {"experts", test_experts},
    {"experts_errors", test_experts_errors},
    {"experts_in_a_layer", test_experts_in_a_layer},
    {"eplb", test_eplb},
    {"engine", test_engine},
    {"fabric", test_fabric},
    {"mpi", test_mpi},
};

int main(int argc, char** argv) {
  int ran = 0;
  for (size_t i = 0; i < sizeof all / sizeof all[0]; ++i) {
    if (argc > 1 && strcmp(argv[1], all[i].name) != 0) continue;
    all[i].run();
    printf("%s: passed\n", all[i].name);
    fflush(stdout);
    ++ran;
  }
  if (ran == 0) fprintf(stderr, "no such test: %s\n", argv[1]);
  return ran == 0;
}
