// The one file that knows Beast.
#include "ferry/server/http_syntax.h"

#include <fmt/core.h>

#include <algorithm>
#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/status.hpp>
#include <optional>

namespace ferry {

namespace {

namespace http = boost::beast::http;
using boost::beast::error_code;
using boost::beast::string_view;

/// Request line and fields.
constexpr std::uint32_t kHeadBytes = 65536;
constexpr std::size_t kTargetBytes = 8192;

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

std::optional<int> hex_digit(char c) {
  const char l = lower(c);
  if (l >= '0' && l <= '9') return l - '0';
  if (l >= 'a' && l <= 'f') return l - 'a' + 10;
  return std::nullopt;
}

/// %XX as bytes.
std::string decoded(std::string_view text) {
  std::string all;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size()) {
      const auto high = hex_digit(text[i + 1]);
      const auto low = hex_digit(text[i + 2]);
      if (high && low) {
        all += static_cast<char>(*high * 16 + *low);
        i += 2;
        continue;
      }
    }
    all += text[i];
  }
  return all;
}

std::string path_of(std::string_view target) {
  if (const std::size_t scheme = target.find("://");
      scheme != std::string_view::npos && scheme < target.find('/')) {  // as to a proxy
    const std::size_t path = target.find('/', scheme + 3);
    target = path == std::string_view::npos ? "/" : target.substr(path);
  }
  return decoded(target.substr(0, target.find_first_of("?#")));
}

std::string_view query_of(std::string_view target) {
  target = target.substr(0, target.find('#'));
  const std::size_t begin = target.find('?');
  return begin == std::string_view::npos ? std::string_view() : target.substr(begin + 1);
}

bool all_digits(std::string_view text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

bool same_but_for_case(std::string_view a, std::string_view b) {
  return std::equal(
      a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) { return lower(x) == lower(y); });
}

const std::string* HttpHead::find(std::string_view name) const {
  for (const auto& [own, value] : fields)
    if (same_but_for_case(own, name)) return &value;
  return nullptr;
}

std::string_view HttpHead::value(std::string_view name) const {
  const std::string* found = find(name);
  return found == nullptr ? std::string_view() : std::string_view(*found);
}

class RequestParser::Impl final : public http::basic_parser<true> {
 public:
  explicit Impl(std::size_t max_body_bytes) : max_body_bytes_(max_body_bytes) {
    header_limit(kHeadBytes);
    body_limit(max_body_bytes);
  }

  Progress advance(std::string& input) {
    for (;;) {
      if (is_done() && told_) return Progress::whole;
      if (input.empty()) return Progress::more;
      error_code error;
      const std::size_t taken = put(boost::asio::buffer(input), error);
      input.erase(0, taken);
      if (error == http::error::need_more) return Progress::more;
      if (error) return refuse(error);
      if (is_header_done() && !told_) {
        told_ = true;
        eager(true);
        return Progress::head;
      }
      if (taken == 0) return Progress::more;
    }
  }

  int bad_status = 0;
  HttpHead head;
  std::string body;

 private:
  Progress refuse(const error_code& error) {
    if (error == http::error::body_limit)
      bad_status = 413;
    else if (error == http::error::header_limit)
      bad_status = 431;
    else if (bad_status == 0)
      bad_status = 400;
    return Progress::bad;
  }

  void on_request_impl(http::verb /*verb*/,
                       string_view method,
                       string_view target,
                       int version,
                       error_code& error) override {
    head.method = std::string(method);
    head.target = std::string(target);
    head.http_1_0 = version == 10;
    if (target.size() > kTargetBytes) {
      bad_status = 414;
      error = http::error::bad_target;
    }
    head.path = path_of(head.target);
    head.query = query_of(head.target);
  }

  void on_response_impl(int /*code*/,
                        string_view /*reason*/,
                        int /*version*/,
                        error_code& /*error*/) override {}

  void on_field_impl(http::field /*field*/,
                     string_view name,
                     string_view value,
                     error_code& /*error*/) override {
    if (told_) return;  // behind a chunked body, where nothing counts any more
    head.fields.emplace_back(std::string(name), std::string(value));
  }

  /// Beast takes equal lengths for one, and codings that it does not know for none. Whoever stands
  /// before us may read them otherwise.
  void on_header_impl(error_code& error) override {
    const auto count = [&](std::string_view name) {
      return std::count_if(head.fields.begin(), head.fields.end(), [&](const auto& field) {
        return same_but_for_case(field.first, name);
      });
    };
    const auto lengths = count("Content-Length");
    const auto codings = count("Transfer-Encoding");
    if (lengths + codings > 1 || (lengths == 1 && !all_digits(head.value("Content-Length"))))
      error = http::error::bad_content_length;
    if (codings == 1 &&
        (head.http_1_0 || !same_but_for_case(head.value("Transfer-Encoding"), "chunked")))
      error = http::error::bad_transfer_encoding;
    head.keeps_alive = keep_alive();
    head.has_body = chunked() || content_length().value_or(0) > 0;
  }

  void on_body_init_impl(const boost::optional<std::uint64_t>& /*length*/,
                         error_code& /*error*/) override {}

  std::size_t on_body_impl(string_view piece, error_code& error) override {
    if (body.size() + piece.size() > max_body_bytes_) {
      error = http::error::body_limit;
      return 0;
    }
    body.append(piece.data(), piece.size());
    return piece.size();
  }

  void on_chunk_header_impl(std::uint64_t /*size*/,
                            string_view /*extensions*/,
                            error_code& /*error*/) override {}

  std::size_t on_chunk_body_impl(std::uint64_t /*left*/,
                                 string_view piece,
                                 error_code& error) override {
    return on_body_impl(piece, error);
  }

  void on_finish_impl(error_code& /*error*/) override {}

  const std::size_t max_body_bytes_;
  bool told_ = false;  // that the head is there
};

RequestParser::RequestParser(std::size_t max_body_bytes)
    : impl_(std::make_unique<Impl>(max_body_bytes)) {}

RequestParser::~RequestParser() = default;

RequestParser::Progress RequestParser::put(std::string& input) { return impl_->advance(input); }

int RequestParser::status() const { return impl_->bad_status; }

const HttpHead& RequestParser::head() const { return impl_->head; }

std::string RequestParser::take_body() { return std::move(impl_->body); }

std::string answer_head(int status, const HttpFields& fields) {
  const string_view reason = http::obsolete_reason(http::int_to_status(status));
  std::string head =
      fmt::format("HTTP/1.1 {} {}\r\n", status, std::string_view(reason.data(), reason.size()));
  for (const auto& [name, value] : fields)
    head.append(name).append(": ").append(value).append("\r\n");
  return head += "\r\n";
}

std::string body_chunk(std::string_view piece) {
  return fmt::format("{:x}\r\n{}\r\n", piece.size(), piece);
}

std::vector<std::pair<std::string, std::string>> query_members(std::string_view query) {
  std::vector<std::pair<std::string, std::string>> all;
  while (!query.empty()) {
    const std::string_view one = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(query.size(), one.size() + 1));
    if (one.empty()) continue;
    std::string member(one);
    std::replace(member.begin(), member.end(), '+', ' ');
    const std::size_t equals = member.find('=');
    all.emplace_back(
        decoded(std::string_view(member).substr(0, equals)),
        equals == std::string::npos ? "" : decoded(std::string_view(member).substr(equals + 1)));
  }
  return all;
}

}  // namespace ferry
