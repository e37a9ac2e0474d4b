#include "ferry/server/event_stream.h"

#include <nlohmann/json.hpp>
#include <utility>

namespace ferry {

namespace {

std::string unnamed_event(const std::string& data) {
  return data.empty() ? std::string() : "data: " + data + "\n\n";
}

/// Of events that leave together: a client that has fallen behind is not sent all it missed at
/// once.
constexpr std::size_t kMostBytes = 65536;

class Events {
 public:
  Events(std::shared_ptr<Generation> generation, EventForm form, CallRegistry::Aborted aborted)
      : generation_(std::move(generation)), form_(std::move(form)), aborted_(std::move(aborted)) {}

  std::optional<std::string> next() {
    if (over_) return std::nullopt;
    std::string out;
    try {
      if (!std::exchange(begun_, true)) out += form_.head(*generation_);
      if (aborted_->set()) {
        for (const Generation::Piece& last : abort(*generation_, *aborted_))
          out += form_.piece(*generation_, last);
      }
      while (!generation_->done()) {  // whatever is there already goes out in one write
        const auto piece = generation_->next(std::chrono::milliseconds(0));
        if (piece) out += form_.piece(*generation_, *piece);
        if (!generation_->ready() || out.size() >= kMostBytes) break;
      }
      if (generation_->done()) {
        over_ = true;
        out += form_.tail(*generation_);
      }
    } catch (const std::exception&) {
      over_ = true;
      out += form_.failure(current_http_error());
    }
    return out;
  }

 private:
  std::shared_ptr<Generation> generation_;  // its other owner is the route, until it has returned
  EventForm form_;
  CallRegistry::Aborted aborted_;
  bool begun_ = false;
  bool over_ = false;
};

}  // namespace

EventForm unnamed_events(EventForm bodies) {
  return {.head = [head = std::move(bodies.head)](Generation& g) { return unnamed_event(head(g)); },
          .piece = [piece = std::move(bodies.piece)](
                       Generation& g,
                       const Generation::Piece& p) { return unnamed_event(piece(g, p)); },
          .tail = [tail = std::move(bodies.tail)](
                      Generation& g) { return unnamed_event(tail(g)) + unnamed_event("[DONE]"); },
          .failure = [](const HttpError& error) { return unnamed_event(error_body(error)); }};
}

std::string named_event(const nlohmann::ordered_json& event) {
  return "event: " + event.at("type").get<std::string>() + "\n" + unnamed_event(to_text(event));
}

HttpReply stream_events(std::shared_ptr<Generation> generation,
                        EventForm form,
                        CallRegistry::Aborted aborted) {
  const auto events = std::make_shared<Events>(generation, std::move(form), aborted);
  return {.body = {},
          .content_type = "text/event-stream",
          .next = [events] { return events->next(); },
          .listen = listener_of(std::move(generation), std::move(aborted))};
}

}  // namespace ferry
