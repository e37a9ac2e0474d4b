#include "ferry/checkpoint/json_file.h"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>
#include <vector>

#include "ferry/core/error.h"

namespace ferry {

using nlohmann::json;

namespace {

constexpr int kMaxDepth = 64;

}  // namespace

json parse_json(std::string_view text, const std::string& file) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
    switch (event) {
      case json::parse_event_t::array_start:
      case json::parse_event_t::object_start:
        if (depth >= kMaxDepth) {
          fail<ModelError>("{}: not usable: nests deeper than {} levels", file, kMaxDepth);
        }
        keys.resize(static_cast<std::size_t>(depth) + 1);
        keys.back().clear();
        break;
      case json::parse_event_t::key:
        if (!keys.back().insert(parsed.get_ref<const std::string&>()).second) {
          fail<ModelError>("{}: key {} appears twice in one object", file, describe(parsed));
        }
        break;
      case json::parse_event_t::array_end:
      case json::parse_event_t::object_end:
        keys.resize(static_cast<std::size_t>(depth));
        break;
      default:
        break;
    }
    return true;
  };
  try {
    return json::parse(text, check);
  } catch (const json::parse_error& e) {
    fail<ModelError>("{}: not JSON in UTF-8 (error near byte {})", file, e.byte);
  } catch (const json::exception& e) {
    fail<ModelError>("{}: not usable JSON (library error {})", file, e.id);
  }
}

std::string read_text_file(const std::filesystem::path& path, std::size_t max_bytes) {
  std::error_code code;
  if (!std::filesystem::exists(path, code)) {
    fail<ModelError>("{}: expected a file, found none", path.string());
  }
  if (!std::filesystem::is_regular_file(path, code)) {
    fail<ModelError>("{}: expected a file, found something else", path.string());
  }
  const std::uintmax_t bytes = std::filesystem::file_size(path, code);
  if (code || bytes > max_bytes) {
    fail<ModelError>("{}: expected at most {} bytes, found {}",
                     path.string(),
                     max_bytes,
                     code ? code.message() : std::to_string(bytes));
  }
  std::ifstream in(path, std::ios::binary);
  std::string text(static_cast<std::size_t>(bytes), '\0');
  if (!in || !in.read(text.data(), static_cast<std::streamsize>(bytes))) {
    fail<ModelError>("{}: cannot be read: {}", path.string(), std::strerror(errno));
  }
  return text;
}

std::string describe(const json& value) {
  constexpr std::size_t kShort = 4;
  const bool short_list =
      value.is_array() && value.size() <= kShort &&
      std::all_of(value.begin(), value.end(), [](const json& v) { return v.is_primitive(); });
  if ((value.is_array() || value.is_object()) && !short_list) {
    return fmt::format("{} of {}", value.is_array() ? "an array" : "an object", value.size());
  }
  const std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

}  // namespace ferry
