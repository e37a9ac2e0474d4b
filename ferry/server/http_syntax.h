// HTTP/1 as bytes: requests read, answers written.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ferry {

/// Names and values, in order.
using HttpFields = std::vector<std::pair<std::string, std::string>>;

/// What stands before the body of a request.
struct HttpHead {
  std::string method;
  std::string target;  ///< as it came
  std::string path;    ///< of it, with %XX decoded, without what follows "?"
  std::string query;   ///< of it, what follows "?", as it came
  HttpFields fields;
  bool http_1_0 = false;
  bool keeps_alive = true;
  bool has_body = false;

  /// The first of this name, in any case; null where there is none.
  const std::string* find(std::string_view name) const;

  /// Its value, or "".
  std::string_view value(std::string_view name) const;
};

/// One request. Refuses all whose length could be read in two ways.
class RequestParser {
 public:
  explicit RequestParser(std::size_t max_body_bytes);
  ~RequestParser();
  RequestParser(const RequestParser&) = delete;
  RequestParser& operator=(const RequestParser&) = delete;

  enum class Progress {
    more,   ///< all that came is not enough
    head,   ///< told once: the head is there
    whole,  ///< all is
    bad     ///< it cannot be; status() says why
  };

  /// Takes what belongs to this request off the front of `input`. REQUIRES: it said more or head.
  Progress put(std::string& input);

  int status() const;

  const HttpHead& head() const;

  std::string take_body();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

/// Status line, fields and the empty line.
std::string answer_head(int status, const HttpFields& fields);

/// A piece of a body whose length is not known. REQUIRES: not empty, which would be the end.
std::string body_chunk(std::string_view piece);

inline constexpr std::string_view kLastChunk = "0\r\n\r\n";

/// The members of a query, in order, with %XX and + decoded.
std::vector<std::pair<std::string, std::string>> query_members(std::string_view query);

/// Whether two texts are the same but for the case of ASCII letters.
bool same_but_for_case(std::string_view a, std::string_view b);

}  // namespace ferry
