// The server: an engine behind HTTP, from the first request to the last.
#pragma once

#include <chrono>
#include <functional>

#include "ferry/engine/engine.h"
#include "ferry/runtime/elastic_group.h"
#include "ferry/server/http_server.h"
#include "ferry/server/served_model.h"

namespace ferry {

struct ServerOptions {
  HttpOptions http;
  std::chrono::milliseconds shutdown_timeout{30000};  ///< for what runs when the end is near
  GroupSize* group = nullptr;                         ///< of ranks that come and go; borrowed
};

/// Serves on rank 0's thread, which runs the engine, and on threads of its own, until `stop_wanted`
/// says so; it is asked about twenty times a second. Then new calls are refused and those that run
/// come to their end, or get an error when shutdown_timeout is over. `started` gets the port.
///
/// Throws ConfigError where the port cannot be had. What ends the engine ends the server: all
/// clients are told, and the engine's error leaves here.
void serve(const ServerOptions& options,
           const ServedModel& model,
           Engine& engine,
           const std::function<bool()>& stop_wanted,
           const std::function<void(int port)>& started);

/// Throws ConfigError when the port cannot be had, so that one learns it before a model is loaded.
void check_port(const HttpOptions& options);

}  // namespace ferry
