#include "ferry/server/http_error.h"

#include <nlohmann/json.hpp>

#include "ferry/text/json_fields.h"

namespace ferry {

using Json = nlohmann::ordered_json;

namespace {

const char* error_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    default:
      return status < 500 ? "invalid_request_error" : "server_error";
  }
}

}  // namespace

std::string error_body(const HttpError& error) {
  const auto text = [](const char* value) {
    return value == nullptr ? Json(nullptr) : Json(value);
  };
  if (const std::optional<ErrorFields>& fields = error.fields())
    return to_text({{"error",
                     {{"message", error.what()},
                      {"type", text(fields->type)},
                      {"param", text(fields->param)},
                      {"code", text(fields->code)}}}});
  return to_text({{"error",
                   {{"message", error.what()},
                    {"type", error_type(error.status())},
                    {"param", nullptr},
                    {"code", error.code().empty() ? Json(error.status()) : Json(error.code())}}}});
}

HttpError http_error(const Refused& refused) {
  switch (refused.reason()) {
    case Refused::Reason::full:
      return {429, "the server has as many requests as it may hold; try again", /*retry=*/true};
    case Refused::Reason::busy:
      return {503, "the engine is busy", /*retry=*/true};
    case Refused::Reason::closing:
      return {503, "the server is shutting down", /*retry=*/true};
    case Refused::Reason::ended:
      break;
  }
  return {503, refused.what()};
}

HttpError current_http_error() {
  try {
    throw;
  } catch (const HttpError& e) {
    return e;
  } catch (const Refused& e) {
    return http_error(e);
  } catch (const ConfigError& e) {  // what the client asked for cannot be
    return {400, e.what()};
  } catch (const std::exception& e) {
    return {500, e.what()};
  }
}

}  // namespace ferry
