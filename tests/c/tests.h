/* The tests; main.c lists them. */
#ifndef FERRY_TESTS_C_TESTS_H
#define FERRY_TESTS_C_TESTS_H

void test_status(void);
void test_comm_errors(void);
void test_comm_ways(void);
void test_comm_split(void);
void test_comm_abort(void);
void test_comm_dead_rank(void);
void test_comm_floating_point(void);
void test_all_to_all(void);
void test_all_to_all_errors(void);
void test_all_to_all_mask(void);
void test_moe_forward(void);
void test_moe_errors(void);
void test_rounds(void);
void test_experts(void);
void test_experts_errors(void);
void test_experts_in_a_layer(void);
void test_eplb(void);
void test_engine(void);
void test_fabric(void);
void test_mpi(void);

/* Bodies of these for any transport: ranks that call them together. */
#include "ferry/ferry.h"

void split_on(ferry_comm* comm, void* context);
void die_on(ferry_comm* comm, void* context);         /* three ranks, of which one kills itself */
void exchange_on(ferry_comm* comm, void* backends);   /* const char*[], NULL behind the last */
void moe_forward_on(ferry_comm* comm, void* backend); /* const char** */

#endif
