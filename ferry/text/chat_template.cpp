#include "ferry/text/chat_template.h"

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <system_error>

#include "ferry/checkpoint/json_file.h"
#include "ferry/checkpoint/tensor_source.h"
#include "ferry/core/error.h"
#include "ferry/text/jinja/evaluator.h"
#include "ferry/text/jinja/parser.h"

namespace ferry {

using nlohmann::json;
using nlohmann::ordered_json;

struct ChatTemplate::Parts {
  struct Named {
    std::string file;
    JinjaBody body;
    std::string damage;  // not empty: why there is no body
  };

  void add(const std::string& name, const std::string& file, JinjaProgram program) {
    templates[name] = {.file = file, .body = std::move(program.body)};
    warnings.insert(warnings.end(), program.unsupported.begin(), program.unsupported.end());
  }

  std::map<std::string, Named> templates;
  std::vector<std::string> warnings;
  std::string text;  // of all
  Tokens tokens;
};

namespace {

constexpr std::size_t kMaxTemplateBytes = 1U << 20;
constexpr std::array<std::string_view, 3> kReasoning = {
    "reasoning_content", "thinking", "reasoning"};

using Sources = std::map<std::string, std::pair<std::string, std::string>>;  // name -> file, text

Sources jinja_files(const std::filesystem::path& directory) {
  Sources sources;
  std::error_code code;
  const auto add = [&](const std::string& name, const std::filesystem::path& path) {
    sources[name] = {path.string(), read_text_file(path, kMaxTemplateBytes)};
  };
  const auto main = directory / "chat_template.jinja";
  if (std::filesystem::exists(main, code)) add("default", main);
  for (const auto& entry :
       std::filesystem::directory_iterator(directory / "chat_templates", code)) {
    if (entry.path().extension() == ".jinja") add(entry.path().stem().string(), entry.path());
  }
  return sources;
}

Sources config_templates(const json& config, const std::string& file) {
  const auto it = config.find("chat_template");
  if (it == config.end() || it->is_null()) return {};
  const std::string where = file + ": chat_template";
  if (it->is_string()) return {{"default", {where, it->get<std::string>()}}};
  Sources sources;
  const auto is_named = [](const json& item) {
    return item.is_object() && item.contains("name") && item["name"].is_string() &&
           item.contains("template") && item["template"].is_string();
  };
  if (!it->is_array() || !std::all_of(it->begin(), it->end(), is_named)) {
    fail<ModelError>("{}: expected a string or a list of objects with name and template, found {}",
                     where,
                     describe(*it));
  }
  for (const json& item : *it) {
    const auto name = item["name"].get<std::string>();
    sources[name] = {fmt::format("{} {}", where, name), item["template"].get<std::string>()};
  }
  return sources;
}

/// The object in a text of the model's; an empty one where there is no such text.
json object_of(const std::optional<SourceText>& text) {
  if (!text) return json::object();
  json object = parse_json(text->text, text->file);
  if (!object.is_object())
    fail<ModelError>("{}: expected a JSON object, found {}", text->file, describe(object));
  return object;
}

/// What a field says of a token: its text, or an object that holds it.
std::optional<std::string> token_text(const json& field) {
  const bool wrapped = field.is_object() && field.contains("content");
  const json& token = wrapped ? field["content"] : field;
  return token.is_string() ? std::optional(token.get<std::string>()) : std::nullopt;
}

/// Those that transformers hands to templates: the usual ones, and those with names of their own
/// in extra_special_tokens, such as image_token.
ChatTemplate::Tokens special_tokens(const json& config) {
  ChatTemplate::Tokens tokens;
  for (const char* name : {"bos_token",
                           "eos_token",
                           "unk_token",
                           "sep_token",
                           "pad_token",
                           "cls_token",
                           "mask_token"}) {
    const auto it = config.find(name);
    if (it == config.end()) continue;
    if (const auto text = token_text(*it)) tokens.emplace_back(name, *text);
  }
  const auto extra = config.find("extra_special_tokens");
  if (extra == config.end() || !extra->is_object()) return tokens;  // a list has no names
  for (const auto& [name, field] : extra->items()) {
    if (const auto text = token_text(field)) tokens.emplace_back(name, *text);
  }
  return tokens;
}

/// A message, with its reasoning under the names that templates look for, as transformers does it.
ordered_json with_reasoning(const ordered_json& message) {
  for (const std::string_view name : kReasoning) {
    const auto it = message.find(name);
    if (it == message.end() || it->is_null()) continue;
    ordered_json copy = ordered_json::object();
    copy["thinking"] = *it;
    for (const auto& [key, value] : message.items()) copy[key] = value;
    copy["reasoning_content"] = *it;
    return copy;
  }
  return message;
}

std::vector<JinjaNamed> variables(const ordered_json& messages,
                                  const ChatTemplate::Tokens& tokens,
                                  const ChatRenderOptions& options) {
  constexpr std::array<std::string_view, 3> kOwn = {"messages", "tools", "add_generation_prompt"};
  const bool list = messages.is_array() &&
                    std::all_of(messages.begin(), messages.end(), [](const ordered_json& message) {
                      return message.is_object();
                    });
  if (!list) throw JinjaFailure("messages: expected a list of objects");
  ordered_json completed = ordered_json::array();
  for (const ordered_json& message : messages) completed.push_back(with_reasoning(message));
  std::vector<JinjaNamed> result;
  result.emplace_back("messages", to_jinja(completed));
  result.emplace_back("tools", options.tools == nullptr ? JinjaValue() : to_jinja(*options.tools));
  result.emplace_back("add_generation_prompt", JinjaValue(options.add_generation_prompt));
  const auto add = [&](const std::string& name, JinjaValue value) {
    const bool known = std::any_of(
        result.begin(), result.end(), [&](const auto& entry) { return entry.first == name; });
    if (!known) result.emplace_back(name, std::move(value));
  };
  if (options.extra != nullptr) {
    if (!options.extra->is_object()) throw JinjaFailure("extra variables: expected an object");
    for (const auto& [name, value] : options.extra->items()) {
      if (std::find(kOwn.begin(), kOwn.end(), name) != kOwn.end()) {
        throw JinjaFailure(fmt::format("extra variables: {} has its own place", name));
      }
      add(name, to_jinja(value));
    }
  }
  for (const auto& [name, text] : tokens) add(name, JinjaValue::text(text));
  add("documents", JinjaValue());
  return result;
}

}  // namespace

ChatTemplate ChatTemplate::parse(std::string_view source, const std::string& file, Tokens tokens) {
  auto parts = std::make_shared<Parts>();
  parts->add("default", file, parse_jinja(source, file));
  parts->text = source;
  parts->tokens = std::move(tokens);
  return ChatTemplate(std::move(parts));
}

std::optional<ChatTemplate> ChatTemplate::load(const std::filesystem::path& directory) {
  Sources sources = jinja_files(directory);
  auto parts = std::make_shared<Parts>();
  const auto stored = model_text(directory, "tokenizer_config.json");
  json config = object_of(stored);
  // As transformers does: what older checkpoints say in a file of its own counts where the
  // configuration does not describe the added tokens itself.
  if (!config.contains("added_tokens_decoder")) {
    config.update(object_of(model_text(directory, "special_tokens_map.json")));
  }
  parts->tokens = special_tokens(config);
  if (sources.empty() && stored) sources = config_templates(config, stored->file);
  if (sources.empty()) return std::nullopt;
  for (const auto& [name, source] : sources) {
    const auto& [file, text] = source;
    try {
      parts->add(name, file, parse_jinja(text, file));
    } catch (const ModelError& e) {
      parts->templates[name] = {.file = file, .damage = e.what()};
      parts->warnings.emplace_back(e.what());
    }
    parts->text += text;
  }
  return ChatTemplate(std::move(parts));
}

const std::vector<std::string>& ChatTemplate::warnings() const { return parts_->warnings; }

const std::string& ChatTemplate::text() const { return parts_->text; }

std::string ChatTemplate::render(const ordered_json& messages,
                                 const ChatRenderOptions& options) const {
  const auto& templates = parts_->templates;
  auto chosen = options.tools == nullptr ? templates.end() : templates.find("tool_use");
  if (chosen == templates.end()) chosen = templates.find("default");
  if (chosen == templates.end()) {
    fail<ConfigError>("{}: expected a template named default, found only {}",
                      templates.begin()->second.file,
                      templates.begin()->first);
  }
  if (!chosen->second.damage.empty()) throw ConfigError(chosen->second.damage);
  std::vector<JinjaNamed> known;
  try {
    known = variables(messages, parts_->tokens, options);
  } catch (const JinjaFailure& failure) {
    fail<ConfigError>("chat: {}", failure.what());
  }
  return run_jinja(chosen->second.body,
                   chosen->second.file,
                   std::move(known),
                   {.max_text = options.max_bytes},
                   options.now);
}

}  // namespace ferry
