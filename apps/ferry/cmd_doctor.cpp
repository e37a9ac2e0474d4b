// ferry doctor: what this machine has and what this build can use of it.
#include <fmt/format.h>
#include <hwloc.h>

#include <CLI/CLI.hpp>
#include <array>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "apps/ferry/command.h"
#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"
#include "ferry/transport/launch.h"

namespace ferry {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::array kIsas{Isa::scalar, Isa::avx2, Isa::avx512, Isa::amx};

/// The text behind "key :" in a file of such lines; empty where there is none.
std::string value_of(const fs::path& file, std::string_view key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(key)) continue;
    const auto colon = line.find(':');
    const auto text = line.find_first_not_of(" \t", colon + 1);
    if (colon != std::string::npos && text != std::string::npos) return line.substr(text);
  }
  return {};
}

std::string first_line(const fs::path& file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return line;
}

/// The word in brackets: "always [madvise] never" -> "madvise".
std::string chosen_word(const std::string& text) {
  const auto open = text.find('['), close = text.find(']');
  if (open == std::string::npos || close == std::string::npos) return "not available";
  return text.substr(open + 1, close - open - 1);
}

struct Topology {
  int cores = 0;
  int threads = 0;
  int numa_nodes = 0;
};

Topology read_topology() {
  struct Free {
    void operator()(hwloc_topology_t t) const { hwloc_topology_destroy(t); }
  };

  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) fail<Error>("hwloc_topology_init failed");
  const std::unique_ptr<hwloc_topology, Free> topology(raw);
  if (hwloc_topology_load(raw) != 0) fail<Error>("hwloc_topology_load failed");
  const auto count = [raw](hwloc_obj_type_t type) { return hwloc_get_nbobjs_by_type(raw, type); };
  return {.cores = count(HWLOC_OBJ_CORE),
          .threads = count(HWLOC_OBJ_PU),
          .numa_nodes = count(HWLOC_OBJ_NUMANODE)};
}

Json list_gpus() {
  Json gpus = Json::array();
  std::error_code none;
  for (const auto& gpu : fs::directory_iterator("/proc/driver/nvidia/gpus", none))
    gpus.push_back(value_of(gpu.path() / "information", "Model"));
  return gpus;
}

/// Why an instruction set cannot be used, or "ok".
std::string kernel_state(Isa isa) {
  if (isa_supported(isa)) return "ok";
  return fmt::format("this processor or system has no {}", isa_name(isa));
}

Json diagnose() {
  const Topology topology = read_topology();
  const fs::path pages = "/sys/kernel/mm/transparent_hugepage";
  Json report;
  report["version"] = FERRY_VERSION;
  report["cpu"] = value_of("/proc/cpuinfo", "model name");
  report["isa"] = isa_name(kernels().isa);
  report["cores"] = topology.cores;
  report["hardware_threads"] = topology.threads;
  report["usable_threads"] = std::thread::hardware_concurrency();
  report["numa_nodes"] = topology.numa_nodes;
  report["huge_pages"] = {{"private", chosen_word(first_line(pages / "enabled"))},
                          {"shared", chosen_word(first_line(pages / "shmem_enabled"))}};
  report["transports"] = Json::object();
  for (const TransportInfo& t : list_transports())
    report["transports"][std::string(t.name)] = t.available ? "ok" : std::string(t.reason);
  report["gpus"] = list_gpus();
  report["kernels"] = Json::object();
  for (const Isa isa : kIsas) report["kernels"][std::string(isa_name(isa))] = kernel_state(isa);
  return report;
}

void print_table(const Json& report) {
  for (const auto& [key, value] : report.items()) {
    if (value.is_object()) {
      fmt::print("{}\n", key);
      for (const auto& [name, state] : value.items())
        fmt::print("  {:<16} {}\n", name, state.get<std::string>());
    } else if (value.is_array()) {
      fmt::print("{:<18} {}\n", key, value.empty() ? "none" : "");
      for (const auto& item : value) fmt::print("  {}\n", item.get<std::string>());
    } else {
      fmt::print("{:<18} {}\n", key, value.is_string() ? value.get<std::string>() : value.dump());
    }
  }
}

}  // namespace

void add_doctor(CLI::App& app, int& status) {
  CLI::App* command =
      app.add_subcommand("doctor", "Show what this machine has and what this build can use of it");
  auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "As JSON");
  command->callback([json, &status] {
    const Json report = diagnose();
    if (*json)
      fmt::print("{}\n", report.dump(2));
    else
      print_table(report);
    status = 0;
  });
}

}  // namespace ferry
