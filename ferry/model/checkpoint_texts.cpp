#include "ferry/model/checkpoint_texts.h"

#include <nlohmann/json.hpp>
#include <string>

#include "ferry/checkpoint/json_file.h"
#include "ferry/checkpoint/packed_file.h"
#include "ferry/core/error.h"

namespace ferry {

namespace {

namespace fs = std::filesystem;

bool is_weights(const std::string& name) {
  return name.find(".safetensors") != std::string::npos || name == kPackedFile;
}

}  // namespace

nlohmann::json config_of(const Checkpoint& source) {
  const SourceText text = source.source().text("config.json").value();
  return parse_json(text.text, text.file);
}

void write_texts(const Checkpoint& source, const nlohmann::json& config, NewDirectory& files) {
  const fs::path from = source.directory();
  std::error_code ignored;
  if (fs::is_directory(from, ignored)) {
    for (const auto& entry : fs::directory_iterator(from)) {
      const std::string name = entry.path().filename().string();
      if (!entry.is_regular_file() || is_weights(name) || name == "config.json") continue;
      const fs::path to = files.add(name);
      std::error_code code;
      if (!fs::copy_file(entry.path(), to, code))
        fail<Error>("{}: cannot be copied: {}", entry.path().string(), code.message());
    }
  } else {
    for (const char* name : {"generation_config.json", "tokenizer.json", "tokenizer_config.json"})
      if (const auto text = source.source().text(name)) files.add_text(name, text->text);
  }
  files.add_text("config.json", config.dump(2));
}

}  // namespace ferry
