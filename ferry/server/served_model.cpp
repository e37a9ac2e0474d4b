#include "ferry/server/served_model.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "ferry/core/error.h"
#include "ferry/text/chat_template.h"

namespace ferry {

std::string chat_template_text(const std::filesystem::path& directory) {
  const std::optional<ChatTemplate> chat = ChatTemplate::load(directory);
  return chat ? chat->text() : "";
}

SamplingOptions recommended_sampling(const std::filesystem::path& directory) {
  SamplingOptions sampling{.temperature = 1};
  const std::filesystem::path path = directory / "generation_config.json";
  std::ifstream in(path);
  if (!in) return sampling;
  try {
    const auto config = nlohmann::json::parse(in);
    const auto number = [&](const char* name, double otherwise) {
      const auto found = config.find(name);
      return found == config.end() || found->is_null() ? otherwise : found->get<double>();
    };
    if (!config.value("do_sample", true)) return {.temperature = 0};
    sampling.temperature = number("temperature", sampling.temperature);
    sampling.top_p = number("top_p", sampling.top_p);
    sampling.min_p = number("min_p", sampling.min_p);
    sampling.top_k = static_cast<int>(number("top_k", sampling.top_k));
    check_sampling(sampling);
  } catch (const nlohmann::json::exception& e) {
    fail<ModelError>("{}: {}", path.string(), e.what());
  } catch (const ConfigError& e) {
    fail<ModelError>("{}: {}", path.string(), e.what());
  }
  return sampling;
}

}  // namespace ferry
