// ferry bench model: prompts and generated tokens per second of a whole model, beside the floor
// that memory and the multiplying unit set, measured in the same run. Tests are named as
// llama-bench names them: pp512 = a prompt of 512 tokens, tg64 = 64 tokens generated from nothing.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "apps/ferry/balanced_steps.h"
#include "apps/ferry/bench_support.h"
#include "apps/ferry/command.h"
#include "apps/ferry/command_line.h"
#include "apps/ferry/common_options.h"
#include "apps/ferry/load_report.h"
#include "apps/ferry/machine_peaks.h"
#include "apps/ferry/session.h"
#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"
#include "ferry/model/kv_type.h"

namespace ferry {

namespace {

using Json = nlohmann::ordered_json;

struct BenchModelOptions {
  explicit BenchModelOptions(Command& command) : common(command) {}

  CommonOptions common;
  std::vector<int> prompts{512};
  std::vector<int> generated{64};
  std::vector<int> batches{1};
  int repetitions = 3;
  bool profile = false;
};

struct Test {
  bool prompt = false;  // else generation
  int tokens = 0;       // of each sequence
  int batch = 1;        // sequences, over all groups of ranks

  std::string name() const { return fmt::format("{}{}", prompt ? "pp" : "tg", tokens); }
};

/// The share of the sequences that one rank's group has, each with tokens of its own.
class RankRun {
 public:
  RankRun(const Session& session, Decoder& decoder, Transport& transport, bool profile)
      : session_(session),
        profile_(profile),
        decoder_(decoder),
        transport_(transport),
        steps_(session.options.engine, decoder, transport),
        pages_(decoder.state_layout()) {}

  const BalancedSteps& steps() const { return steps_; }

  /// Seconds from a common start until the last rank was done, and CPU time of this process.
  struct Time {
    double seconds = 0;
    double cpu_seconds = 0;
  };

  /// Of the latest measurement.
  const StepClock& clock() const { return decoder_.clock(); }

  /// Collective.
  Time measure(const Test& test) {
    prepare(test);
    meet();
    if (profile_) decoder_.clock().start();
    const std::clock_t cpu = std::clock();
    const Stopwatch watch;
    if (test.prompt)
      run_prompts(test);
    else
      run_generation(test);
    decoder_.clock().stop();
    meet();
    return {.seconds = watch.microseconds() * 1e-6,
            .cpu_seconds = static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC};
  }

 private:
  void meet() {
    if (transport_.barrier(deadline_in(std::chrono::minutes(10))) == WaitResult::timed_out)
      fail<Error>("bench: a rank did not reach the barrier in 10 minutes");
  }

  int group() const { return transport_.rank() / decoder_.tp(); }

  int sequences_of(int group, int batch) const {
    const int groups = transport_.size() / decoder_.tp();
    return (batch + groups - 1 - group) / groups;
  }

  void prepare(const Test& test) {
    const auto own = static_cast<std::size_t>(sequences_of(group(), test.batch));
    states_.clear();  // their pages are taken again, so that measured runs touch no new memory
    while (states_.size() < own) states_.emplace_back(pages_, session_.model.max_context());
    std::mt19937 engine(static_cast<unsigned>(group()));
    std::uniform_int_distribution<std::int32_t> id(0, session_.config().vocab - 1);
    tokens_.assign(own, {});
    for (std::vector<std::int32_t>& ids : tokens_)
      for (int t = 0; t < test.tokens; ++t) ids.push_back(id(engine));
  }

  /// Steps of at most max_tokens tokens, filled with the sequences' prompts one after another; as
  /// many steps as the group with most sequences needs.
  void run_prompts(const Test& test) {
    const auto room = static_cast<std::size_t>(session_.options.decoder.max_tokens);
    const auto length = static_cast<std::size_t>(test.tokens);
    const std::size_t most = static_cast<std::size_t>(sequences_of(0, test.batch)) * length;
    for (std::size_t step = 0; step * room < most; ++step) {
      std::vector<SequenceStep> batch;
      for (std::size_t s = 0; s < tokens_.size(); ++s) {
        const std::size_t begin = std::clamp(step * room, s * length, (s + 1) * length);
        const std::size_t end = std::clamp((step + 1) * room, s * length, (s + 1) * length);
        if (begin == end) continue;
        const bool whole = end == (s + 1) * length;
        batch.push_back(
            {.state = &states_[s],
             .tokens = std::span(tokens_[s]).subspan(begin - s * length, end - begin),
             .logits = whole ? SequenceStep::Logits::last : SequenceStep::Logits::none});
      }
      steps_.run(/*prefill=*/true, [&] { run(batch); });
    }
  }

