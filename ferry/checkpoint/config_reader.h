// Reads fields of a config.json and says exactly what is wrong with one that will not do. For the
// config and family .cpp files only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ferry/checkpoint/json_file.h"

namespace ferry {

// Far above any model that exists, low enough that the bytes of a matrix fit 64 bits.
inline constexpr int kMaxWidth = 1 << 22;

/// Borrows the object. A field that is null counts as absent; one that the file does not name means
/// what the defaults say of it. Every method throws ModelError with file, field, what was expected
/// and what was found.
class ConfigReader {
 public:
  /// REQUIRES: fields is an object.
  ConfigReader(const nlohmann::json& fields, std::string file)
      : fields_(fields), file_(std::move(file)) {}

  /// REQUIRES: both are objects; `defaults` has what fields mean that `fields` does not name.
  ConfigReader(const nlohmann::json& fields, const nlohmann::json& defaults, std::string file)
      : fields_(fields), defaults_(&defaults), file_(std::move(file)) {}

  bool has(const char* key) const { return find(key) != nullptr; }

  /// Whether the file itself has a value for it.
  bool states(const char* key) const;

  /// An integer in [1, max]; absent is an error.
  int size(const char* key, int max) const;
  int size_or(const char* key, int max, int fallback) const;
  bool flag_or(const char* key, bool fallback) const;
  /// A finite number above 0.
  double positive(const char* key) const;
  double positive_or(const char* key, double fallback) const;
  /// A finite number from 0 on.
  double from_zero_or(const char* key, double fallback) const;
  std::string text_or(const char* key, const std::string& fallback) const;
  /// An integer or a list of them, each in [min, max]; absent is empty.
  std::vector<std::int32_t> integers(const char* key, std::int64_t min, std::int64_t max) const;

  /// The object below `key`. REQUIRES: has(key).
  ConfigReader object(const char* key) const;

  /// The same fields over these defaults, which are borrowed too.
  ConfigReader over(const nlohmann::json& defaults) const { return {fields_, defaults, file_}; }

  /// The object that the defaults have below `key`, whatever the file says; absent where they have
  /// none.
  std::optional<ConfigReader> default_object(const char* key) const;

  const nlohmann::json& value(const char* key) const;

  /// What the file says, without the defaults.
  const nlohmann::json& fields() const { return fields_; }

  const std::string& file() const { return file_; }

  [[noreturn]] void refuse(const std::string& key, const std::string& expected) const;

 private:
  /// Null where there is no value.
  const nlohmann::json* find(const char* key) const;

  const nlohmann::json& fields_;
  const nlohmann::json* defaults_ = nullptr;
  std::string file_;
};

}  // namespace ferry
