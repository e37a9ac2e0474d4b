// The command line: subcommands with options, parsed into the variables that the options name. A
// thin cover over CLI11, whose templates alone cost each file that includes them many seconds to
// compile.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

namespace CLI {
class Option;
}

namespace ferry {

/// One option of a command. The object belongs to its command; every function returns it again, so
/// that calls can be chained.
class Option {
 public:
  explicit Option(CLI::Option* option) : option_(option) {}

  Option* type_name(const std::string& name);
  Option* group(const std::string& name);
  Option* capture_default_str();  ///< the help shows the value that the variable has now
  Option* required();
  Option* delimiter(char between_values);
  Option* envname(const std::string& variable);
  Option* needs(const std::string& other);
  Option* needs(Option* other);
  Option* excludes(Option* other);
  Option* range(int low, int high);
  Option* range(double low, double high);
  Option* range(std::size_t low, std::size_t high);
  Option* positive();
  Option* not_negative();

  /// Returns what is wrong with the text that was given, empty for nothing.
  Option* check(std::function<std::string(const std::string&)> validator);

 private:
  CLI::Option* option_;
};

/// The program or one subcommand of it. Variables that options name must live until parsing is
/// over.
class Command {
 public:
  /// The program itself. `version` is what --version prints.
  Command(const std::string& help, const std::string& name, const std::string& version);
  Command(const Command&) = delete;
  Command& operator=(const Command&) = delete;
  ~Command();

  Command* add_subcommand(const std::string& name, const std::string& help);
  void require_subcommand();

  /// `names`: "--new-name,--old-name", or a word without dashes for a positional argument.
  /// command_line.cpp lists the types that a value may have; another one does not link.
  template <class T>
  Option* add_option(const std::string& names, T& value, const std::string& help);

  Option* add_flag(const std::string& names, bool& value, const std::string& help);

  /// Runs while parsing, when the command line names this command.
  void callback(std::function<void()> run);
  void footer(const std::string& text);  ///< behind the options in the help

  /// How often the command line named the option.
  std::size_t count(const std::string& option) const;

  /// Parses and runs what is named. Returns an exit status where there is nothing more to do: help
  /// or the version is printed (0), or one line for a mistake in usage (2).
  std::optional<int> parse(int argc, char** argv);

 private:
  struct Parts;

  explicit Command(std::unique_ptr<Parts> parts);
  Option* keep(CLI::Option* option);

  std::unique_ptr<Parts> parts_;
};

}  // namespace ferry
