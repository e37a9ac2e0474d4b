// Which handler answers a request, and what is answered without one: unknown paths, wrong methods,
// keys, what browsers ask before.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "ferry/server/http_server.h"
#include "ferry/server/http_syntax.h"

namespace ferry {

/// An answer that is there as a whole.
struct HttpAnswer {
  int status = 200;
  std::string body = {};
  std::string content_type = "application/json";
  HttpFields fields = {};  ///< beside those that every answer has
  bool closes = false;     ///< the connection is of no further use
};

/// Threads: any, once all routes are there.
class HttpRoutes {
 public:
  /// Borrows the options.
  explicit HttpRoutes(const HttpOptions& options) : options_(options) {}

  void get(const std::string& path, HttpHandler handler, bool open);
  void post(const std::string& path, HttpHandler handler, ErrorForm errors);
  void del(const std::string& path, HttpHandler handler);

  /// What is answered whatever the body says; none: handler() is there.
  std::optional<HttpAnswer> early_answer(const HttpHead& head) const;

  const HttpHandler& handler(const HttpHead& head) const;

  /// In the form of the request's path.
  HttpAnswer error(const HttpHead& head, const HttpError& error) const;

  /// The same for what HTTP itself has against a request.
  HttpAnswer error(const HttpHead& head, int status) const;

  /// What lets the page that asks read the answer.
  void allow_origin(const HttpHead& head, HttpFields& fields) const;

  /// The route's path, or "other" for what is none.
  std::string name(const HttpHead& head) const;

  /// What stands in the path where its route has "*".
  std::string id(const HttpHead& head) const;

 private:
  struct Route {
    HttpHandler get = {}, post = {}, del = {};
    bool open = false;
    ErrorForm errors = {};
  };

  bool is_key(std::string_view given) const;
  bool has_key(const HttpHead& head) const;
  const std::pair<const std::string, Route>* find(const HttpHead& head) const;
  static const HttpHandler& handler_of(const Route& route, const HttpHead& head);

  const HttpOptions& options_;
  std::map<std::string, Route> routes_;
};

}  // namespace ferry
