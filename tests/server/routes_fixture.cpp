#include "server/routes_fixture.h"

#include <httplib.h>

namespace ferry::test {

namespace {

httplib::Client client_of(const Served& served) {
  httplib::Client client("127.0.0.1", served.port());
  client.set_read_timeout(60, 0);
  return client;
}

MaybeAnswer answer_of(const httplib::Result& result) {
  if (!result) return std::nullopt;
  return Answer{.status = result->status,
                .body = result->body,
                .content_type = result->get_header_value("Content-Type")};
}

}  // namespace

MaybeAnswer get_from(const Served& served, const std::string& path) {
  return answer_of(client_of(served).Get(path));
}

MaybeAnswer delete_from(const Served& served, const std::string& path) {
  return answer_of(client_of(served).Delete(path));
}

MaybeAnswer post_to(const Served& served, const std::string& path, const std::string& body) {
  return answer_of(client_of(served).Post(path, body, "application/json"));
}

}  // namespace ferry::test
