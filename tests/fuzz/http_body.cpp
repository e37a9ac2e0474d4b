// The path of a POST route and, after a zero byte, a body: what the routes make of it. They run
// over an engine with the demo model, so that what is right is answered too.
#include <nlohmann/json.hpp>

#include "fuzz/fuzz_entry.h"
#include "server/offline_routes.h"

namespace {

void check_json(std::string_view text) {
  if (nlohmann::json::accept(text)) return;
  std::fprintf(
      stderr, "an answer that is no JSON: %.*s\n", static_cast<int>(text.size()), text.data());
  std::abort();
}

/// Every line of a stream that says anything.
void check_events(std::string_view events) {
  constexpr std::string_view kData = "data: ";
  while (!events.empty()) {
    const std::string_view line = events.substr(0, events.find('\n'));
    events.remove_prefix(std::min(line.size() + 1, events.size()));
    if (line.starts_with(kData) && line != "data: [DONE]") check_json(line.substr(kData.size()));
  }
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // A few tokens show all that answers are made of.
  static const ferry::test::OfflineRoutes routes(/*max_context=*/24);
  const auto [path, body] = ferry::test::halves_of(ferry::test::text_of(data, size));
  const ferry::HttpHandler* handler = routes.find(std::string(path));
  if (handler == nullptr) return 0;
  ferry::test::run_on_input([&, body = body] {
    ferry::HttpReply reply = (*handler)({.body = std::string(body), .peer = "127.0.0.1"});
    const bool streams = reply.next && !reply.whole;
    const std::string text = ferry::test::text_of(std::move(reply));
    streams ? check_events(text) : check_json(text);
  });
  return 0;
}
