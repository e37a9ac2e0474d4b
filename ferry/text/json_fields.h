// Members of a client's JSON object, checked as they are read.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ferry {

/// The body as an object. Throws ConfigError that says what is wrong with it.
nlohmann::ordered_json parse_object(std::string_view body);

/// Borrows the object. A member that is null counts as absent. Every getter throws ConfigError
/// with name, what it must be, and what it is. Threads: one at a time.
class JsonFields {
 public:
  explicit JsonFields(const nlohmann::ordered_json& object);

  bool has(const char* name) const { return find(name) != nullptr; }

  /// Null when absent.
  const nlohmann::ordered_json* find(const char* name) const;

  std::optional<bool> boolean(const char* name) const;
  /// 6.0 is one, too.
  std::optional<std::int64_t> integer(const char* name) const;
  /// That is in [low, high].
  std::optional<int> integer(const char* name, int low, int high) const;
  std::optional<double> number(const char* name) const;
  std::optional<std::vector<std::pair<std::int32_t, double>>> numbers_by_id(const char* name) const;
  std::optional<std::string> text(const char* name) const;
  /// A string or a list of strings.
  std::vector<std::string> texts(const char* name) const;
  /// Empty when absent.
  std::vector<std::int32_t> ids(const char* name) const;

  /// Throws ConfigError where there is a member that nobody has asked for by its name. `of`: what
  /// errors call the object; may be empty.
  void refuse_unread(std::string_view of = {}) const;

 private:
  const nlohmann::ordered_json& object_;
  mutable std::set<std::string, std::less<>> asked_;  // for refuse_unread()
};

/// Token ids. Throws ConfigError that begins with `name`.
std::vector<std::int32_t> to_ids(const nlohmann::ordered_json& list, std::string_view name);

/// A value as errors show it: in one line, cut where it is long.
std::string shown_value(const nlohmann::ordered_json& value);

/// In one line; bytes that are no UTF-8, which JSON cannot hold, become U+FFFD.
std::string to_text(const nlohmann::ordered_json& json);

}  // namespace ferry
