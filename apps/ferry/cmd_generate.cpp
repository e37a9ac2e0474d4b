// ferry generate: continues one or many prompts.
#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "apps/ferry/command.h"
#include "apps/ferry/command_line.h"
#include "apps/ferry/common_options.h"
#include "apps/ferry/load_report.h"
#include "apps/ferry/prompts.h"
#include "apps/ferry/session.h"
#include "ferry/core/error.h"
#include "ferry/engine/logits_chain.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

/// What flags say of logits processors, as their members in a client's request.
class ProcessorFlags : public RequestMembers {
 public:
  double presence_penalty = 0;
  double frequency_penalty = 0;
  double repetition_penalty = 1;
  int min_new_tokens = 0;

  std::optional<double> number(const char* name) const override {
    const std::string_view wanted = name;
    if (wanted == "presence_penalty") return presence_penalty;
    if (wanted == "frequency_penalty") return frequency_penalty;
    if (wanted == "repetition_penalty") return repetition_penalty;
    return std::nullopt;
  }

  std::optional<std::int64_t> integer(const char* name) const override {
    if (name == std::string_view("min_new_tokens")) return min_new_tokens;
    return std::nullopt;
  }

  std::optional<std::vector<std::int32_t>> token_ids(const char* /*name*/) const override {
    return std::nullopt;
  }

  std::optional<std::vector<std::pair<std::int32_t, double>>> numbers_by_id(
      const char* /*name*/) const override {
    return std::nullopt;
  }

  std::optional<std::vector<std::vector<std::int32_t>>> words(const char* /*name*/) const override {
    return std::nullopt;
  }
};

struct GenerateOptions {
  explicit GenerateOptions(Command& app) : common(app) {}

  CommonOptions common;
  PromptSources sources;
  bool prompt_given = false;
  int max_new_tokens = 64;
  SamplingOptions sampling;
  ProcessorFlags processors;
  bool ignore_eos = false;
};

void add_processor_options(Command& command, ProcessorFlags& o) {
  command
      .add_option(
          "--presence-penalty", o.presence_penalty, "Less of a token that was generated: -2 to 2")
      ->type_name("P")
      ->capture_default_str();
  command
      .add_option("--frequency-penalty", o.frequency_penalty, "The same, for each time: -2 to 2")
      ->type_name("P")
      ->capture_default_str();
  command
      .add_option("--repetition-penalty",
                  o.repetition_penalty,
                  "Divides what speaks for a token of the prompt or of the answer; 1 = off")
      ->type_name("P")
      ->capture_default_str();
  command.add_option("--min-new-tokens", o.min_new_tokens, "Before the end-of-text token may come")
      ->type_name("N")
      ->capture_default_str();
}

void add_options(Command& command, GenerateOptions& o) {
  command.add_option("--prompt", o.sources.text, "Text to continue")->type_name("TEXT");
  command
      .add_option("--prompts",
                  o.sources.text_file,
                  "One prompt a line; *.json: a list of prompts; *.jsonl: one in each line "
                  "(strings, or objects with a \"prompt\")")
      ->type_name("FILE");
  command
      .add_option("--input-ids",
                  o.sources.ids_file,
                  "Token ids, one prompt a line, separated by spaces or commas")
      ->type_name("FILE");
  command.add_option("--max-new-tokens", o.max_new_tokens, "Tokens to generate at most")
      ->type_name("N")
      ->capture_default_str();
  command.add_option("--temperature", o.sampling.temperature, "0 takes the most probable token")
      ->type_name("T")
      ->capture_default_str();
  command.add_option("--top-k", o.sampling.top_k, "Only the K most probable tokens; 0 = all")
      ->type_name("K")
      ->capture_default_str();
  command.add_option("--top-p", o.sampling.top_p, "Only the fewest tokens that share P")
      ->type_name("P")
      ->capture_default_str();
  command
      .add_option("--min-p", o.sampling.min_p, "Only tokens this probable beside the most probable")
      ->type_name("P")
      ->capture_default_str();
  command.add_option("--seed", o.sampling.seed, "Of the draws; the same for every prompt")
      ->type_name("S")
      ->capture_default_str();
  add_processor_options(command, o.processors);
  command.add_flag("--ignore-eos", o.ignore_eos, "Go on behind the end-of-text token");
}

struct Result {
  std::vector<std::int32_t> ids;
  std::string logits_sha256;
  bool done = false;
};

/// What people see: one prompt's text as it comes, of many prompts each when it is done, in order.
class Printer {
 public:
  Printer(const Session& session, const std::vector<Prompt>& prompts)
      : session_(session), prompts_(prompts) {
    if (session.model.tokenizer()) stream_.emplace(*session.model.tokenizer());
  }

