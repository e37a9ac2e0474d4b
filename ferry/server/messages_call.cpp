#include "ferry/server/messages_call.h"

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/server/members.h"
#include "ferry/text/json_fields.h"

namespace ferry {

using Json = nlohmann::ordered_json;

namespace {

[[noreturn]] void refuse_block(const std::string& type) {
  if (type.empty()) fail<ConfigError>("a block of \"content\" has no \"type\"");
  fail<ConfigError>("a block of type \"{}\" is not supported; this model reads text only", type);
}

/// A text, or a list of blocks of text put together.
std::string text_of(const Json& content, const char* name) {
  if (content.is_string()) return content;
  if (!content.is_array())
    fail<ConfigError>(
        "\"{}\" must be text or a list of blocks, not {}", name, shown_value(content));
  std::string text;
  for (const Json& block : content) {
    const JsonFields fields(block);
    const std::string type = fields.text("type").value_or("");
    if (type != "text") refuse_block(type);
    text += fields.text("text").value_or("");
  }
  return text;
}

/// The messages of one that holds blocks: results of tools are messages of their own in chats.
class Blocks {
 public:
  Blocks(const std::string& role, Json& messages) : role_(role), messages_(messages) {}

  void add(const Json& block) {
    const JsonFields fields(block);
    const std::string type = fields.text("type").value_or("");
    if (type == "text") {
      text_ += fields.text("text").value_or("");
      any_ = true;
    } else if (type == "tool_result" && role_ == "user") {
      add_result(fields);
    } else if (type == "tool_use" && role_ == "assistant") {
      add_call(fields);
    } else if (type == "thinking" && role_ == "assistant") {
      thinking_ += fields.text("thinking").value_or("");
    } else if (type != "redacted_thinking" || role_ != "assistant") {
      refuse_block(type);  // what is redacted only its own model can read
    }
  }

  void finish() {
    if (!any_ && calls_.empty() && thinking_.empty()) return;
    Json message{{"role", role_}, {"content", text_}};
    if (!thinking_.empty()) message["reasoning_content"] = thinking_;
    if (!calls_.empty()) message["tool_calls"] = calls_;
    messages_.push_back(std::move(message));
    text_.clear();
    any_ = false;
  }

 private:
  void add_result(const JsonFields& fields) {
    finish();
    const Json* content = fields.find("content");
    std::string text = content == nullptr ? "" : text_of(*content, "content");
    // Chats have no other place for it.
    if (fields.boolean("is_error").value_or(false)) text = "Error: " + text;
    messages_.push_back({{"role", "tool"},
                         {"tool_call_id", fields.text("tool_use_id").value_or("")},
                         {"content", text}});
  }

  void add_call(const JsonFields& fields) {
    const Json* input = fields.find("input");
    calls_.push_back({{"id", fields.text("id").value_or("")},
                      {"type", "function"},
                      {"function",
                       {{"name", fields.text("name").value_or("")},
                        {"arguments", input == nullptr ? "{}" : to_text(*input)}}}});
  }

