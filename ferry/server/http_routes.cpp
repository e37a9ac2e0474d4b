#include "ferry/server/http_routes.h"

#include <fmt/core.h>
#include <openssl/crypto.h>

#include <algorithm>
#include <utility>

namespace ferry {

namespace {

constexpr const char* kRetryAfterSeconds = "1";
constexpr const char* kMethods = "GET, HEAD, POST, OPTIONS";

std::string default_message(int status, const std::string& path, std::size_t max_body) {
  switch (status) {
    case 400:
      return "the request is not HTTP as it should be, or broke off";
    case 404:
      return "no such route: " + path;
    case 405:
      return "wrong method for " + path;
    case 408:
      return "the request did not arrive in time";
    case 413:
      return fmt::format("the body is larger than {} bytes", max_body);
    case 414:
      return "the URI is too long";
    case 415:
      return "bodies must come without Content-Encoding";
    case 417:
      return "the only \"Expect\" that can be met is 100-continue";
    case 431:
      return "the header is too long";
    default:
      return fmt::format("failed with status {}", status);
  }
}

bool reads(const HttpHead& head) { return head.method == "GET" || head.method == "HEAD"; }

}  // namespace

void HttpRoutes::get(const std::string& path, HttpHandler handler, bool open) {
  routes_[path].get = std::move(handler);
  routes_[path].open = open;
}

void HttpRoutes::post(const std::string& path, HttpHandler handler, ErrorForm errors) {
  routes_[path].post = std::move(handler);
  routes_[path].errors = std::move(errors);
}

const HttpRoutes::Route* HttpRoutes::find(const HttpHead& head) const {
  const auto found = routes_.find(head.path);
  return found == routes_.end() ? nullptr : &found->second;
}

std::string HttpRoutes::name(const HttpHead& head) const {
  return find(head) == nullptr ? "other" : head.path;
}

const HttpHandler& HttpRoutes::handler(const HttpHead& head) const {
  const Route& route = *find(head);
  return reads(head) ? route.get : route.post;
}

std::optional<HttpAnswer> HttpRoutes::early_answer(const HttpHead& head) const {
  const Route* route = find(head);
  if (route == nullptr) return error(head, 404);
  if (head.method == "OPTIONS")  // before any key: browsers ask without
    return HttpAnswer{.status = 204, .fields = {{"Allow", kMethods}}};
  if (!route->open && !has_key(head)) {
    HttpAnswer answer = error(
        head,
        HttpError(
            401, "a valid API key is needed: \"Authorization: Bearer KEY\" or \"x-api-key: KEY\""));
    answer.fields.emplace_back("WWW-Authenticate", "Bearer");
    answer.closes = true;
    return answer;
  }
  if (head.find("Content-Encoding") != nullptr)  // a few bytes could unpack to any size
    return error(head, 415);
  if (!(reads(head) ? route->get : head.method == "POST" ? route->post : HttpHandler()))
    return error(head, 405);
  const std::string_view expected = head.value("Expect");
  if (!expected.empty() && !same_but_for_case(expected, "100-continue")) return error(head, 417);
  return std::nullopt;
}

HttpAnswer HttpRoutes::error(const HttpHead& head, const HttpError& error) const {
  const Route* route = find(head);
  HttpAnswer answer{
      .status = error.status(),
      .body = route != nullptr && route->errors ? route->errors(error) : error_body(error)};
  if (error.retry()) answer.fields.emplace_back("Retry-After", kRetryAfterSeconds);
  return answer;
}

HttpAnswer HttpRoutes::error(const HttpHead& head, int status) const {
  return error(head,
               HttpError(status, default_message(status, head.path, options_.max_body_bytes)));
}

void HttpRoutes::allow_origin(const HttpHead& head, HttpFields& fields) const {
  const std::string origin(head.value("Origin"));
  const auto allowed = [&](const std::string& one) { return one == "*" || one == origin; };
  if (origin.empty() ||
      std::none_of(options_.allowed_origins.begin(), options_.allowed_origins.end(), allowed))
    return;
  fields.emplace_back("Access-Control-Allow-Origin", origin);
  fields.emplace_back("Vary", "Origin");
  if (head.method != "OPTIONS") return;
  const std::string headers(head.value("Access-Control-Request-Headers"));
  fields.emplace_back("Access-Control-Allow-Methods", kMethods);
  fields.emplace_back("Access-Control-Allow-Headers",
                      headers.empty() ? "Authorization, Content-Type" : headers);
  fields.emplace_back("Access-Control-Max-Age", "600");
}

bool HttpRoutes::is_key(std::string_view given) const {
  const std::string& wanted = options_.api_key;
  return given.size() == wanted.size() &&
         CRYPTO_memcmp(given.data(), wanted.data(), wanted.size()) == 0;
}

/// As OpenAI's clients or Anthropic's give it.
bool HttpRoutes::has_key(const HttpHead& head) const {
  if (options_.api_key.empty() || is_key(head.value("x-api-key"))) return true;
  constexpr std::string_view kScheme = "bearer ";
  const std::string_view given = head.value("Authorization");
  return given.size() > kScheme.size() &&
         same_but_for_case(given.substr(0, kScheme.size()), kScheme) &&
         is_key(given.substr(kScheme.size()));
}

}  // namespace ferry
