#include "ferry/checkpoint/hub_cache.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "ferry/core/error.h"

namespace ferry {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "models--";
constexpr std::string_view kBetween = "--";

fs::path cache_directory() {
  struct Place {
    const char* variable;
    const char* below;
  };

  constexpr std::array kPlaces{Place{"HF_HUB_CACHE", ""},
                               Place{"HF_HOME", "hub"},
                               Place{"XDG_CACHE_HOME", "huggingface/hub"},
                               Place{"HOME", ".cache/huggingface/hub"}};
  for (const auto& [variable, below] : kPlaces) {
    const char* value = std::getenv(variable);
    if (value != nullptr && *value != '\0') return *below == '\0' ? value : fs::path(value) / below;
  }
  return {};
}

/// "org/name", of letters, digits and ".-_" that begin with none of these.
bool is_hub_name(std::string_view text) {
  const auto slash = text.find('/');
  if (slash == std::string_view::npos) return false;
  return std::ranges::all_of(
      std::array{text.substr(0, slash), text.substr(slash + 1)}, [](std::string_view part) {
        const auto letter = [](unsigned char c) { return std::isalnum(c) != 0; };
        return !part.empty() && letter(static_cast<unsigned char>(part.front())) &&
               std::ranges::all_of(part, [&](unsigned char c) {
                 return letter(c) || c == '.' || c == '-' || c == '_';
               });
      });
}

/// Where branch main stands, or the only snapshot; empty: neither.
fs::path snapshot_in(const fs::path& repository) {
  std::error_code code;
  std::string revision;
  std::ifstream(repository / "refs" / "main") >> revision;
  const fs::path snapshots = repository / "snapshots";
  if (!revision.empty() && fs::path(revision).filename() == revision &&
      fs::is_directory(snapshots / revision, code))
    return snapshots / revision;
  std::vector<fs::path> all;
  for (const fs::directory_entry& entry : fs::directory_iterator(snapshots, code))
    all.push_back(entry.path());
  return all.size() == 1 ? all.front() : fs::path();
}

}  // namespace

fs::path find_model(std::string_view model) {
  fs::path path(model);
  std::error_code code;
  if (fs::exists(path, code) || !is_hub_name(model)) return path;
  const auto slash = model.find('/');
  const fs::path repository =
      cache_directory() /
      fmt::format("{}{}{}{}", kPrefix, model.substr(0, slash), kBetween, model.substr(slash + 1));
  if (!fs::is_directory(repository, code)) {
    fail<ModelError>(
        "{}: no such directory here, and no such model in the local Hugging Face cache ({}); "
        "download it with: hf download {}",
        model,
        repository.string(),
        model);
  }
  path = snapshot_in(repository);
  if (path.empty()) {
    fail<ModelError>(
        "{}: expected refs/main or one snapshot in {}, found neither; download it again with: hf "
        "download {}",
        model,
        repository.string(),
        model);
  }
  return path;
}

std::string model_name(const fs::path& directory) {
  const fs::path clean = (directory / "").parent_path();
  const std::string repository = clean.parent_path().parent_path().filename().string();
  if (clean.parent_path().filename() != "snapshots" || !repository.starts_with(kPrefix))
    return clean.filename().string();
  const auto between = repository.find(kBetween, kPrefix.size());
  if (between == std::string::npos) return repository.substr(kPrefix.size());
  return fmt::format("{}/{}",
                     std::string_view(repository).substr(kPrefix.size(), between - kPrefix.size()),
                     std::string_view(repository).substr(between + kBetween.size()));
}

}  // namespace ferry
