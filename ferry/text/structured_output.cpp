#include "ferry/text/structured_output.h"

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/text/grammars.h"

namespace ferry {

using Json = nlohmann::ordered_json;
using Kind = GrammarText::Kind;

namespace {

/// Members that are null or empty strings and lists ask for nothing.
const Json* wanted(const JsonFields& fields, const char* name) {
  const Json* value = fields.find(name);
  if (value == nullptr) return nullptr;
  const bool nothing = (value->is_string() || value->is_array()) && value->empty();
  return nothing || *value == "" ? nullptr : value;
}

/// One of the texts in EBNF.
std::string any_of(const std::vector<std::string>& choices) {
  std::string ebnf = "root ::= ";
  for (const std::string& choice : choices) {
    if (!ebnf.ends_with("= ")) ebnf += " | ";
    ebnf += '"';
    for (const char c : choice) {
      if (c == '\n') {
        ebnf += "\\n";
      } else if (static_cast<unsigned char>(c) < ' ' || c == '\x7f') {
        ebnf += fmt::format("\\u{:04x}", c);
      } else {
        if (c == '"' || c == '\\') ebnf += '\\';
        ebnf += c;
      }
    }
    ebnf += '"';
  }
  return ebnf;
}

/// All members of a request that say something about the form.
class Wishes {
 public:
  explicit Wishes(const JsonFields& fields) : fields_(fields) {}

  void text(const char* name, Kind kind) { text(fields_, name, name, kind); }

  /// An object, or JSON in a string.
  void schema(const char* name, Kind kind) { schema(fields_, name, name, kind); }

  void choice(const char* name) { choice(fields_, name, name); }

  void any_json(const char* name) { any_json(fields_, name, name); }

  /// vLLM's: one of its members.
  void structured_outputs() {
    constexpr const char* kName = "structured_outputs";
    const Json* value = fields_.find(kName);
    if (value == nullptr) return;
    const JsonFields inner(*value);
    const std::string name = kName;
    schema(inner, "json", name + ".json", Kind::json_schema);
    text(inner, "regex", name + ".regex", Kind::regex);
    choice(inner, "choice", name + ".choice");
    text(inner, "grammar", name + ".grammar", Kind::ebnf);
    any_json(inner, "json_object", name + ".json_object");
    schema(inner, "structural_tag", name + ".structural_tag", Kind::structural_tag);
    for (const char* change : {"disable_any_whitespace", "disable_additional_properties"})
      if (inner.boolean(change).value_or(false))
        fail<ConfigError>("\"{}.{}\" is not supported; leave it out", name, change);
    static_cast<void>(inner.boolean("disable_fallback"));  // there is one engine of grammars
    if (wanted(inner, "whitespace_pattern") != nullptr)
      fail<ConfigError>("\"{}.whitespace_pattern\" is not supported; leave it out", name);
    inner.refuse_unread(name);
    if (!value->empty() && name_.empty() && !asks_for_nothing(*value))
      fail<ConfigError>(
          "\"{}\" has none of json, regex, choice, grammar, json_object, structural_tag", name);
  }

  void response_format() {
    constexpr const char* kName = "response_format";
    const Json* value = fields_.find(kName);
    if (value == nullptr || *value == Json::object() || *value == "" || *value == Json::array())
      return;
    const JsonFields inner(*value);
    const std::string type = inner.text("type").value_or("");
    if (type == "text") return;
    if (type == "json_object") {
      // llama.cpp has a schema there, too.
      if (const Json* own = inner.find("schema")) return set(kName, Kind::json_schema, own->dump());
      return set(kName, Kind::json, "");
    }
    if (type == "json_schema") {
      const Json* named = inner.find("json_schema");
      const Json* own = named == nullptr ? inner.find("schema") : JsonFields(*named).find("schema");
      if (own == nullptr) fail<ConfigError>("\"{}\" of type json_schema has no schema", kName);
      return set(kName, Kind::json_schema, own->dump());
    }
    if (type == "structural_tag") return set(kName, Kind::structural_tag, value->dump());
    fail<ConfigError>(
        "\"{}\": there is no type \"{}\"; give text, json_object or json_schema", kName, type);
  }

  std::optional<GrammarText> result() const { return result_; }

 private:
  static bool asks_for_nothing(const Json& object) {
    for (const auto& [name, value] : object.items())
      if (!value.is_null() && value != false && value != "" && value != Json::array()) return false;
    return true;
  }

  void set(const std::string& name, Kind kind, std::string text) {
    if (!Grammars::built_in())
      fail<ConfigError>(
          "\"{}\" needs grammars, which this program was built without; build it again behind "
          "scripts/setup.sh, which brings xgrammar",
          name);
    if (result_) fail<ConfigError>("\"{}\" and \"{}\" exclude each other", name_, name);
    name_ = name;
    result_ = GrammarText{.kind = kind, .text = std::move(text)};
  }

  void text(const JsonFields& fields, const char* member, const std::string& name, Kind kind) {
    if (wanted(fields, member) == nullptr) return;
    set(name, kind, *fields.text(member));
  }

  void schema(const JsonFields& fields, const char* member, const std::string& name, Kind kind) {
    const Json* value = wanted(fields, member);
    if (value == nullptr) return;
    if (!value->is_string() && !value->is_object() && !value->is_boolean())
      fail<ConfigError>("\"{}\" must be a JSON schema, not {}", name, shown_value(*value));
    set(name, kind, value->is_string() ? value->get<std::string>() : value->dump());
  }

  void choice(const JsonFields& fields, const char* member, const std::string& name) {
    if (wanted(fields, member) == nullptr) return;
    set(name, Kind::ebnf, any_of(fields.texts(member)));
  }

  void any_json(const JsonFields& fields, const char* member, const std::string& name) {
    if (wanted(fields, member) != nullptr && *fields.boolean(member)) set(name, Kind::json, "");
  }

  const JsonFields& fields_;
  std::string name_;  // of the one that was taken
  std::optional<GrammarText> result_;
};

}  // namespace

std::optional<GrammarText> read_grammar(const JsonFields& fields) {
  Wishes wishes(fields);
  wishes.response_format();
  wishes.structured_outputs();
  for (const char* name : {"guided_json", "json_schema"}) wishes.schema(name, Kind::json_schema);
  for (const char* name : {"guided_regex", "regex"}) wishes.text(name, Kind::regex);
  for (const char* name : {"guided_grammar", "ebnf", "grammar"}) wishes.text(name, Kind::ebnf);
  wishes.choice("guided_choice");
  wishes.any_json("guided_json_object");
  wishes.schema("structural_tag", Kind::structural_tag);
  return wishes.result();
}

}  // namespace ferry
