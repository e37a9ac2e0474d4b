#include "ferry/server/http_routes.h"

#include <fmt/core.h>
#include <openssl/crypto.h>

#include <algorithm>
#include <utility>

namespace ferry {

namespace {

constexpr const char* kRetryAfterSeconds = "1";
constexpr const char* kMethods = "GET, HEAD, POST, DELETE, OPTIONS";

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

/// What of a path stands where the route's has "*"; none: the path is not the route's.
std::optional<std::string> id_in(std::string_view route, std::string_view path) {
  const std::size_t star = route.find('*');
  if (star == std::string_view::npos || path.size() < route.size()) return std::nullopt;
  const std::string_view behind = route.substr(star + 1);
  const std::string_view id = path.substr(star, path.size() - (route.size() - 1));
  const bool same = path.substr(0, star) == route.substr(0, star) && path.ends_with(behind);
  if (!same || id.empty() || id.find('/') != std::string_view::npos) return std::nullopt;
  return std::string(id);
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

void HttpRoutes::del(const std::string& path, HttpHandler handler) {
  routes_[path].del = std::move(handler);
}

const std::pair<const std::string, HttpRoutes::Route>* HttpRoutes::find(
    const HttpHead& head) const {
  if (const auto found = routes_.find(head.path);
      found != routes_.end() && head.path.find('*') == std::string::npos)
    return &*found;
  const auto found = std::find_if(routes_.begin(), routes_.end(), [&](const auto& route) {
    return id_in(route.first, head.path).has_value();
  });
  return found == routes_.end() ? nullptr : &*found;
}

std::string HttpRoutes::name(const HttpHead& head) const {
  const auto* found = find(head);
  return found == nullptr ? "other" : found->first;
}

std::string HttpRoutes::id(const HttpHead& head) const {
  const auto* found = find(head);
  return found == nullptr ? "" : id_in(found->first, head.path).value_or("");
}

const HttpHandler& HttpRoutes::handler_of(const Route& route, const HttpHead& head) {
  static const HttpHandler none;
  if (reads(head)) return route.get;
  if (head.method == "DELETE") return route.del;
  return head.method == "POST" ? route.post : none;
}

const HttpHandler& HttpRoutes::handler(const HttpHead& head) const {
  return handler_of(find(head)->second, head);
}

std::optional<HttpAnswer> HttpRoutes::early_answer(const HttpHead& head) const {
  const auto* found = find(head);
  if (found == nullptr) return error(head, 404);
  const Route* route = &found->second;
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
  if (!handler_of(*route, head)) return error(head, 405);
  const std::string_view expected = head.value("Expect");
  if (!expected.empty() && !same_but_for_case(expected, "100-continue")) return error(head, 417);
  return std::nullopt;
}

HttpAnswer HttpRoutes::error(const HttpHead& head, const HttpError& error) const {
  const auto* found = find(head);
  const Route* route = found == nullptr ? nullptr : &found->second;
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
