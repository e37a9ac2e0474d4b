#include "ferry/server/tools.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <utility>

#include "ferry/core/error.h"

namespace ferry {

using Json = nlohmann::ordered_json;

namespace {

constexpr std::size_t kMostTools = 512;
constexpr const char* kGrammar = "grammar";

/// Nine letters and digits, which is what Mistral's templates take.
std::string new_call_id() {
  constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyz0123456789";
  thread_local std::mt19937 random{std::random_device()()};
  std::string id;
  for (int i = 0; i < 9; ++i) id += kLetters[random() % kLetters.size()];
  return id;
}

const Json& function_of(const Json& tool) { return tool.at("function"); }

std::string name_of(const Json& tool) { return function_of(tool).at("name").get<std::string>(); }

/// A schema that has moved to `root`: so have what it refers to.
void move_refs(Json& schema, const std::string& root) {
  if (schema.is_object()) {
    const auto ref = schema.find("$ref");
    if (ref != schema.end() && ref->is_string()) {
      const auto text = ref->get<std::string>();
      if (text.starts_with('#')) *ref = root + text.substr(1);
    }
  }
  if (schema.is_structured())
    for (Json& part : schema) move_refs(part, root);
}

Json parameters_of(const Json& tool) {
  const auto parameters = function_of(tool).find("parameters");
  if (parameters == function_of(tool).end() || parameters->is_null() || parameters->empty())
    return {{"type", "object"}};
  return *parameters;
}

ProcessorOptions* grammar_of(std::vector<ProcessorOptions>& processors) {
  const auto found = std::find_if(processors.begin(), processors.end(), [](const auto& options) {
    return options.name == kGrammar;
  });
  return found == processors.end() ? nullptr : &*found;
}

/// As a part of a structural tag; null for one that is a tag itself, or is too odd to be a part.
Json format_of(const ProcessorOptions& options) {
  switch (static_cast<GrammarText::Kind>(options.integers.at(0))) {
    case GrammarText::Kind::json:
      return {{"type", "json_schema"}, {"json_schema", {{"type", "object"}}}};
    case GrammarText::Kind::json_schema:
      return {{"type", "json_schema"}, {"json_schema", parse_object(options.text)}};
    case GrammarText::Kind::regex:
      return {{"type", "regex"}, {"pattern", options.text}};
    case GrammarText::Kind::ebnf:
      return {{"type", "grammar"}, {"grammar", options.text}};
    case GrammarText::Kind::structural_tag:
      break;
  }
  return nullptr;
}

/// The model may think before what the grammar says, or is in the middle of that.
void let_think(const ThinkingStyle& style, Thought thought, ProcessorOptions& options) {
  const Json answer = format_of(options);
  if (answer.is_null()) return;
  const bool inside = thought == Thought::open || (thought == Thought::unknown && style.always);
  const Json thinks{{"type", "tag"},
                    {"begin", inside ? "" : style.begin},
                    {"content", {{"type", "any_text"}}},
                    {"end", style.end}};
  const Json space{{"type", "regex"}, {"pattern", "[ \\n]{0,4}"}};
  const Json before{{"type", "sequence"}, {"elements", {thinks, space}}};
  const Json first = inside ? before : Json{{"type", "optional"}, {"content", before}};
  const Json tag{{"type", "structural_tag"},
                 {"format", {{"type", "sequence"}, {"elements", {first, answer}}}}};
  options.integers = {static_cast<std::int32_t>(GrammarText::Kind::structural_tag)};
  options.text = tag.dump();
}

bool is_special_text(const ServedModel& model, const char* text) {
  if (model.tokenizer == nullptr) return false;
  const auto ids = model.tokenizer->encode(text, /*add_special=*/false);
  return ids.size() == 1 && model.tokenizer->is_special(ids.front());
}

}  // namespace

AnswerPlan::AnswerPlan() = default;
AnswerPlan::~AnswerPlan() = default;
AnswerPlan::AnswerPlan(AnswerPlan&&) noexcept = default;
AnswerPlan& AnswerPlan::operator=(AnswerPlan&&) noexcept = default;

AnswerPlan::AnswerPlan(const JsonFields& fields, const ServedModel& model) {
  single_ = !fields.boolean("parallel_tool_calls").value_or(true);
  shows_thinking_ = fields.boolean("include_reasoning").value_or(true);
  if (fields.boolean("separate_reasoning").value_or(true)) thinking_ = model.thinking;
  read_tools(fields);
  read_choice(fields, model);
}

void AnswerPlan::read_tools(const JsonFields& fields) {
  const Json* tools = fields.find("tools");
  if (tools == nullptr || (tools->is_structured() && tools->empty())) return;
  if (!tools->is_array() || tools->size() > kMostTools)
    fail<ConfigError>(
        "\"tools\" must be a list of at most {}, not {}", kMostTools, shown_value(*tools));
  std::set<std::string> names;
  for (const Json& tool : *tools) {
    const JsonFields outer(tool);
    if (const auto type = outer.text("type"); type && *type != "function")
      fail<ConfigError>("a tool of type \"{}\" is not supported; give functions", *type);
    const Json* function = outer.find("function");
    if (function == nullptr) fail<ConfigError>("a tool has no \"function\"");
    const JsonFields inner(*function);
    const std::string name = inner.text("name").value_or("");
    if (name.empty()) fail<ConfigError>("a function of \"tools\" has no \"name\"");
    if (!names.insert(name).second) fail<ConfigError>("two of \"tools\" are called \"{}\"", name);
    if (const Json* parameters = inner.find("parameters"))
      static_cast<void>(JsonFields(*parameters));
  }
  tools_ = std::make_unique<Json>(*tools);
}

void AnswerPlan::read_choice(const JsonFields& fields, const ServedModel& model) {
  choice_ = tools_ ? Choice::automatic : Choice::none;
  if (const Json* choice = fields.find("tool_choice"); choice != nullptr && !choice->empty()) {
    if (*choice == "none") {
      choice_ = Choice::none;
    } else if (*choice == "required") {
      choice_ = Choice::required;
    } else if (choice->is_object()) {
      const JsonFields named(*choice);
      const Json* function = named.find("function");
      if (named.text("type").value_or("function") != "function" || function == nullptr)
        fail<ConfigError>("\"tool_choice\" must be none, auto, required or a function, not {}",
                          shown_value(*choice));
      choice_ = Choice::named;
      name_ = JsonFields(*function).text("name").value_or("");
    } else if (*choice != "auto") {
      fail<ConfigError>("\"tool_choice\" must be none, auto, required or a function, not {}",
                        shown_value(*choice));
    }
  }
  if (choice_ == Choice::none) return;
  if (!tools_) fail<ConfigError>("\"tool_choice\" asks for a call, but there are no \"tools\"");
  if (choice_ == Choice::named &&
      std::none_of(
          tools_->begin(), tools_->end(), [&](const Json& tool) { return name_of(tool) == name_; }))
    fail<ConfigError>("\"tool_choice\": there is no tool \"{}\"", name_);
  if (choice_ != Choice::automatic) return;
  calls_ = model.calls;
  if (calls_ == nullptr)
    fail<ConfigError>(
        "it is not known how this model writes calls of \"tools\"; start the server with "
        "--tool-call-parser, or make \"tool_choice\" none, required or a function");
}

const Json* AnswerPlan::tools() const { return choice_ == Choice::none ? nullptr : tools_.get(); }

/// As vLLM has it, a list with an object for each call, or the arguments of the one tool.
Json AnswerPlan::schema_of_calls() const {
  Json defs = Json::object();
  Json calls = Json::array();
  for (const Json& tool : *tools_) {
    if (choice_ == Choice::named && name_of(tool) != name_) continue;
    if (choice_ == Choice::named) return parameters_of(tool);
    const std::string key = fmt::format("tool{}", defs.size());
    Json& moved = defs[key] = parameters_of(tool);
    move_refs(moved, "#/$defs/" + key);
    calls.push_back(
        {{"type", "object"},
         {"properties",
          {{"name", {{"const", name_of(tool)}}}, {"parameters", {{"$ref", "#/$defs/" + key}}}}},
         {"required", {"name", "parameters"}},
         {"additionalProperties", false}});
  }
  Json schema{{"$defs", defs}, {"type", "array"}, {"minItems", 1}, {"items", {{"anyOf", calls}}}};
  if (single_) schema["maxItems"] = 1;
  return schema;
}

void AnswerPlan::settle(const std::string& prompt,
                        const ServedModel& model,
                        GenerationSettings& settings) {
  ProcessorOptions* grammar = grammar_of(settings.processors);
  if (grammar != nullptr && choice_ != Choice::none)
    fail<ConfigError>(
        "\"tools\" and a form of the text (response_format, ...) exclude each other, unless "
        "\"tool_choice\" is none");
  if (choice_ == Choice::required || choice_ == Choice::named) {
    settings.processors.push_back(
        {.name = kGrammar,
         .integers = {static_cast<std::int32_t>(GrammarText::Kind::json_schema)},
         .numbers = {},
         .text = schema_of_calls().dump()});
    grammar = &settings.processors.back();
  }
  if (model.thinking != nullptr) {
    thought_ = thought_at_end(*model.thinking, prompt);
    const bool thinks = model.thinking->begin != nullptr && thought_ != Thought::closed;
    if (grammar != nullptr && thinks) let_think(*model.thinking, thought_, *grammar);
  }
  if (calls_ != nullptr || (thinking_ != nullptr && is_special_text(model, thinking_->end)))
    settings.skip_special = false;
}

std::unique_ptr<AnswerParser> AnswerPlan::parser() const {
  std::unique_ptr<AnswerParser> rest;
  const bool channels = thinking_ != nullptr && thinking_->begin == nullptr;
  if (choice_ == Choice::required) rest = listed_calls();
  if (choice_ == Choice::named) rest = named_call(name_);
  if (choice_ == Choice::automatic) rest = calls_->make(argument_types(*tools_));
  if (rest == nullptr && channels) rest = find_call_style("openai", "")->make({});
  if (thinking_ == nullptr || channels) return rest;
  return split_thinking(*thinking_, thought_, std::move(rest));
}

ChatAnswer::ChatAnswer(const AnswerPlan& plan) : plan_(&plan), parser_(plan.parser()) {}

Json ChatAnswer::put(const std::string& text, bool last) {
  AnswerPiece piece;
  if (parser_) {
    parser_->put(text, piece);
    if (last) parser_->finish(piece);
  } else {
    piece.content = text;
  }
  Json delta = Json::object();
  if (!piece.thinking.empty() && plan_->shows_thinking()) {
    thinking_ += piece.thinking;
    delta["reasoning_content"] = piece.thinking;
  }
  if (!piece.content.empty()) {
    content_ += piece.content;
    delta["content"] = piece.content;
  }
  for (const CallPiece& call : piece.calls) {
    if (plan_->single() && call.index > 0) continue;
    Json one{{"index", call.index}};
    if (call.begins) {
      calls_.push_back(
          {.id = call.id.empty() ? new_call_id() : call.id, .name = call.name, .arguments = ""});
      one["id"] = calls_.back().id;
      one["type"] = "function";
      one["function"]["name"] = call.name;
    }
    calls_.at(call.index).arguments += call.arguments;
    one["function"]["arguments"] = call.arguments;
    delta["tool_calls"].push_back(std::move(one));
  }
  return delta;
}

Json ChatAnswer::message() const {
  Json message{{"role", "assistant"}, {"content", content_}};
  if (content_.empty() && !calls_.empty()) message["content"] = nullptr;
  if (!thinking_.empty()) message["reasoning_content"] = thinking_;
  for (const Call& call : calls_)
    message["tool_calls"].push_back(
        {{"id", call.id},
         {"type", "function"},
         {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
  return message;
}

std::string ChatAnswer::finish_reason(const std::string& finish) const {
  return finish == "stop" && !calls_.empty() && !plan_->named() ? "tool_calls" : finish;
}

}  // namespace ferry
