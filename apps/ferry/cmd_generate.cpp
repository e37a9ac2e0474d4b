// ferry generate: continues one or many prompts.
#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "apps/ferry/command.h"
#include "apps/ferry/command_line.h"
#include "apps/ferry/common_options.h"
#include "apps/ferry/load_report.h"
#include "apps/ferry/prompts.h"
#include "apps/ferry/sampling_flags.h"
#include "apps/ferry/session.h"
#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"
#include "ferry/model/kv_type.h"

namespace ferry {

namespace {

struct GenerateOptions {
  explicit GenerateOptions(Command& app) : common(app) {}

  CommonOptions common;
  PromptSources sources;
  bool prompt_given = false;
  int max_new_tokens = 64;
  SamplingFlags flags;
  bool ignore_eos = false;
};

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
  add_sampling_options(command, o.flags);
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
  report["expert_slices"] = o.decoder.expert_slices;
  report["experts_device"] = experts_device_name(o.decoder.experts_device);
  report["backend"] = backend_name(o.decoder.backend);
  report["transport"] = o.launch.transport;
  report["threads"] = o.threads;
  report["weights"] = session.model.held_as();
  report["activations"] = activations_name(session.model.activations());
  report["kv_cache_dtype"] = kv_type_name(session.model.kv_type());
  report["isa"] = isa_name(kernels().isa);
  report["numerics"] = numerics_name(o.numerics);
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
  read_processors(o.flags.processors, processors);
  std::vector<Request> requests;
  for (const Prompt& prompt : prompts) {
    Request request{.prompt = prompt.ids,
                    .max_new_tokens = o.max_new_tokens,
                    .sampling = o.flags.sampling,
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
  check_sampling(o.flags.sampling);
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
