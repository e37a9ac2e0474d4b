/* What the tests of the C interface share: checks, a store of the caller's own, and ranks.
   Everything here is C99 and POSIX. */
#ifndef FERRY_TESTS_C_SUPPORT_H
#define FERRY_TESTS_C_SUPPORT_H

#include "ferry/ferry.h"

/* Ends the test when a condition does not hold. */
#define CHECK(condition) check((condition) != 0, #condition, __FILE__, __LINE__)
void check(int holds, const char* condition, const char* file, int line);

/* Ends the test when a call returns another status. */
#define OK(call) check_status((call), FERRY_OK, NULL, #call, __FILE__, __LINE__)
/* The same for an error whose one line contains `text`. */
#define FAILS(status, text, call) check_status((call), (status), (text), #call, __FILE__, __LINE__)
void check_status(ferry_status got,
                  ferry_status expected,
                  const char* text,
                  const char* call,
                  const char* file,
                  int line);

/* A store for the threads of one process, as a caller would bring it. */
typedef struct store store;
store* new_store(void);
void delete_store(store* s);
ferry_store callbacks_of(store* s);

/* Runs `body` on the ranks of a comm, each a thread of this process, with a store of our own. */
void on_threads(int ranks, void (*body)(ferry_comm* comm, void* context), void* context);

/* The same on processes, over shared memory and a store at an address. Returns the ranks' statuses:
   0, or the number of the signal that has ended one. */
void on_processes(int ranks,
                  void (*body)(ferry_comm* comm, void* context),
                  void* context,
                  int* statuses);

/* The same with these options; rank and num_ranks are set here. */
void on_processes_with(const ferry_comm_options* options,
                       int ranks,
                       void (*body)(ferry_comm* comm, void* context),
                       void* context,
                       int* statuses);

int rank_of(ferry_comm* comm);
int ranks_of(ferry_comm* comm);

/* Whether tests that take minutes were asked for (scripts/test.sh --long). */
int long_tests(void);

/* Figures of this process, to see that they stay. */
long open_descriptors(void);
long threads(void);
long resident_kb(void);

/* A port that nobody listens at now. */
int free_port(void);

#endif
