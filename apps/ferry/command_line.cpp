#include "apps/ferry/command_line.h"

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

namespace ferry {

namespace {

constexpr std::size_t kHelpColumn = 36;

/// One line for what CLI11 refused; it tells an unknown subcommand only as a missing one.
int usage_error(const CLI::App& app, const CLI::ParseError& error, const char* first_argument) {
  std::string message = error.what();
  std::string help = "ferry --help";
  if (const auto used = app.get_subcommands(); !used.empty()) {
    help = fmt::format("ferry {} --help", used.front()->get_name());
  } else if (first_argument != nullptr && first_argument[0] != '-') {
    message = fmt::format("unknown subcommand \"{}\"", first_argument);
  }
  fmt::print(stderr, "ferry: {}; see {}\n", message, help);
  return 2;
}

}  // namespace

struct Command::Parts {
  std::unique_ptr<CLI::App> program;  // of the program itself; subcommands belong to it
  CLI::App* app = nullptr;
  std::deque<Option> options;
  std::vector<std::unique_ptr<Command>> subcommands;
};

Option* Option::type_name(const std::string& name) {
  option_->type_name(name);
  return this;
}

Option* Option::group(const std::string& name) {
  option_->group(name);
  return this;
}

Option* Option::capture_default_str() {
  option_->capture_default_str();
  return this;
}

Option* Option::required() {
  option_->required();
  return this;
}

Option* Option::delimiter(char between_values) {
  option_->delimiter(between_values);
  return this;
}

Option* Option::envname(const std::string& variable) {
  option_->envname(variable);
  return this;
}

Option* Option::needs(const std::string& other) {
  option_->needs(other);
  return this;
}

Option* Option::needs(Option* other) {
  option_->needs(other->option_);
  return this;
}

Option* Option::excludes(Option* other) {
  option_->excludes(other->option_);
  return this;
}

Option* Option::range(int low, int high) {
  option_->check(CLI::Range(low, high));
  return this;
}

Option* Option::range(double low, double high) {
  option_->check(CLI::Range(low, high));
  return this;
}

Option* Option::range(std::size_t low, std::size_t high) {
  option_->check(CLI::Range(low, high));
  return this;
}

Option* Option::positive() {
  option_->check(CLI::PositiveNumber);
  return this;
}

Option* Option::not_negative() {
  option_->check(CLI::NonNegativeNumber);
  return this;
}

Option* Option::check(std::function<std::string(const std::string&)> validator) {
  option_->check(std::move(validator));
  return this;
}

Command::Command(const std::string& help, const std::string& name, const std::string& version)
    : parts_(std::make_unique<Parts>()) {
  parts_->program = std::make_unique<CLI::App>(help, name);
  parts_->app = parts_->program.get();
  parts_->app->set_version_flag("--version", version, "Print the version and exit");
  parts_->app->get_formatter()->column_width(kHelpColumn);
}

Command::Command(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

Command::~Command() = default;

Option* Command::keep(CLI::Option* option) { return &parts_->options.emplace_back(option); }

Command* Command::add_subcommand(const std::string& name, const std::string& help) {
  auto parts = std::make_unique<Parts>();
  parts->app = parts_->app->add_subcommand(name, help);
  parts_->subcommands.push_back(std::unique_ptr<Command>(new Command(std::move(parts))));
  return parts_->subcommands.back().get();
}

void Command::require_subcommand() { parts_->app->require_subcommand(1); }

template <class T>
Option* Command::add_option(const std::string& names, T& value, const std::string& help) {
  return keep(parts_->app->add_option(names, value, help));
}

Option* Command::add_flag(const std::string& names, bool& value, const std::string& help) {
  return keep(parts_->app->add_flag(names, value, help));
}

void Command::callback(std::function<void()> run) { parts_->app->callback(std::move(run)); }

void Command::footer(const std::string& text) { parts_->app->footer(text); }

std::size_t Command::count(const std::string& option) const { return parts_->app->count(option); }

std::optional<int> Command::parse(int argc, char** argv) {
  try {
    parts_->app->parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) return parts_->app->exit(e);
    return usage_error(*parts_->app, e, argc > 1 ? argv[1] : nullptr);
  }
  return std::nullopt;
}

template Option* Command::add_option(const std::string&, std::string&, const std::string&);
template Option* Command::add_option(const std::string&, int&, const std::string&);
template Option* Command::add_option(const std::string&, double&, const std::string&);
template Option* Command::add_option(const std::string&, std::uint64_t&, const std::string&);
template Option* Command::add_option(const std::string&, std::int64_t&, const std::string&);
template Option* Command::add_option(const std::string&, std::optional<int>&, const std::string&);
template Option* Command::add_option(const std::string&, std::vector<int>&, const std::string&);
template Option* Command::add_option(const std::string&,
                                     std::vector<std::size_t>&,
                                     const std::string&);
template Option* Command::add_option(const std::string&,
                                     std::vector<std::string>&,
                                     const std::string&);

}  // namespace ferry
