#include "ferry/server/event_stream.h"

#include <nlohmann/json.hpp>
#include <utility>

namespace ferry {

namespace {

std::string unnamed_event(const std::string& data) {
  return data.empty() ? std::string() : "data: " + data + "\n\n";
}

class Events {
 public:
  Events(std::shared_ptr<Generation> generation, EventForm form, CallRegistry::Aborted aborted)
      : generation_(std::move(generation)), form_(std::move(form)), aborted_(std::move(aborted)) {}

  std::optional<std::string> next() {
    if (over_) return std::nullopt;
    std::string out;
    try {
      if (!std::exchange(begun_, true)) out += form_.head(*generation_);
      if (*aborted_) {
        for (const Generation::Piece& last : abort(*generation_))
          out += form_.piece(*generation_, last);
      }
      while (!generation_->done()) {  // whatever is there already goes out in one write
        if (const auto piece = generation_->next()) out += form_.piece(*generation_, *piece);
        if (!generation_->ready()) break;
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
  const auto events =
      std::make_shared<Events>(std::move(generation), std::move(form), std::move(aborted));
  return {
      .body = {}, .content_type = "text/event-stream", .next = [events] { return events->next(); }};
}

}  // namespace ferry
