// ferry chat: a conversation in the terminal. Each turn is the chat request that a client of the
// server would send, over an engine in this process.
#include <fmt/core.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <exception>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "apps/ferry/command.h"
#include "apps/ferry/command_line.h"
#include "apps/ferry/common_options.h"
#include "apps/ferry/sampling_flags.h"
#include "apps/ferry/served_session.h"
#include "apps/ferry/session.h"
#include "ferry/core/error.h"
#include "ferry/runtime/engine_front.h"
#include "ferry/server/generation.h"
#include "ferry/server/openai_call.h"

namespace ferry {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kHelp =
    "/exit ends, as the end of input does\n"
    "/clear forgets the conversation\n"
    "/system TEXT says how the model should answer; without TEXT: as it likes\n";
/// How soon it is seen that the engine has ended while nobody types.
constexpr int kLookMs = 100;

struct ChatOptions {
  explicit ChatOptions(Command& app) : common(app) {}

  CommonOptions common;
  SamplingFlags flags;
  ParserFlags parsers;
  std::string system;
  int max_new_tokens = 0;
  Json members;  // of every request
};

/// Lines of standard input.
class Lines {
 public:
  /// None: there are no more, or `over`.
  std::optional<std::string> next(const std::atomic<bool>& over) {
    for (;;) {
      const std::size_t end = text_.find('\n');
      if (end != std::string::npos || (ended_ && !text_.empty())) {
        std::string line = text_.substr(0, end);
        text_.erase(0, end == std::string::npos ? end : end + 1);
        return line;
      }
      if (ended_ || over) return std::nullopt;
      read_more();
    }
  }

 private:
  void read_more() {
    pollfd wanted{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
    if (poll(&wanted, 1, kLookMs) <= 0) return;
    std::array<char, 4096> buffer{};
    const ssize_t got = read(STDIN_FILENO, buffer.data(), buffer.size());
    if (got > 0)
      text_.append(buffer.data(), static_cast<std::size_t>(got));
    else if (got == 0 || errno != EINTR)
      ended_ = true;
  }

  std::string text_;
  bool ended_ = false;
};

class Conversation {
 public:
  /// All borrowed.
  Conversation(EngineFront& front, const ServedModel& model, const ChatOptions& o, bool json)
      : front_(front), model_(model), members_(o.members), system_(o.system), json_(json) {}

  /// False: it is over.
  bool take(const std::string& line) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) return true;
    if (!line.starts_with('/')) {
      say(line);
      return true;
    }
    const std::size_t end = line.find_first_of(" \t\r");
    const std::string command = line.substr(0, end);
    if (command == "/exit") return false;
    if (command == "/clear") {
      turns_ = Json::array();
    } else if (command == "/system") {
      const std::size_t begin = line.find_first_not_of(" \t\r", std::min(end, line.size()));
      system_ = begin == std::string::npos ? "" : line.substr(begin);
    } else {
      fmt::print(stderr, "{}", kHelp);
    }
    return true;
  }

 private:
  /// What cannot be answered is told, and forgotten.
  void say(const std::string& text) {
    turns_.push_back({{"role", "user"}, {"content", text}});
    try {
      turns_.push_back(answer());
    } catch (const Refused&) {
      throw;  // the engine has ended
    } catch (const Error& e) {
      turns_.erase(turns_.size() - 1);
      fmt::print(stderr, "ferry: {}\n", e.what());
    }
  }