  void run_generation(const Test& test) {
    for (std::size_t t = 0; t < static_cast<std::size_t>(test.tokens); ++t) {
      std::vector<SequenceStep> batch;
      for (std::size_t s = 0; s < tokens_.size(); ++s)
        batch.push_back({.state = &states_[s], .tokens = std::span(tokens_[s]).subspan(t, 1)});
      steps_.run(/*prefill=*/false, [&] { run(batch); });
    }
  }

  void run(std::span<const SequenceStep> batch) {
    decoder_.forward(batch);
    decoder_.commit();
  }

  const Session& session_;
  const bool profile_;
  Decoder& decoder_;
  Transport& transport_;
  BalancedSteps steps_;
  PagePool pages_;
  std::vector<SequenceState> states_;
  std::vector<std::vector<std::int32_t>> tokens_;  // of each of this rank's sequences
};

std::vector<Test> tests_of(const BenchModelOptions& o, int max_context) {
  std::vector<Test> tests;
  for (const int batch : o.batches) {
    for (const int n : o.prompts) tests.push_back({.prompt = true, .tokens = n, .batch = batch});
    for (const int n : o.generated) tests.push_back({.prompt = false, .tokens = n, .batch = batch});
  }
  std::erase_if(tests, [](const Test& test) { return test.tokens == 0; });
  for (const Test& test : tests) {
    if (test.tokens > max_context) {
      fail<ConfigError>(
          "{} needs {} positions, the context has {}", test.name(), test.tokens, max_context);
    }
  }
  return tests;
}

/// Rank 0's report: rows as they are measured, or one array at the end.
class Report {
 public:
  Report(const Session& session, const MachinePeaks& peaks)
      : session_(session),
        peaks_(peaks),
        held_(step_weights(session.model.checkpoint(), session.model.weights())) {
    if (session.options.json) return;
    const RunOptions& o = session.options;
    fmt::print(
        "{}, {} weights, {}keys and values as {}, {}, {} ranks x {} threads; the machine reads "
        "{:.1f} GB/s and multiplies "
        "at {:.2f} TFLOP/s\n",
        o.model.string(),
        session.model.held_as(),
        session.model.weights().int8_rows ? "int8 activations, " : "",
        kv_type_name(session.model.kv_type()),
        arithmetic_name(o.numerics),
        o.launch.ranks,
        o.threads,
        peaks.bytes_per_s * 1e-9,
        peaks.operations_per_s * 1e-12);
    fmt::print("{:<8} {:>5} {:>24} {:>12} {:>8} {:>14}\n",
               "test",
               "batch",
               "tokens/s",
               "floor",
               "x floor",
               "CPU us/token");
  }

  void add(const Test& test, const std::vector<RankRun::Time>& times, const BalancedSteps& steps) {
    const double tokens = 1.0 * test.tokens * test.batch;
    std::vector<double> rates, cpu;
    for (const RankRun::Time& time : times) {
      rates.push_back(tokens / time.seconds);
      cpu.push_back(time.cpu_seconds / tokens * 1e6);
    }
    const Summary rate = summarize(std::move(rates));
    const double cpu_us = summarize(std::move(cpu)).p50;
    const Work work = test.prompt ? prompt_work(session_.config(), held_, test.tokens, test.batch)
                                  : decode_work(session_.config(),
                                                held_,
                                                test.tokens,
                                                test.batch,
                                                session_.options.decoder.kv_type);
    const double floor =
        (test.prompt ? tokens : static_cast<double>(test.batch)) / work.seconds(peaks_);
    if (session_.options.json) {
      all_.push_back(row(test, rate, cpu_us, work, floor));
      if (steps.balancer()) all_.back()["eplb"] = load_json(*steps.balancer(), steps.step_time());
      return;
    }
    fmt::print("{:<8} {:>5} {:>24} {:>12.1f} {:>8.2f} {:>14.1f}\n",
               test.name(),
               test.batch,
               fmt::format("{:.2f} +- {:.2f}", rate.p50, rate.stddev),
               floor,
               floor / rate.p50,
               cpu_us);
  }

  /// Where rank 0's time went, per token of the test.
  void add_profile(const Test& test, const StepClock& clock) {
    const double tokens = 1.0 * test.tokens * test.batch;
    double all = 0;
    for (std::size_t p = 0; p < StepClock::kPhases; ++p) all += us_of(clock, p);
    Json phases = Json::object();
    for (std::size_t p = 0; p < StepClock::kPhases; ++p) {
      const auto name = std::string(StepClock::name(static_cast<StepClock::Phase>(p)));
      const double us = us_of(clock, p);
      phases[name] = us / tokens;
      if (!session_.options.json && us > 0)
        fmt::print("  {:<14} {:>10.2f} us/token {:>6.1f} %\n", name, us / tokens, us / all * 100);
    }
    if (session_.options.json) all_.back()["phases_us_per_token"] = std::move(phases);
  }

