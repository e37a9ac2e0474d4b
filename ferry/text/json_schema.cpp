#include "ferry/text/json_schema.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <nlohmann/json.hpp>

#include "ferry/core/error.h"
#include "ferry/text/short_repetitions.h"

namespace ferry {

using Json = nlohmann::ordered_json;

namespace {

constexpr int kMostDepth = 64;

using Names = std::initializer_list<std::string_view>;

bool among(std::string_view name, Names names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// What a value must keep to, of all that JSON Schema knows up to its draft of 2020. The rest are
/// annotations, and what it does not know counts as one, as its specification says.
bool is_constraint(std::string_view name) {
  return among(name,
               {"$ref",
                "$anchor",
                "$dynamicRef",
                "$dynamicAnchor",
                "$recursiveRef",
                "$recursiveAnchor",
                "additionalItems",
                "additionalProperties",
                "allOf",
                "anyOf",
                "const",
                "contains",
                "dependencies",
                "dependentRequired",
                "dependentSchemas",
                "else",
                "enum",
                "exclusiveMaximum",
                "exclusiveMinimum",
                "if",
                "items",
                "maxContains",
                "maxItems",
                "maxLength",
                "maxProperties",
                "maximum",
                "minContains",
                "minItems",
                "minLength",
                "minProperties",
                "minimum",
                "multipleOf",
                "not",
                "nullable",
                "oneOf",
                "pattern",
                "patternProperties",
                "prefixItems",
                "properties",
                "propertyNames",
                "required",
                "then",
                "type",
                "unevaluatedItems",
                "unevaluatedProperties",
                "uniqueItems"});
}

bool is_of_type(const Json& value, std::string_view type) {
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "string") return value.is_string();
  if (type == "boolean") return value.is_boolean();
  if (type == "null") return value.is_null();
  if (type == "integer") return value.is_number_integer();
  return type == "number" && value.is_number();
}

class Schemas {
 public:
  void complete(Json& schema, const std::string& path, int depth = 0) {
    if (depth > kMostDepth) fail<ConfigError>("the schema is nested deeper than {}", kMostDepth);
    if (schema.is_boolean()) return;
    if (!schema.is_object())
      fail<ConfigError>("{}: a schema is an object, true or false", shown(path));
    for (const char* defs : {"$defs", "definitions"}) each_member(schema, defs, path, depth);
    for (const Names kinds : {Names{"$ref"}, Names{"anyOf"}, Names{"oneOf"}, Names{"allOf"}}) {
      if (!schema.contains(*kinds.begin())) continue;
      refuse_beside(schema, path, *kinds.begin(), kinds);
      const std::string name(*kinds.begin());
      if (name == "$ref") return check_ref(schema[name], path);
      return each_item(schema, name, path, depth);
    }
    if (schema.contains("const") || schema.contains("enum")) return check_values(schema, path);
    by_type(schema, path, depth);
  }

 private:
  static std::string shown(const std::string& path) { return path.empty() ? "the schema" : path; }

  [[noreturn]] static void refuse(const std::string& path, const std::string& what) {
    fail<ConfigError>("{}: {} is not supported in a JSON schema", shown(path), what);
  }

  /// The compiler reads one of these and passes over what stands beside it.
  static void refuse_beside(const Json& schema,
                            const std::string& path,
                            std::string_view chosen,
                            Names fine) {
    for (const auto& [name, value] : schema.items()) {
      if (is_constraint(name) && !among(name, fine))
        refuse(path, fmt::format("\"{}\" beside \"{}\"", name, chosen));
    }
  }

  static void check_ref(const Json& ref, const std::string& path) {
    const std::string text = ref.is_string() ? ref.get<std::string>() : "";
    if (text != "#" && !text.starts_with("#/"))
      refuse(path, fmt::format("\"$ref\" to \"{}\", which is outside the schema,", text));
  }

