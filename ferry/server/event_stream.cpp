#include "ferry/server/event_stream.h"

#include <utility>

namespace ferry {

namespace {

std::string event(const std::string& data) {
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
      if (!std::exchange(begun_, true)) out += event(form_.head(*generation_));
      if (*aborted_) {
        for (const Generation::Piece& last : abort(*generation_))
          out += event(form_.piece(*generation_, last));
      }
      while (!generation_->done()) {  // whatever is there already goes out in one write
        if (const auto piece = generation_->next()) out += event(form_.piece(*generation_, *piece));
        if (!generation_->ready()) break;
      }
      if (generation_->done()) {
        over_ = true;
        out += event(form_.tail(*generation_)) + event("[DONE]");
      }
    } catch (const HttpError& e) {
      over_ = true;
      out += event(error_body(e.status(), e.what(), e.code()));
    } catch (const Refused& e) {
      over_ = true;
      const HttpError error = http_error(e);
      out += event(error_body(error.status(), error.what()));
    } catch (const std::exception& e) {
      over_ = true;
      out += event(error_body(500, e.what()));
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

HttpReply stream_events(std::shared_ptr<Generation> generation,
                        EventForm form,
                        CallRegistry::Aborted aborted) {
  const auto events =
      std::make_shared<Events>(std::move(generation), std::move(form), std::move(aborted));
  return {
      .body = {}, .content_type = "text/event-stream", .next = [events] { return events->next(); }};
}

}  // namespace ferry