  void finish() const {
    if (session_.options.json) fmt::print("{}\n", all_.dump(2));
  }

 private:
  static double us_of(const StepClock& clock, std::size_t phase) {
    const auto spent = clock.spent(static_cast<StepClock::Phase>(phase));
    return std::chrono::duration<double, std::micro>(spent).count();
  }

  Json row(
      const Test& test, const Summary& rate, double cpu_us, const Work& work, double floor) const {
    const RunOptions& o = session_.options;
    return {{"weights", session_.model.held_as()},
            {"kv_cache_dtype", kv_type_name(session_.model.kv_type())},
            {"ep", o.launch.ranks},
            {"tp", o.decoder.tp},
            {"expert_slices", o.decoder.expert_slices},
            {"experts_device", experts_device_name(o.decoder.experts_device)},
            {"threads", o.threads},
            {"transport", o.launch.transport},
            {"backend", backend_name(o.decoder.backend)},
            {"batch", test.batch},
            {"test", test.name()},
            {"tokens_per_s", rate.p50},
            {"stddev", rate.stddev},
            {"floor_tokens_per_s", floor},
            {"cpu_us_per_token", cpu_us},  // of rank 0's process: of all ranks that are its threads
            {"bound", work.memory_bound(peaks_) ? "memory" : "compute"},
            {"read_gbps", peaks_.bytes_per_s * 1e-9},
            {"peak_tflops", peaks_.operations_per_s * 1e-12},
            {"isa", isa_name(kernels().isa)},
            {"activations", activations_name(session_.model.activations())},
            {"numerics", numerics_name(session_.options.numerics)}};
  }

  const Session& session_;
  const MachinePeaks& peaks_;
  const StepWeights held_;
  Json all_ = Json::array();
};

/// The type whose products most of the work is.
WeightType most_work(const WeightChoice& weights) {
  return weights.int8_rows ? WeightType::int8 : weights.type;
}

int run(const BenchModelOptions& o) {
  const RunOptions options = o.common.resolve();
  const Session session = open_session(options);
  const std::vector<Test> tests = tests_of(o, session.model.max_context());
  // Before there are ranks: its threads are gone when processes fork.
  const MachinePeaks peaks = measure_peaks(
      options.launch.ranks * options.threads, most_work(session.model.weights()), options.numerics);
  return session.model.run([&](Decoder& decoder, Transport& transport) {
    RankRun run(session, decoder, transport, o.profile);
    std::optional<Report> report;
    if (transport.rank() == 0) report.emplace(session, peaks);
    for (const Test& test : tests) {
      run.measure(test);  // touches every page that the measured ones will
      std::vector<RankRun::Time> times;
      times.reserve(static_cast<std::size_t>(o.repetitions));
      for (int i = 0; i < o.repetitions; ++i) times.push_back(run.measure(test));
      if (report) report->add(test, times, run.steps());
      if (report && o.profile) report->add_profile(test, run.clock());
    }
    if (report) report->finish();
    if (report && run.steps().balancer())
      report_load(session, *run.steps().balancer(), run.steps().step_time());
    return 0;
  });
}

}  // namespace

void add_bench_model(Command& bench, int& status) {
  Command* command = bench.add_subcommand(
      "model", "Prompt and generated tokens per second of a whole model, beside the floor");
  auto o = std::make_shared<BenchModelOptions>(*command);
  const auto list = [&](const char* name, std::vector<int>& values, const char* help, int least) {
    command->add_option(name, values, help)
        ->delimiter(',')
        ->range(least, 1 << 20)
        ->capture_default_str();
  };
  list("-p,--prompt-tokens", o->prompts, "Lengths of prompts, comma-separated; 0: none", 0);
  list("-n,--new-tokens", o->generated, "Tokens to generate, comma-separated; 0: none", 0);
  list("-b,--batch", o->batches, "Sequences at once, over all ranks, comma-separated", 1);
  command->add_option("-r,--repetitions", o->repetitions, "Measurements of each test")
      ->range(1, 1000)
      ->capture_default_str();
  command->add_flag(
      "--profile", o->profile, "Where rank 0's time went in the last measurement, by phase");
  command->callback([o, &status] { status = run(*o); });
}

}  // namespace ferry
