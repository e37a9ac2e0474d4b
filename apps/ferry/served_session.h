// A session's model as those who chat with it know it: over HTTP or in the terminal.
#pragma once

#include <string>

#include "apps/ferry/session.h"
#include "ferry/server/served_model.h"

namespace ferry {

class Command;

/// How the model writes calls of tools and thoughts.
struct ParserFlags {
  std::string calls = "auto";
  std::string thinking = "auto";
};

/// `flags` must live until parsing is over. `group`: in the help.
void add_parser_options(Command& command, ParserFlags& flags, const char* group);

/// Borrows the session. `name`: what clients call the model; empty: its own name.
ServedModel served_model(const Session& session, const std::string& name, const ParserFlags& flags);

}  // namespace ferry