  Json answer() {
    Json body = members_;
    body["messages"] = Json::array();
    if (!system_.empty()) body["messages"].push_back({{"role", "system"}, {"content", system_}});
    body["messages"].insert(body["messages"].end(), turns_.begin(), turns_.end());
    const OpenAiCall call = read_chat(body, HttpRequest{}, model_);
    check_lengths(model_, call.prompts);
    Generation generation(front_, for_generation(model_), call.prompts, call.settings);
    ChatAnswer parsed(call.answer);
    while (!generation.done()) {
      const auto piece = generation.next();
      if (!piece) continue;
      const bool last = !generation.choices().front().finish.empty();
      const Json delta = parsed.put(piece->text, last);
      if (!json_) show(delta);
    }
    const Json message = parsed.message();
    if (json_)
      fmt::print("{}\n",
                 to_text({{"message", message},
                          {"finish_reason", generation.choices().front().finish},
                          {"prompt_tokens", generation.prompt_tokens()},
                          {"cached_tokens", generation.cached_tokens()},
                          {"completion_tokens", generation.completion_tokens()}}));
    else
      fmt::print("\n");
    std::fflush(stdout);
    return message;
  }

  /// Thoughts are dim where a person reads.
  static void show(const Json& delta) {
    const bool terminal = isatty(STDOUT_FILENO) != 0;
    const std::string thought = delta.value("reasoning_content", "");
    if (!thought.empty())
      fmt::print("{}{}{}", terminal ? "\033[2m" : "", thought, terminal ? "\033[0m" : "");
    fmt::print("{}", delta.value("content", ""));
    std::fflush(stdout);
  }

  EngineFront& front_;
  const ServedModel& model_;
  const Json& members_;
  std::string system_;
  const bool json_;
  Json turns_ = Json::array();
};

/// Until the person has said enough, or the engine has ended.
void talk(Conversation& conversation, const std::atomic<bool>& over) {
  const bool prompts = isatty(STDIN_FILENO) != 0;
  Lines lines;
  for (;;) {
    if (prompts) {
      fmt::print("> ");
      std::fflush(stdout);
    }
    const std::optional<std::string> line = lines.next(over);
    if (prompts && !line) fmt::print("\n");
    if (!line || !conversation.take(*line)) return;
  }
}

int lead(Engine& engine, const Session& session, const ServedModel& model, const ChatOptions& o) {
  EngineFront front(engine, /*listener=*/nullptr);
  Conversation conversation(front, model, o, session.options.json);
  std::atomic<bool> over{false};
  std::exception_ptr trouble;  // of the thread, until it is joined
  engine.open();
  std::thread person([&] {
    try {
      talk(conversation, over);
    } catch (...) {
      trouble = std::current_exception();
    }
    front.stop("the conversation is over");
  });
  try {
    engine.run([&](const TokenEvent& event) { front.on_token(event); });
  } catch (const std::exception& e) {
    front.fail(std::string("the engine has failed: ") + e.what());
    over = true;
    person.join();
    throw;
  }
  person.join();
  if (trouble) std::rethrow_exception(trouble);
  print_summary(session, engine.stats());
  return 0;
}

int chat(const ChatOptions& o) {
  const Session session = open_session(o.common.resolve());
  const ServedModel model = served_model(session, "", o.parsers);
  if (!model.render_chat || model.tokenizer == nullptr)
    fail<ConfigError>(
        "{}: a model without a chat template or tokenizer cannot chat; use `ferry generate`",
        model.path);
  return session.model.run_engine([&](Engine& engine) { return lead(engine, session, model, o); });
}

}  // namespace

void add_chat(Command& app, int& status) {
  Command* command = app.add_subcommand("chat", "Talk with a model in the terminal");
  auto options = std::make_shared<ChatOptions>(*command);
  command->add_option("--system", options->system, "How the model should answer")
      ->type_name("TEXT");
  command
      ->add_option("--max-new-tokens",
                   options->max_new_tokens,
                   "Tokens of an answer at most; 0 = to the end of the context")
      ->type_name("N")
      ->not_negative()
      ->capture_default_str();
  add_sampling_options(*command, options->flags);
  add_parser_options(*command, options->parsers, "Options");
  command->footer(
      std::string("Sampling that no option names is what the checkpoint recommends.\n\n") + kHelp);
  command->callback([command, options, &status] {
    options->members = named_members(*command, options->flags);
    if (options->max_new_tokens > 0) options->members["max_tokens"] = options->max_new_tokens;
    status = chat(*options);
  });
}

}  // namespace ferry
