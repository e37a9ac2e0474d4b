#include "ferry/server/responses_call.h"

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/server/members.h"
#include "ferry/server/openai_call.h"
#include "ferry/text/json_fields.h"

namespace ferry {

using Json = nlohmann::ordered_json;

namespace {

/// A text, or a list of parts of text put together.
std::string text_of(const Json& content, const char* name) {
  if (content.is_string()) return content;
  if (!content.is_array())
    fail<ConfigError>("\"{}\" must be text or a list of parts, not {}", name, shown_value(content));
  std::string text;
  for (const Json& part : content) {
    const JsonFields fields(part);
    const std::string type = fields.text("type").value_or("");
    if (type == "refusal") {
      text += fields.text("refusal").value_or("");
      continue;
    }
    if (type != "input_text" && type != "output_text" && type != "text" &&
        type != "reasoning_text" && type != "summary_text")
      fail<ConfigError>(
          "a part of type \"{}\" in \"{}\" is not supported; this model reads text only",
          type,
          name);
    text += fields.text("text").value_or("");
  }
  return text;
}

/// Items -> messages. What an assistant thought, said and called is one message in chats.
class Items {
 public:
  explicit Items(Json& messages) : messages_(messages) {}

  void add(const Json& item) {
    const JsonFields fields(item);
    const std::string type = fields.text("type").value_or("message");
    if (type == "message") {
      add_message(fields);
    } else if (type == "function_call") {
      add_call(fields);
    } else if (type == "function_call_output") {
      finish();
      messages_.push_back({{"role", "tool"},
                           {"tool_call_id", fields.text("call_id").value_or("")},
                           {"content", text_of(need(fields, "output"), "output")}});
    } else if (type == "reasoning") {
      add_thoughts(fields);
    } else if (type == "item_reference") {
      fail<ConfigError>(
          "an \"item_reference\" in \"input\" is not supported; send the item itself, or the "
          "\"previous_response_id\" of the response that has it");
    } else {
      fail<ConfigError>("an item of type \"{}\" in \"input\" is not supported", type);
    }
  }

  void finish() {
    if (said_.is_null()) return;
    messages_.push_back(std::exchange(said_, nullptr));
  }

 private:
  static const Json& need(const JsonFields& fields, const char* name) {
    const Json* found = fields.find(name);
    if (found == nullptr) fail<ConfigError>("an item of \"input\" has no \"{}\"", name);
    return *found;
  }

  /// Of the assistant's message to which items belong.
  Json& said() {
    if (said_.is_null()) said_ = {{"role", "assistant"}, {"content", ""}};
    return said_;
  }

  void add_message(const JsonFields& fields) {
    const std::string role = fields.text("role").value_or("");
    std::string text = text_of(need(fields, "content"), "content");
    if (role != "assistant") {
      finish();
      messages_.push_back({{"role", role}, {"content", std::move(text)}});
      return;
    }
    // Thoughts come before it; another text or calls before it make it the next message.
    if (!said_.is_null() && (said_["content"] != "" || said_.contains("tool_calls"))) finish();
    said()["content"] = std::move(text);
  }

  void add_call(const JsonFields& fields) {
    said()["tool_calls"].push_back({{"id", fields.text("call_id").value_or("")},
                                    {"type", "function"},
                                    {"function",
                                     {{"name", fields.text("name").value_or("")},
                                      {"arguments", fields.text("arguments").value_or("{}")}}}});
  }

  /// Content is what our own answers have, a summary what OpenAI's do.
  void add_thoughts(const JsonFields& fields) {
    finish();
    std::string text;
    for (const char* name : {"content", "summary"}) {
      const Json* parts = fields.find(name);
      if (parts != nullptr && text.empty()) text = text_of(*parts, name);
    }
    if (!text.empty()) said()["reasoning_content"] = std::move(text);
  }

