#include "ferry/text/chat.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "ferry/core/error.h"
#include "ferry/text/chat_template.h"

namespace ferry {

using Json = nlohmann::ordered_json;

namespace {

/// Roles that templates know, so that what they leave out of them is meant.
constexpr std::array<std::string_view, 4> kUsualRoles = {"system", "user", "assistant", "tool"};

/// The text parts of a message put together.
std::string joined_parts(const Json& parts) {
  std::string text;
  for (const Json& part : parts) {
    const JsonFields fields(part);
    if (fields.text("type") != "text")
      fail<ConfigError>("a part of a message is no text; this model reads text only");
    text += fields.text("text").value_or("");
  }
  return text;
}

/// Arguments come as JSON in a string. Most templates want the object that this is, and get it
/// where `open`.
void check_calls(Json& calls, bool open) {
  if (!calls.is_array()) fail<ConfigError>("\"tool_calls\" must be a list");
  for (Json& call : calls) {
    if (!call.is_object() || !call.contains("function") || !call["function"].is_object())
      fail<ConfigError>("a tool call has no \"function\" with name and arguments");
    Json& function = call["function"];
    const auto arguments = function.find("arguments");
    if (!open || arguments == function.end() || !arguments->is_string()) continue;
    Json opened = Json::parse(arguments->get<std::string>(), nullptr, /*allow_exceptions=*/false);
    if (opened.is_object()) *arguments = std::move(opened);
  }
}

/// A message without members that are null, its content in one piece, as templates expect.
Json plain_message(const Json& message, bool open) {
  const JsonFields fields(message);
  if (fields.text("role").value_or("").empty())
    fail<ConfigError>("a message has no \"role\"; give system, user, assistant or tool");
  Json plain = Json::object();
  for (const auto& [name, value] : message.items())
    if (!value.is_null()) plain[name] = value;
  // Where a call stands instead of an answer. Templates would print the null, or fail on it.
  if (!plain.contains("content")) plain["content"] = "";
  Json& content = plain["content"];
  if (content.is_array()) content = joined_parts(content);
  if (!content.is_string()) fail<ConfigError>("\"content\" of a message must be text");
  if (plain.contains("tool_calls") && plain["tool_calls"].empty()) plain.erase("tool_calls");
  if (plain.contains("tool_calls")) check_calls(plain["tool_calls"], open);
  return plain;
}

/// One conversation with all that its prompt depends on.
class Conversation {
 public:
  Conversation(const JsonFields& fields, const ChatRenderer& renderer, const Json* tools)
      : renderer_(renderer), tools_(tools), messages_(*fields.find("messages")) {
    if (const Json* extra = fields.find("chat_template_kwargs")) {
      static_cast<void>(JsonFields(*extra));  // an object
      extra_ = *extra;
    }
    if (const Json* documents = fields.find("documents")) {
      if (!documents->is_array())
        fail<ConfigError>("\"documents\" must be a list, not {}", shown_value(*documents));
      for (const Json& document : *documents) static_cast<void>(JsonFields(document));
      if (!documents->empty()) extra_["documents"] = *documents;
    }
    if (const auto effort = fields.text("reasoning_effort"); effort && !effort->empty())
      extra_["reasoning_effort"] = *effort;
    continues_ = fields.boolean("continue_final_message").value_or(false);
    begins_ = fields.boolean("add_generation_prompt").value_or(!continues_);
    if (continues_ && begins_)
      fail<ConfigError>(
          "\"continue_final_message\" and \"add_generation_prompt\" exclude each other");
  }

  std::string prompt() {
    std::string prompt = render(messages_);
    check_documents(prompt);
    for (std::size_t i = 0; i < messages_.size(); ++i) {
      const auto role = messages_[i]["role"].get<std::string>();
      if (std::find(kUsualRoles.begin(), kUsualRoles.end(), role) != kUsualRoles.end()) continue;
      if (tells(i, prompt)) continue;
      // OpenAI's newer name for it.
      if (role != "developer")
        fail<ConfigError>("the model's chat template passes over messages of role \"{}\"", role);
      messages_[i]["role"] = "system";
      prompt = render(messages_);
    }
    return continues_ ? up_to_the_end(prompt) : prompt;
  }

 private:
  std::string render(const Json& messages) const {
    const auto with = [&](bool open) {
      Json plain = Json::array();
      for (const Json& message : messages) plain.push_back(plain_message(message, open));
      return renderer_(plain,
                       {.add_generation_prompt = begins_, .tools = tools_, .extra = &extra_});
    };
    try {
      return with(/*open=*/true);
    } catch (const ConfigError&) {
      const bool calls = std::any_of(messages.begin(), messages.end(), [](const Json& message) {
        return message.contains("tool_calls");
      });
      if (!calls) throw;
    }
    return with(/*open=*/false);  // some templates join arguments to text
  }

  /// Throws ConfigError where the template passes over them.
  void check_documents(const std::string& prompt) {
    const auto found = extra_.find("documents");
    if (found == extra_.end()) return;
    const Json documents = std::move(*found);
    extra_.erase("documents");
    if (render(messages_) == prompt)
      fail<ConfigError>("the model's chat template passes over \"documents\"; leave them out");
    extra_["documents"] = documents;
  }

  /// Whether the prompt would be another one without this message.
  bool tells(std::size_t i, const std::string& prompt) const {
    Json others = messages_;
    others.erase(i);
    try {
      return render(others) != prompt;
    } catch (const ConfigError&) {
      return true;
    }
  }

  /// Cut behind the text of the last message.
  std::string up_to_the_end(const std::string& prompt) const {
    std::string last = plain_message(messages_.back(), /*open=*/true)["content"];
    const auto end = last.find_last_not_of(" \t\r\n");
    last.resize(end == std::string::npos ? 0 : end + 1);
    const std::size_t at = prompt.rfind(last);
    if (last.empty() || at == std::string::npos)
      fail<ConfigError>(
          "\"continue_final_message\" needs a last message whose text stands in the prompt");
    return prompt.substr(0, at + last.size());
  }

  const ChatRenderer& renderer_;
  const Json* tools_;
  Json messages_;
  Json extra_ = Json::object();
  bool continues_ = false;
  bool begins_ = true;
};

}  // namespace

ChatRenderer chat_renderer(const std::filesystem::path& directory,
                           const std::function<void(const std::string&)>& warn) {
  const std::optional<ChatTemplate> chat = ChatTemplate::load(directory);
  if (!chat) return {};
  if (const auto& warnings = chat->warnings(); warn && !warnings.empty()) {
    warn(fmt::format("chats that reach it are refused: {}{}",
                     warnings[0],
                     warnings.size() > 1 ? fmt::format(", and {} more", warnings.size() - 1) : ""));
  }
  const std::string prefix = (directory / "").string();
  return [=](const Json& messages, const ChatRenderOptions& options) {
    try {
      return chat->render(messages, options);
    } catch (const ConfigError& e) {
      std::string message = e.what();
      if (message.starts_with(prefix)) message.erase(0, prefix.size());
      throw ConfigError(message);
    }
  };
}

std::string chat_prompt(const JsonFields& fields, const ChatRenderer& renderer, const Json* tools) {
  const Json* messages = fields.find("messages");
  if (messages == nullptr || !messages->is_array() || messages->empty())
    fail<ConfigError>("\"messages\" must be a list of at least one message");
  if (!renderer) {
    fail<ConfigError>(
        "this model has no chat template; continue a prompt as it was trained on "
        "(/v1/completions)");
  }
  return Conversation(fields, renderer, tools).prompt();
}

}  // namespace ferry