  void on_token(const TokenEvent& event, const std::vector<Result>& results) {
    if (prompts_.size() == 1) return stream(event);
    for (; printed_ < results.size() && results[printed_].done; ++printed_) {
      const Prompt& prompt = prompts_[printed_];
      fmt::print("> {}\n{}\n\n",
                 prompt.text.empty() ? ids_text(prompt.ids) : prompt.text,
                 session_.model.tokenizer() ? session_.model.text_of(results[printed_].ids)
                                            : ids_text(results[printed_].ids));
      std::fflush(stdout);
    }
  }

 private:
  static std::string ids_text(const std::vector<std::int32_t>& ids) {
    return fmt::format("{}", fmt::join(ids, " "));
  }

  void stream(const TokenEvent& event) {
    if (!stream_) {
      fmt::print("{}{}", event.token, event.last ? "\n" : " ");
    } else {
      if (session_.model.tokenizer()->has_token(event.token))
        fmt::print("{}", stream_->put(event.token));
      if (event.last) fmt::print("{}\n", stream_->finish());
    }
    std::fflush(stdout);
  }

  const Session& session_;
  const std::vector<Prompt>& prompts_;
  std::optional<StreamDecoder> stream_;
  std::size_t printed_ = 0;
};

void print_json(const Session& session,
                const std::vector<Prompt>& prompts,
                const std::vector<Result>& results,
                const Engine& engine) {
  const RunOptions& o = session.options;
  const EngineStats& stats = engine.stats();
  nlohmann::ordered_json report;
  report["model"] = o.model.string();
  report["ep"] = o.launch.ranks;
  report["tp"] = o.decoder.tp;
  report["backend"] = backend_name(o.decoder.backend);
  report["transport"] = o.launch.transport;
  report["threads"] = o.threads;
  report["weights"] = weight_type_name(session.model.weights().type);
  report["isa"] = isa_name(kernels().isa);
  report["prefill_tokens_per_s"] = rate(stats.prefill_tokens, stats.prefill_time);
  report["decode_tokens_per_s"] = rate(stats.decode_tokens, stats.decode_time);
  report["drafted_tokens"] = stats.drafted_tokens;
  report["accepted_tokens"] = stats.accepted_tokens;
  if (engine.balancer()) report["eplb"] = load_json(engine);
  report["results"] = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < results.size(); ++i) {
    report["results"].push_back({{"prompt_tokens", prompts[i].ids.size()},
                                 {"output_ids", results[i].ids},
                                 {"text", session.model.text_of(results[i].ids)},
                                 {"logits_sha256", results[i].logits_sha256}});
  }
  fmt::print("{}\n", report.dump(2));
}

std::vector<Request> make_requests(const GenerateOptions& o,
                                   const Session& session,
                                   const std::vector<Prompt>& prompts) {
  std::vector<ProcessorOptions> processors;
  read_processors(o.processors, processors);
  std::vector<Request> requests;
  for (const Prompt& prompt : prompts) {
    Request request{.prompt = prompt.ids,
                    .max_new_tokens = o.max_new_tokens,
                    .sampling = o.sampling,
                    .stop_ids = {},
                    .processors = processors};
    if (!o.ignore_eos) request.stop_ids = session.config().eos_ids;
    check_prompt(session, request, prompt.origin);
    requests.push_back(std::move(request));
  }
  return requests;
}

int generate(const GenerateOptions& o) {
  const int sources = (o.prompt_given ? 1 : 0) + (o.sources.text_file.empty() ? 0 : 1) +
                      (o.sources.ids_file.empty() ? 0 : 1);
  if (sources != 1)
    fail<ConfigError>("give exactly one of --prompt, --prompts and --input-ids, not {}", sources);
  check_sampling(o.sampling);
  RunOptions options = o.common.resolve();
  options.engine.hash_logits = options.json;
  const Session session = open_session(options);
  const std::vector<Prompt> prompts = read_prompts(o.sources, session);
  const std::vector<Request> requests = make_requests(o, session, prompts);

  return session.model.run_engine([&](Engine& engine) {
    for (const Request& request : requests) static_cast<void>(engine.submit(request));
    std::vector<Result> results(requests.size());
    Printer printer(session, prompts);
    engine.run([&](const TokenEvent& event) {
      Result& result = results[event.request];
      result.ids.push_back(event.token);
      result.done = event.last;
      result.logits_sha256 = event.logits_sha256;
      if (!options.json) printer.on_token(event, results);
    });
    if (options.json) print_json(session, prompts, results, engine);
    print_summary(session, engine.stats());
    report_load(session, engine);
    return 0;
  });
}

}  // namespace

void add_generate(Command& app, int& status) {
  Command* command = app.add_subcommand("generate", "Continue one or many prompts");
  auto options = std::make_shared<GenerateOptions>(*command);
  add_options(*command, *options);
  command->callback([command, options, &status] {
    options->prompt_given = command->count("--prompt") > 0;
    status = generate(*options);
  });
}

}  // namespace ferry