  Json& messages_;
  Json said_;  // what the assistant has said last, until it is whole
};

Json messages_of(const JsonFields& fields, const Json& before) {
  Json messages = Json::array();
  const std::string instructions = fields.text("instructions").value_or("");
  if (!instructions.empty()) messages.push_back({{"role", "system"}, {"content", instructions}});
  const Json* input = fields.find("input");
  if (input == nullptr) fail<ConfigError>("\"input\" is missing");
  Items items(messages);
  for (const Json& item : before) items.add(item);
  if (input->is_string()) {
    items.add({{"role", "user"}, {"content", *input}});
  } else if (input->is_array() && !input->empty()) {
    for (const Json& item : *input) items.add(item);
  } else {
    fail<ConfigError>("\"input\" must be text or a list of items, not {}", shown_value(*input));
  }
  items.finish();
  return messages;
}

const char* id_prefix(const std::string& type) {
  if (type == "function_call") return "fc_";
  if (type == "function_call_output") return "fco_";
  return type == "reasoning" ? "rs_" : "msg_";
}

Json tools_of(const Json& tools) {
  if (!tools.is_array()) fail<ConfigError>("\"tools\" must be a list, not {}", shown_value(tools));
  Json all = Json::array();
  for (const Json& tool : tools) {
    const JsonFields fields(tool);
    const std::string type = fields.text("type").value_or("");
    if (type != "function")
      fail<ConfigError>("a tool of type \"{}\" is not supported; give functions", type);
    Json function = Json::object();
    for (const char* name : {"name", "description", "parameters", "strict"})
      if (const Json* value = fields.find(name)) function[name] = *value;
    all.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  return all;
}

/// A function stands there without a shell around its name.
Json tool_choice_of(const Json& choice) {
  if (!choice.is_object()) return choice;
  const JsonFields fields(choice);
  if (fields.text("type").value_or("") != "function")
    fail<ConfigError>("\"tool_choice\" must be none, auto, required or a function, not {}",
                      shown_value(choice));
  return {{"type", "function"}, {"function", {{"name", fields.text("name").value_or("")}}}};
}

void set_text(const Json& text, Json& chat) {
  const JsonFields fields(text);
  if (const auto verbosity = fields.text("verbosity"); verbosity && *verbosity != "medium")
    fail<ConfigError>("\"text.verbosity\" of \"{}\" is not supported; leave it out", *verbosity);
  const Json* format = fields.find("format");
  if (format == nullptr) return;
  static_cast<void>(JsonFields(*format).text("type"));
  chat["response_format"] = *format;  // a schema may stand there by itself
}

}  // namespace

Json chat_of_responses(const Json& body, const Json& before) {
  check_members(RequestKind::responses, body);
  const JsonFields fields(body);
  Json chat = shared_with_chats(RequestKind::responses, body);
  chat["messages"] = messages_of(fields, before);
  if (const Json* most = fields.find("max_output_tokens")) chat["max_completion_tokens"] = *most;
  if (const Json* tools = fields.find("tools")) chat["tools"] = tools_of(*tools);
  if (const Json* choice = fields.find("tool_choice"))
    chat["tool_choice"] = tool_choice_of(*choice);
  if (const Json* text = fields.find("text")) set_text(*text, chat);
  if (const Json* reasoning = fields.find("reasoning")) {
    if (const auto effort = JsonFields(*reasoning).text("effort"))
      chat["reasoning_effort"] = *effort;
  }
  for (const std::string& wanted : fields.texts("include"))
    if (wanted == "message.output_text.logprobs") chat["logprobs"] = true;
  return chat;
}

Json input_items(const Json& body) {
  const Json& input = body["input"];
  if (input.is_string())
    return Json::array({{{"id", new_id("msg_")},
                         {"type", "message"},
                         {"status", "completed"},
                         {"role", "user"},
                         {"content", Json::array({{{"type", "input_text"}, {"text", input}}})}}});
  Json items = input;
  for (Json& item : items) {
    const JsonFields fields(item);
    const std::string type = fields.text("type").value_or("message");
    const bool named = fields.has("id");
    item["type"] = type;
    if (!named) item["id"] = new_id(id_prefix(type));
  }
  return items;
}

}  // namespace ferry
