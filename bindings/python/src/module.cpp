// The extension module tokenferry._core. Its parts say what each is for; what users import is in
// bindings/python/tokenferry.
#include <nanobind/nanobind.h>

#include "all_to_all.h"
#include "balance.h"
#include "byte_exchange.h"
#include "comm.h"
#include "device_lane.h"
#include "engine.h"
#include "errors.h"
#include "expert_rows.h"
#include "ferry/version.h"
#include "interrupt.h"
#include "native_experts.h"

NB_MODULE(_core, module) {
  using namespace ferry::python;
#ifdef NDEBUG
  // A program that ends by an exception still holds what its traceback shows: no leak of ours.
  // Debug builds say it.
  nanobind::set_leak_warnings(false);
#endif
  module.attr("__version__") = ferry::version().data();
  find_main_thread();
  register_errors();
  bind_stores(module);
  bind_comm(module);
  bind_expert_rows(module);
  bind_native_experts(module);
  bind_all_to_all(module);
  bind_device_all_to_all(module);
  bind_byte_exchange(module);
  bind_balance(module);
  bind_engine(module);
}
