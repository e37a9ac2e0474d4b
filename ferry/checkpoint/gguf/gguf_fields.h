// A GGUF file's metadata by type, and what else says of which model it is: the tensors that there
// are.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>

#include "ferry/checkpoint/gguf/gguf_file.h"

namespace ferry {

/// Borrows the file. A key that begins with a point is one of the architecture: ".block_count".
/// Every method throws ModelError with file, key, what was expected and what was found.
class GgufFields {
 public:
  /// Throws when the file does not say of which architecture it is.
  explicit GgufFields(const GgufFile& file);

  const std::string& file() const { return file_.path(); }

  const std::string& architecture() const { return architecture_; }

  bool has(std::string_view key) const { return file_.find(full(key)) != nullptr; }

  /// An integer from 0 on; absent is an error. A list that says the same of every layer is one too.
  std::int64_t size(std::string_view key) const;
  std::int64_t size_or(std::string_view key, std::int64_t fallback) const;
  double number(std::string_view key) const;
  double number_or(std::string_view key, double fallback) const;
  bool flag_or(std::string_view key, bool fallback) const;
  std::string_view text(std::string_view key) const;
  std::optional<std::string_view> text_if(std::string_view key) const;
  /// Empty when absent.
  std::span<const std::string_view> texts(std::string_view key) const;
  std::span<const std::int64_t> integers(std::string_view key) const;
  std::span<const double> numbers(std::string_view key) const;

  const std::map<std::string, GgufValue, std::less<>>& all() const { return file_.metadata(); }

  /// With what is there as what was found.
  [[noreturn]] void refuse(std::string_view key, const std::string& expected) const;

 private:
  std::string full(std::string_view key) const;
  const GgufValue& value(std::string_view key, std::string_view expected) const;

  const GgufFile& file_;
  std::string architecture_;
};

/// A model as its files describe it.
struct GgufModel {
  const GgufFields& fields;
  std::set<std::string_view> tensors;  ///< of all files, by the names they have there
  std::int64_t layers = 0;             ///< without those that predict further tokens
  std::int64_t vocab = 0;
  std::string_view dtype;  ///< of most weights, as config.json calls it; of codes: what holds them
  std::string blocks;      ///< types of those that there are, for people: "Q4_K, Q6_K"

  bool has(std::string_view tensor) const { return tensors.contains(tensor); }

  bool has(std::int64_t layer, std::string_view rest) const;

  /// Whether any layer has it.
  bool anywhere(std::string_view rest) const;
};

}  // namespace ferry