  static void check_values(const Json& schema, const std::string& path) {
    const bool one = schema.contains("const");
    refuse_beside(
        schema, path, one ? "const" : "enum", one ? Names{"const", "type"} : Names{"enum", "type"});
    const Json values = one ? Json::array({schema["const"]}) : schema["enum"];
    if (!values.is_array() || values.empty())
      fail<ConfigError>("{}: \"enum\" must be a list of at least one value", shown(path));
    if (!schema.contains("type")) return;
    const Json types = schema["type"].is_array() ? schema["type"] : Json::array({schema["type"]});
    for (const Json& value : values) {
      const bool fits = std::any_of(types.begin(), types.end(), [&](const Json& type) {
        return type.is_string() && is_of_type(value, type.get_ref<const std::string&>());
      });
      if (!fits) refuse(path, "a value that is not of its own \"type\"");
    }
  }

  void by_type(Json& schema, const std::string& path, int depth) {
    refuse_keywords(schema, path);
    const auto typed = schema.find("type");
    if (typed != schema.end() && typed->is_array()) {
      for (const Json& type : *typed) by_one_type(schema, type, path, depth);
      return;
    }
    if (typed != schema.end()) return by_one_type(schema, *typed, path, depth);
    for (const char* name : {"properties", "additionalProperties", "unevaluatedProperties"})
      if (schema.contains(name)) return object(schema, path, depth);
    for (const char* name : {"items", "prefixItems", "unevaluatedItems"})
      if (schema.contains(name)) return array(schema, path, depth);
    for (const auto& [name, value] : schema.items())
      if (is_constraint(name)) refuse(path, fmt::format("\"{}\" without \"type\"", name));
  }

  void by_one_type(Json& schema, const Json& type, const std::string& path, int depth) {
    if (type == "object") return object(schema, path, depth);
    if (type == "array") return array(schema, path, depth);
    if (type == "string") return string(schema, path);
    if (type == "number" && schema.contains("multipleOf"))
      refuse(path, "\"multipleOf\" of numbers");
    if (type == "number" || type == "integer" || type == "boolean" || type == "null") return;
    fail<ConfigError>("{}: there is no type {}", shown(path), type.dump());
  }

  static void refuse_keywords(const Json& schema, const std::string& path) {
    for (const auto& [name, value] : schema.items()) {
      const bool never = among(name,
                               {"$anchor",
                                "$dynamicRef",
                                "$dynamicAnchor",
                                "$recursiveRef",
                                "$recursiveAnchor",
                                "additionalItems",
                                "contains",
                                "dependencies",
                                "dependentRequired",
                                "dependentSchemas",
                                "else",
                                "if",
                                "maxContains",
                                "minContains",
                                "not",
                                "then"});
      const bool unless_false = among(name, {"nullable", "uniqueItems"}) && value != false;
      if (never || unless_false) refuse(path, fmt::format("\"{}\"", name));
    }
  }

