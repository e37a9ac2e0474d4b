// JSON from files that may be damaged.
#pragma once

#include <cstddef>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace ferry {

/// Parses `text`. Throws ModelError naming `file` when it is not UTF-8 JSON, nests deeper than 64,
/// or says one key of an object twice.
nlohmann::json parse_json(std::string_view text, const std::string& file);

/// The whole file; throws ModelError when it is missing, unreadable or longer than max_bytes.
std::string read_text_file(const std::filesystem::path& path, std::size_t max_bytes = 256U << 20);

/// A value in a few words for an error message: `"gelu"`, `-3`, `an array of 4`.
std::string describe(const nlohmann::json& value);

}  // namespace ferry
