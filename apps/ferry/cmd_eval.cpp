// ferry eval: asks a set of questions with known answers and counts the exact matches.
#include <fmt/core.h>

#include <memory>
#include <nlohmann/json.hpp>
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

namespace ferry {

namespace {

struct EvalOptions {
  explicit EvalOptions(Command& app) : common(app) {}

  CommonOptions common;
  std::string data;
  int limit = 0;
  int max_new_tokens = 64;
  double min_score = 0;
  bool verbose = false;
};

struct Question {
  std::string prompt;
  std::string answer;
  std::vector<std::int32_t> ids;
};

constexpr std::size_t kMissesShown = 20;

std::vector<Question> read_questions(const std::filesystem::path& file,
                                     int limit,
                                     const Session& session) {
  std::vector<Question> questions;
  for (const NumberedLine& line : read_lines(file)) {
    if (limit > 0 && questions.size() == static_cast<std::size_t>(limit)) break;
    const auto item = nlohmann::json::parse(line.text, nullptr, /*allow_exceptions=*/false);
    const auto is_text = [&](const char* key) {
      return item.is_object() && item.contains(key) && item[key].is_string();
    };
    if (!is_text("prompt") || !is_text("answer")) {
      fail<ConfigError>("{} line {}: expected {{\"prompt\": text, \"answer\": text}}",
                        file.string(),
                        line.number);
    }
    questions.push_back({.prompt = item["prompt"], .answer = item["answer"], .ids = {}});
    questions.back().ids = session.model.need_tokenizer().encode(questions.back().prompt);
  }
  if (questions.empty()) fail<ConfigError>("{}: holds no question", file.string());
  return questions;
}

std::string_view strip(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const auto first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

/// An answer ends with its line, so generation may stop at any token that holds a line's end.
std::vector<std::int32_t> answer_stops(const Session& session) {
  std::vector<std::int32_t> stops = session.config().eos_ids;
  const Tokenizer& tokenizer = session.model.need_tokenizer();
  for (std::int32_t id = 0; id < tokenizer.size() && stops.size() < kMaxStopIds; ++id) {
    if (tokenizer.has_token(id) && tokenizer.token_bytes(id).find('\n') != std::string_view::npos)
      stops.push_back(id);
  }
  return stops;
}

struct Report {
  std::vector<std::string> answers;  // of the model, stripped
  std::size_t exact = 0;

  double score() const { return static_cast<double>(exact) / static_cast<double>(answers.size()); }
};

void print_report(const EvalOptions& o,
                  const Session& session,
                  const std::vector<Question>& questions,
                  const Report& report) {
  const RunOptions& run = session.options;
  nlohmann::ordered_json misses = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < questions.size(); ++i) {
    if (report.answers[i] == questions[i].answer) continue;
    misses.push_back({{"prompt", questions[i].prompt},
                      {"expected", questions[i].answer},
                      {"found", report.answers[i]}});
  }
  if (run.json) {
    nlohmann::ordered_json json{{"model", run.model.string()},
                                {"ep", run.launch.ranks},
                                {"tp", run.decoder.tp},
                                {"backend", backend_name(run.decoder.backend)},
                                {"transport", run.launch.transport},
                                {"exact", report.exact},
                                {"total", questions.size()},
                                {"score", report.score()},
                                {"misses", misses}};
    fmt::print("{}\n", json.dump(2));
    return;
  }
  for (std::size_t i = 0; o.verbose && i < std::min(misses.size(), kMissesShown); ++i) {
    fmt::print("miss: {}\n  expected {}\n  found    {}\n",
               misses[i]["prompt"].dump(),
               misses[i]["expected"].dump(),
               misses[i]["found"].dump());
  }
  fmt::print(
      "exact matches: {} of {} ({:.1f} %)\n", report.exact, questions.size(), 100 * report.score());
}

int eval(const EvalOptions& o) {
  const Session session = open_session(o.common.resolve());
  const std::filesystem::path data =
      o.data.empty() ? session.options.model / "eval.jsonl" : std::filesystem::path(o.data);
  const std::vector<Question> questions = read_questions(data, o.limit, session);
  const std::vector<std::int32_t> stops = answer_stops(session);
  std::vector<Request> requests;
  for (const Question& question : questions) {
    requests.push_back({.prompt = question.ids,
                        .max_new_tokens = o.max_new_tokens,
                        .sampling = {},
                        .stop_ids = stops});
    check_prompt(
        session, requests.back(), fmt::format("{} question {}", data.string(), requests.size()));
  }

  return session.model.run_engine([&](Engine& engine) {
    for (const Request& request : requests) static_cast<void>(engine.submit(request));
    std::vector<std::vector<std::int32_t>> ids(requests.size());
    engine.run([&](const TokenEvent& event) { ids[event.request].push_back(event.token); });
    Report report;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const std::string text = session.model.text_of(ids[i]);
      report.answers.emplace_back(strip(std::string_view(text).substr(0, text.find('\n'))));
      report.exact += report.answers[i] == questions[i].answer ? 1 : 0;
    }
    print_report(o, session, questions, report);
    print_summary(session, engine.stats());
    report_load(session, engine);
    return report.score() < o.min_score ? 1 : 0;
  });
}

}  // namespace

void add_eval(Command& app, int& status) {
  Command* command =
      app.add_subcommand("eval", "Ask questions with known answers and count the exact matches");
  auto options = std::make_shared<EvalOptions>(*command);
  command
      ->add_option("--data",
                   options->data,
                   "Lines of {\"prompt\": .., \"answer\": ..} [eval.jsonl of the model]. An answer "
                   "is the greedy continuation up to its line's end, without blanks around it")
      ->type_name("FILE");
  command->add_option("--limit", options->limit, "Only the first N questions")->type_name("N");
  command->add_option("--max-new-tokens", options->max_new_tokens, "Tokens of an answer at most")
      ->type_name("N")
      ->capture_default_str();
  command->add_option("--min-score", options->min_score, "Exit with 1 when the share is below")
      ->type_name("X");
  command->add_flag("--verbose", options->verbose, "Show wrong answers");
  command->callback([options, &status] { status = eval(*options); });
}

}  // namespace ferry