  static void string(Json& schema, const std::string& path) {
    bound_length(schema, path);
    if (schema.contains("pattern") && schema["pattern"].is_string())
      schema["pattern"] = with_short_repetitions(schema["pattern"].get<std::string>());
    if (!schema.contains("format")) return;
    const Json& format = schema["format"];
    const std::string name = format.is_string() ? format.get<std::string>() : format.dump();
    if (!among(
            name,
            {"date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}))
      refuse(path, fmt::format("\"format\" \"{}\"", name));
  }

  /// As a pattern, since the compiler's own bounded strings let control characters through, which
  /// no JSON string has.
  static void bound_length(Json& schema, const std::string& path) {
    constexpr std::int64_t kMost = 1 << 20;
    if (!schema.contains("minLength") && !schema.contains("maxLength")) return;
    if (schema.contains("pattern") || schema.contains("format"))
      refuse(path, "\"minLength\" or \"maxLength\" beside \"pattern\" or \"format\"");
    const auto bound = [&](const char* name, std::int64_t otherwise) {
      if (!schema.contains(name)) return otherwise;
      const Json& value = schema[name];
      if (!value.is_number_integer() || value < 0 || value > kMost)
        fail<ConfigError>("{}: \"{}\" must be 0 to {}", shown(path), name, kMost);
      return value.get<std::int64_t>();
    };
    const std::int64_t least = bound("minLength", 0);
    const std::int64_t most = bound("maxLength", -1);
    if (most >= 0 && least > most)
      fail<ConfigError>("{}: \"minLength\" is more than \"maxLength\"", shown(path));
    schema["pattern"] =
        most < 0 ? fmt::format("^.{{{},}}$", least) : fmt::format("^.{{{},{}}}$", least, most);
    schema.erase("minLength");
    schema.erase("maxLength");
  }

  void array(Json& schema, const std::string& path, int depth) {
    if (schema.contains("items") && schema["items"].is_array())
      refuse(path, "a list of \"items\" (it is \"prefixItems\" today)");
    if (!schema.contains("items") && !schema.contains("unevaluatedItems")) schema["items"] = true;
    for (const char* name : {"items", "unevaluatedItems"})
      if (schema.contains(name)) complete(schema[name], path + "/" + name, depth + 1);
    each_item(schema, "prefixItems", path, depth);
  }

  void object(Json& schema, const std::string& path, int depth) {
    const bool named = schema.contains("properties");
    const bool others =
        schema.contains("additionalProperties") || schema.contains("unevaluatedProperties");
    const bool by_pattern = schema.contains("patternProperties");
    const bool by_name = schema.contains("propertyNames");
    if (by_pattern &&
        (named || by_name || schema["patternProperties"].size() > 1 ||
         (schema.contains("additionalProperties") && schema["additionalProperties"] != false)))
      refuse(path, "\"patternProperties\" beside others");
    if (by_name && named) refuse(path, "\"propertyNames\" beside \"properties\"");
    if (!named && !others && !by_pattern) schema["additionalProperties"] = true;
    for (const char* name : {"additionalProperties", "unevaluatedProperties", "propertyNames"})
      if (schema.contains(name)) complete(schema[name], path + "/" + name, depth + 1);
    each_member(schema, "properties", path, depth);
    each_member(schema, "patternProperties", path, depth);
    if (!schema.contains("required")) return;
    const Json& required = schema["required"];
    if (!required.is_array() ||
        !std::all_of(required.begin(), required.end(), [](const Json& r) { return r.is_string(); }))
      fail<ConfigError>("{}: \"required\" must be a list of names", shown(path));
    for (const Json& name : required) {
      if (!schema.contains("properties") || !schema["properties"].contains(name.get<std::string>()))
        refuse(path,
               fmt::format("\"required\" of {}, which is not among the properties,", name.dump()));
    }
  }

  void each_member(Json& schema, const char* name, const std::string& path, int depth) {
    const auto found = schema.find(name);
    if (found == schema.end()) return;
    if (!found->is_object()) fail<ConfigError>("{}: \"{}\" must be an object", shown(path), name);
    for (auto& [key, value] : found->items())
      complete(value, fmt::format("{}/{}/{}", path, name, key), depth + 1);
  }

  void each_item(Json& schema, const std::string& name, const std::string& path, int depth) {
    const auto found = schema.find(name);
    if (found == schema.end()) return;
    if (!found->is_array() || found->empty())
      fail<ConfigError>("{}: \"{}\" must be a list of schemas", shown(path), name);
    for (std::size_t i = 0; i < found->size(); ++i)
      complete((*found)[i], fmt::format("{}/{}/{}", path, name, i), depth + 1);
  }
};

Json parsed(std::string_view text, const char* what) {
  bool deep = false;
  const Json::parser_callback_t shallow = [&](int depth, Json::parse_event_t, Json&) {
    deep = deep || depth > 2 * kMostDepth;
    return !deep;
  };
  try {
    Json json = Json::parse(text, shallow);
    if (deep) fail<ConfigError>("the {} is nested deeper than {}", what, 2 * kMostDepth);
    return json;
  } catch (const Json::exception& e) {
    fail<ConfigError>("the {} is no JSON: {}", what, e.what());
  }
}

/// Schemas stand in a tag's formats under "json_schema", and in the older form under "schema".
void complete_tags(Json& part) {
  for (auto& [name, value] : part.items()) {
    const bool schema = part.is_object() && (name == "json_schema" || name == "schema");
    if (schema && value.is_object()) {
      Schemas().complete(value, "");
    } else if (value.is_structured()) {
      complete_tags(value);
    }
  }
}

std::string text_of(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

std::string supported_schema(std::string_view schema) {
  Json json = parsed(schema, "schema");
  Schemas().complete(json, "");
  return text_of(json);
}

std::string supported_tag(std::string_view tag) {
  Json json = parsed(tag, "structural tag");
  complete_tags(json);
  return text_of(json);
}

}  // namespace ferry