  const std::string role_;
  Json& messages_;
  std::string text_, thinking_;
  bool any_ = false;  // there was a text, even an empty one
  Json calls_ = Json::array();
};

void add_message(const Json& message, Json& messages) {
  const JsonFields fields(message);
  const std::string role = fields.text("role").value_or("");
  if (role != "user" && role != "assistant" && role != "system")
    fail<ConfigError>("the \"role\" of a message must be user, assistant or system, not \"{}\"",
                      role);
  const Json* content = fields.find("content");
  if (content == nullptr) fail<ConfigError>("a message has no \"content\"");
  if (!content->is_array() || role == "system") {
    messages.push_back({{"role", role}, {"content", text_of(*content, "content")}});
    return;
  }
  Blocks blocks(role, messages);
  for (const Json& block : *content) blocks.add(block);
  blocks.finish();
}

Json messages_of(const JsonFields& fields) {
  Json messages = Json::array();
  if (const Json* system = fields.find("system")) {
    std::string text = text_of(*system, "system");
    if (!text.empty()) messages.push_back({{"role", "system"}, {"content", std::move(text)}});
  }
  const Json* given = fields.find("messages");
  if (given == nullptr || !given->is_array() || given->empty())
    fail<ConfigError>("\"messages\" must be a list of at least one message");
  for (const Json& message : *given) add_message(message, messages);
  return messages;
}

Json tools_of(const Json& tools) {
  if (!tools.is_array()) fail<ConfigError>("\"tools\" must be a list, not {}", shown_value(tools));
  Json all = Json::array();
  for (const Json& tool : tools) {
    const JsonFields fields(tool);
    if (const auto type = fields.text("type"); type && *type != "custom")
      fail<ConfigError>("a tool of type \"{}\" is not supported; give custom ones", *type);
    Json function{{"name", fields.text("name").value_or("")}};
    if (const auto description = fields.text("description")) function["description"] = *description;
    if (const Json* schema = fields.find("input_schema")) function["parameters"] = *schema;
    all.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  return all;
}

void set_tool_choice(const Json& choice, Json& chat) {
  const JsonFields fields(choice);
  const std::string type = fields.text("type").value_or("");
  if (fields.boolean("disable_parallel_tool_use").value_or(false))
    chat["parallel_tool_calls"] = false;
  if (type == "auto" || type == "none") {
    chat["tool_choice"] = type;
  } else if (type == "any") {
    chat["tool_choice"] = "required";
  } else if (type == "tool") {
    chat["tool_choice"] = {{"type", "function"},
                           {"function", {{"name", fields.text("name").value_or("")}}}};
  } else {
    fail<ConfigError>("\"tool_choice\": there is no type \"{}\"; give auto, any, tool or none",
                      type);
  }
}

/// Templates have one of two names for the switch. A budget is no promise at Anthropic either.
void set_thinking(const Json& thinking, Json& chat) {
  const JsonFields fields(thinking);
  const std::string type = fields.text("type").value_or("");
  static_cast<void>(fields.integer("budget_tokens"));
  if (fields.text("display").value_or("") == "omitted") chat["include_reasoning"] = false;
  if (type == "adaptive" || type == "between_tools") return;  // as the model does it
  if (type != "enabled" && type != "disabled")
    fail<ConfigError>("\"thinking\": there is no type \"{}\"; give enabled, adaptive or disabled",
                      type);
  Json& variables = chat["chat_template_kwargs"];
  if (variables.is_null()) variables = Json::object();
  static_cast<void>(JsonFields(variables));  // an object
  for (const char* name : {"enable_thinking", "thinking"}) variables[name] = type == "enabled";
}

void set_format(const Json& format, const char* name, Json& chat) {
  const JsonFields fields(format);
  if (fields.text("type").value_or("") != "json_schema")
    fail<ConfigError>("\"{}\" must be of type json_schema, not {}", name, shown_value(format));
  if (chat.contains("response_format"))
    fail<ConfigError>("\"output_format\" and \"output_config.format\" are one thing; give one");
  chat["response_format"] = format;
}

void set_output(const Json& output, Json& chat) {
  const JsonFields fields(output);
  if (const auto effort = fields.text("effort")) chat["reasoning_effort"] = *effort;
  if (const Json* format = fields.find("format")) set_format(*format, "output_config.format", chat);
}

/// What the assistant has begun goes on.
void set_prefill(Json& chat) {
  const Json& messages = chat["messages"];
  if (messages.empty() || messages.back()["role"] != "assistant") return;
  const std::string text = messages.back()["content"];
  if (messages.back().contains("tool_calls") || text.find_first_not_of(" \t\r\n") == text.npos)
    fail<ConfigError>("the last message is the assistant's, but no text that could go on");
  chat["continue_final_message"] = true;
}

}  // namespace

Json chat_of_messages(const Json& body, bool counts) {
  check_members(RequestKind::messages, body);
  const JsonFields fields(body);
  Json chat = shared_with_chats(RequestKind::messages, body);
  if (!counts && !fields.has("max_tokens")) fail<ConfigError>("\"max_tokens\" is missing");
  chat["messages"] = messages_of(fields);
  set_prefill(chat);
  if (const Json* stops = fields.find("stop_sequences")) {
    static_cast<void>(fields.texts("stop_sequences"));
    chat["stop"] = *stops;
  }
  if (const Json* metadata = fields.find("metadata"))
    if (const auto user = JsonFields(*metadata).text("user_id")) chat["user"] = *user;
  if (const Json* tools = fields.find("tools")) chat["tools"] = tools_of(*tools);
  if (const Json* choice = fields.find("tool_choice")) set_tool_choice(*choice, chat);
  if (const Json* thinking = fields.find("thinking")) set_thinking(*thinking, chat);
  if (const Json* output = fields.find("output_config")) set_output(*output, chat);
  // What it was called before it was a part of output_config.
  if (const Json* format = fields.find("output_format")) set_format(*format, "output_format", chat);
  return chat;
}

}  // namespace ferry
