#include "balance.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <vector>

#include "arrays.h"
#include "ferry/core/error.h"
#include "ferry/planner.h"
#include "settings.h"

namespace ferry::python {

namespace {

/// [layers, experts] of any number type that loads come in.
ExpertLoad load_of(const Array& array) {
  array.check_packed({-1, -1});
  ExpertLoad load(static_cast<int>(array.shape(0)), static_cast<int>(array.shape(1)));
  const auto fill = [&]<class T>(const T* values) {
    std::copy(values, values + load.counts.size(), load.counts.begin());
  };
  switch (array.type()) {
    case Element::f32:
      fill(reinterpret_cast<const float*>(array.data()));
      break;
    case Element::f64:
      fill(reinterpret_cast<const double*>(array.data()));
      break;
    case Element::i32:
      fill(reinterpret_cast<const std::int32_t*>(array.data()));
      break;
    case Element::i64:
      fill(reinterpret_cast<const std::int64_t*>(array.data()));
      break;
    default:
      fail<ConfigError>("{} is {}; loads are float32, float64, int32 or int64",
                        array.name(),
                        element_name(array.type()));
  }
  return load;
}

UnevenSlots uneven_of(const std::string& name) {
  if (name == "allow_empty") return UnevenSlots::allow_empty;
  if (name == "strict") return UnevenSlots::strict;
  if (name == "adjust") return UnevenSlots::adjust;
  fail<ConfigError>("uneven is '{}'; known are allow_empty, strict, adjust", name);
}

nb::dict plan(nb::handle load, const nb::dict& options) {
  Settings settings("plan", options);
  const Topology topology{.ranks = settings.get("ranks", 1),
                          .nodes = settings.get("nodes", 1),
                          .groups = settings.get("groups", 1)};
  const PlanOptions plan_options{
      .policy = parse_policy(settings.get<std::string>("policy", "greedy")),
      .redundant = settings.get("redundant", 0),
      .uneven = uneven_of(settings.get<std::string>("uneven", "allow_empty")),
      .weighted = settings.get("weighted", false),
      .max_transfers = settings.get("max_transfers", 0),
      .max_transfers_per_pair = settings.get("max_transfers_per_pair", 0)};
  const auto current_map = settings.find<std::vector<std::vector<ExpertId>>>("current");
  settings.finish();
  const ExpertLoad loads = load_of(Array(load, "load"));
  std::optional<ExpertPlacement> current;
  if (current_map) current.emplace(*current_map, loads.experts, topology.ranks);
  std::optional<Plan> made;
  {
    const nb::gil_scoped_release released;
    made = plan_placement(loads, current, topology, plan_options);
  }
  nb::dict out;
  out["physical_to_logical"] = made->placement.maps();
  out["shares"] = made->shares;
  out["balance_before"] = made->balance.before;
  out["balance_after"] = made->balance.after;
  out["balance_bound"] = made->balance.bound;
  out["transfers"] = made->transfers;
  return out;
}

}  // namespace

void bind_balance(nb::module_& module) {
  module.def("plan", &plan, nb::arg("load"), nb::arg("options"));
}

}  // namespace ferry::python
