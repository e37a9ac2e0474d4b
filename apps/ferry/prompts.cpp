#include "apps/ferry/prompts.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string_view>

#include "ferry/core/error.h"

namespace ferry {

namespace {

using Json = nlohmann::json;

std::ifstream open_file(const std::filesystem::path& file) {
  std::error_code code;
  if (std::filesystem::is_directory(file, code))
    fail<ConfigError>("{}: a directory; expected a file of prompts", file.string());
  std::ifstream in(file, std::ios::binary);
  if (!in) fail<ConfigError>("{}: cannot be read: {}", file.string(), std::strerror(errno));
  return in;
}

Json parse_json(std::string_view text, const std::string& origin) {
  try {
    return Json::parse(text);
  } catch (const Json::parse_error& e) {
    fail<ConfigError>("{}: not JSON (byte {})", origin, e.byte);
  }
}

std::string prompt_text(const Json& item, const std::string& origin) {
  if (item.is_string()) return item.get<std::string>();
  if (item.is_object() && item.contains("prompt") && item["prompt"].is_string())
    return item["prompt"].get<std::string>();
  fail<ConfigError>("{}: expected a string or an object with a \"prompt\", found {}",
                    origin,
                    item.is_object() ? "an object without one" : item.type_name());
}

std::string line_origin(const std::filesystem::path& file, int number) {
  return fmt::format("{} line {}", file.string(), number);
}

std::vector<Prompt> read_text_file(const std::filesystem::path& file) {
  std::vector<Prompt> prompts;
  const std::string kind = file.extension().string();
  if (kind == ".json") {
    std::ifstream in = open_file(file);
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    const Json list = parse_json(text, file.string());
    if (!list.is_array())
      fail<ConfigError>(
          "{}: expected a list of prompts, found {}", file.string(), list.type_name());
    for (const Json& item : list) {
      const std::string origin = fmt::format("{} item {}", file.string(), prompts.size() + 1);
      prompts.push_back({.origin = origin, .text = prompt_text(item, origin), .ids = {}});
    }
    return prompts;
  }
  for (const NumberedLine& line : read_lines(file)) {
    Prompt prompt{.origin = line_origin(file, line.number), .text = line.text, .ids = {}};
    if (kind == ".jsonl")
      prompt.text = prompt_text(parse_json(line.text, prompt.origin), prompt.origin);
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

std::vector<std::int32_t> parse_ids(std::string_view text, const std::string& origin) {
  constexpr std::string_view kSeparators = " ,\t";
  std::vector<std::int32_t> ids;
  for (std::size_t at = text.find_first_not_of(kSeparators); at != std::string_view::npos;
       at = text.find_first_not_of(kSeparators, at)) {
    const std::string_view word =
        text.substr(at, std::min(text.find_first_of(kSeparators, at), text.size()) - at);
    std::int32_t id = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || end != word.data() + word.size())
      fail<ConfigError>("{}: expected token ids, found \"{}\"", origin, word);
    ids.push_back(id);
    at += word.size();
  }
  return ids;
}

std::vector<Prompt> read_ids_file(const std::filesystem::path& file) {
  std::vector<Prompt> prompts;
  for (const NumberedLine& line : read_lines(file)) {
    const std::string origin = line_origin(file, line.number);
    prompts.push_back({.origin = origin, .text = {}, .ids = parse_ids(line.text, origin)});
  }
  return prompts;
}

}  // namespace

std::vector<NumberedLine> read_lines(const std::filesystem::path& file) {
  std::ifstream in = open_file(file);
  std::vector<NumberedLine> lines;
  int number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (line.ends_with('\r')) line.pop_back();
    if (line.find_first_not_of(" \t") != std::string::npos) lines.push_back({number, line});
  }
  return lines;
}

std::vector<Prompt> read_prompts(const PromptSources& sources, const Session& session) {
  if (!sources.ids_file.empty()) return read_ids_file(sources.ids_file);
  std::vector<Prompt> prompts;
  if (!sources.text_file.empty())
    prompts = read_text_file(sources.text_file);
  else
    prompts.push_back({.origin = "--prompt", .text = sources.text, .ids = {}});
  for (Prompt& prompt : prompts) prompt.ids = session.model.need_tokenizer().encode(prompt.text);
  return prompts;
}

}  // namespace ferry
