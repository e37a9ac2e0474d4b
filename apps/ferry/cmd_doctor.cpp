// ferry doctor: what this machine has and what this build can use of it.
#include <fmt/format.h>
#include <hwloc.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>

#include "apps/ferry/command.h"
#include "apps/ferry/command_line.h"
#include "apps/ferry/common_options.h"
#include "apps/ferry/machine_peaks.h"
#include "ferry/checkpoint/hub_cache.h"
#include "ferry/choose_backend.h"
#include "ferry/core/error.h"
#include "ferry/exchange/gpu/cuda.h"
#include "ferry/kernels/kernels.h"
#include "ferry/launch.h"
#include "ferry/model/checkpoint.h"
#include "ferry/model/weights.h"
#include "ferry/runtime/core_map.h"
#include "ferry/version.h"

namespace ferry {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

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

struct CpuTopology {
  int cores = 0;
  int threads = 0;
  int numa_nodes = 0;
};

CpuTopology read_cpu_topology() {
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

/// What the program can do with CUDA devices here.
std::string cuda_state() {
  const CudaDevices devices = find_cuda_devices();
  if (devices.names.empty()) return devices.why_none;
  return fmt::format(
      "{} for exchanges (`ferry bench a2a --device cuda`): compiled and emulated, not "
      "run on a GPU by us yet",
      fmt::join(devices.names, ", "));
}

/// Why an instruction set cannot be used, or "ok".
std::string kernel_state(Isa isa) {
  if (isa_supported(isa)) return "ok";
  return fmt::format("this processor or system has no {}", isa_name(isa));
}

/// What --moe-a2a-backend auto stands for over each transport, for prefill and decode of a common
/// shape.
Json list_choices() {
  Json choices = Json::object();
  for (const TransportInfo& t : list_transports()) {
    if (!t.available) continue;
    for (const int tokens : {1, 512}) {
      const BackendSituation situation{
          .ranks = 2, .tokens = tokens, .hidden = 4096, .topk = 8, .load_store = t.load_store};
      choices[fmt::format("{}, {} token{}", t.name, tokens, tokens == 1 ? "" : "s")] =
          choose_backend(MoeA2ABackend::automatic, DeepepMode::automatic, situation).why;
    }
  }
  return choices;
}

/// How to use all cores, for one request and for many. Memory of another NUMA node is what threads
/// should not share, so each node gets a rank; one request then needs all ranks at every expert.
Json recommend() {
  const int ranks = default_ranks();
  const std::string threads = fmt::format("--threads {}", default_threads(ranks));
  const std::string alone = fmt::format("--ep 1 {}", threads);
  if (ranks == 1) return {{"one request", alone}, {"many at once", alone}};
  return {{"one request", fmt::format("--tp {0} --expert-slices {0} {1}", ranks, threads)},
          {"many at once", fmt::format("--ep {} {}", ranks, threads)}};
}

Json diagnose() {
  const CpuTopology topology = read_cpu_topology();
  const fs::path pages = "/sys/kernel/mm/transparent_hugepage";
  Json report;
  report["version"] = version();
  report["cpu"] = value_of("/proc/cpuinfo", "model name");
  report["isa"] = isa_name(kernels().isa);
  report["numerics_fast"] = numerics_name(Numerics::fast);
  report["activations_int8"] = gemm_method(WeightType::q8_0_int8);
  report["cores"] = topology.cores;
  report["hardware_threads"] = topology.threads;
  report["usable_threads"] = std::thread::hardware_concurrency();
  report["numa_nodes"] = topology.numa_nodes;
  report["huge_pages"] = {{"private", chosen_word(first_line(pages / "enabled"))},
                          {"shared", chosen_word(first_line(pages / "shmem_enabled"))}};
  report["transports"] = Json::object();
  for (const TransportInfo& t : list_transports())
    report["transports"][std::string(t.name)] = t.available ? "ok" : std::string(t.reason);
  report["auto_chooses"] = list_choices();
  report["recommended"] = recommend();
  report["gpus"] = list_gpus();
  report["cuda"] = cuda_state();
  report["kernels"] = Json::object();
  for (const Isa isa : kAllIsas) report["kernels"][std::string(isa_name(isa))] = kernel_state(isa);
  report["weights"] = Json::object();
  for (const WeightType type : weight_types())
    report["weights"][std::string(weight_type_name(type))] = gemm_method(type);
  return report;
}

struct DoctorOptions {
  bool json = false;
  bool measure = false;
  std::string model;
  std::string weights;
};

/// What one and all usable threads reach, and the tokens per second that allows the model.
void measure(const DoctorOptions& o, Json& report) {
  std::optional<Checkpoint> checkpoint;
  if (!o.model.empty()) checkpoint = Checkpoint::open(find_model(o.model));
  std::optional<WeightType> weights = parse_weights_option("--weights", o.weights);
  StepWeights held;
  if (checkpoint) {
    const WeightChoice choice = choose_weights(*checkpoint, weights);
    held = step_weights(*checkpoint, choice);
    weights = choice.type;
  }
  constexpr int kPrompt = 512;
  constexpr int kGenerated = 64;
  const int all = default_threads(1);
  for (const int threads : {1, all}) {
    const MachinePeaks peaks = measure_peaks(threads, weights.value_or(WeightType::bf16));
    const MachinePeaks of_bytes = measure_peaks(threads, WeightType::int8);
    Json measured = {{"threads", threads},
                     {"read_gbps", std::max(peaks.bytes_per_s, of_bytes.bytes_per_s) * 1e-9},
                     {"peak_tflops", peaks.operations_per_s * 1e-12},
                     {"int8_peak_tops", of_bytes.operations_per_s * 1e-12}};
    if (checkpoint) {
      const ModelConfig& config = checkpoint->config();
      const double prompt = prompt_work(config, held, kPrompt, 1).seconds(peaks);
      const double token = decode_work(config, held, kGenerated, 1).seconds(peaks);
      measured[fmt::format("pp{}_at_most_tokens_per_s", kPrompt)] = kPrompt / prompt;
      measured[fmt::format("tg{}_at_most_tokens_per_s", kGenerated)] = 1 / token;
    }
    report["measured"].push_back(measured);
    if (all == 1) break;
  }
}

/// One entry of a list: a text, or numbers by name.
void print_item(const Json& item) {
  if (item.is_string()) fmt::print("  {}\n", item.get<std::string>());
  if (!item.is_object()) return;
  for (const auto& [name, number] : item.items())
    fmt::print("  {:<32} {:.4g}\n", name, number.get<double>());
}

void print_table(const Json& report) {
  for (const auto& [key, value] : report.items()) {
    if (value.is_object()) {
      fmt::print("{}\n", key);
      for (const auto& [name, state] : value.items())
        fmt::print("  {:<20} {}\n", name, state.get<std::string>());
    } else if (value.is_array()) {
      fmt::print("{:<18} {}\n", key, value.empty() ? "none" : "");
      for (const auto& item : value) print_item(item);
    } else {
      fmt::print("{:<18} {}\n", key, value.is_string() ? value.get<std::string>() : value.dump());
    }
  }
}

}  // namespace

void add_doctor(Command& app, int& status) {
  Command* command =
      app.add_subcommand("doctor", "Show what this machine has and what this build can use of it");
  auto o = std::make_shared<DoctorOptions>();
  command->add_flag("--json", o->json, "As JSON");
  command->add_flag(
      "--measure", o->measure, "Also measure memory and multiplication; takes seconds and 1 GiB");
  Option* model =
      command->add_option("--model,--model-path", o->model, "And what that allows this checkpoint")
          ->type_name("DIR")
          ->needs("--measure");
  command
      ->add_option("--weights",
                   o->weights,
                   "Held as f32, bf16, int8, fp8, int4 or mxfp4 [as in the checkpoint]")
      ->type_name("W")
      ->needs(model);
  command->callback([o, &status] {
    Json report = diagnose();
    if (o->measure) measure(*o, report);
    if (o->json)
      fmt::print("{}\n", report.dump(2));
    else
      print_table(report);
    status = 0;
  });
}

}  // namespace ferry
