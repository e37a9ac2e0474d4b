// Where prompts come from: the command line, or files of text or ids.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "apps/ferry/session.h"

namespace ferry {

struct Prompt {
  std::string origin;  ///< for errors: "--prompt", "prompts.txt line 3"
  std::string text;    ///< empty when ids were given
  std::vector<std::int32_t> ids;
};

/// Exactly one of the three is not empty.
struct PromptSources {
  std::string text;
  std::string text_file;  ///< .json: list; .jsonl: an object a line; else one prompt a line.
                          ///< List items are strings or objects with a "prompt"
  std::string ids_file;   ///< ids of one prompt a line, separated by spaces or commas
};

/// All prompts as ids. Throws ConfigError for files that cannot be read or hold something else.
std::vector<Prompt> read_prompts(const PromptSources& sources, const Session& session);

/// The lines of a file that are not blank, with their numbers (from 1). Throws ConfigError.
struct NumberedLine {
  int number = 0;
  std::string text;
};

std::vector<NumberedLine> read_lines(const std::filesystem::path& file);

}  // namespace ferry
