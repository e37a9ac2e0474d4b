#include "ferry/server/http_session.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

namespace ferry {

namespace {

/// Beside the body: line, fields, lengths of chunks.
constexpr std::size_t kFrameBytes = 65536;
/// Of requests behind the one that is answered. A client that sends more waits.
constexpr std::size_t kAheadBytes = 65536;
/// What a client must take within the write timeout, and what pieces that are there leave together.
constexpr std::size_t kSliceBytes = 65536;
/// For a client to hear an answer before its connection is closed: what it still sends would make
/// the kernel reset it.
constexpr std::chrono::milliseconds kLeaveTimeout{1000};

}  // namespace

const HttpHead& HttpSession::head() const {
  static const HttpHead none;
  return parser_ ? parser_->head() : none;
}

void HttpSession::start() {
  connection_->set_deadline(Clock::now() + service_.options.request_timeout);
  connection_->open(shared_from_this());
}

void HttpSession::stop() {
  connection_->post([self = shared_from_this()] { self->end(); });
}

void HttpSession::on_open() {
  if (refused_) {
    closes_ = true;
    answer(service_.routes.error(head(), HttpError(503, "too many connections; try again", true)));
    return read_on();
  }
  connection_->set_deadline(Clock::now() + service_.options.idle_timeout);
  read_on();
}

/// One read is under way whatever else happens, so that a client that goes is noticed.
void HttpSession::read_on() {
  if (reading_ || no_more_ || state_ == State::over) return;
  if (state_ != State::reading && input_.size() > kAheadBytes) return;
  reading_ = true;
  connection_->read();
}

void HttpSession::on_bytes(std::string_view bytes) {
  reading_ = false;
  if (state_ != State::leaving) input_ += bytes;
  if (state_ == State::reading) {
    if (parser_) count_arriving(bytes.size());
    advance();
  }
  read_on();
}

void HttpSession::count_arriving(std::size_t bytes) {
  received_ += bytes;
  service_.arriving_bytes += bytes;
}

void HttpSession::on_no_more() {
  reading_ = false;
  no_more_ = true;
  if (state_ == State::reading && parser_ && status_ == 0) {
    closes_ = true;
    return answer(service_.routes.error(head(), 400));
  }
  // What is there at once is still written: its client may have ended only its own half.
  const bool waits = state_ == State::replying && reply_.next;
  if (state_ == State::reading || state_ == State::leaving || waits) end();
}

void HttpSession::on_broken() { end(); }

void HttpSession::on_deadline() {
  if (state_ != State::reading || !parser_ || writing_) return end();
  closes_ = true;
  answer(service_.routes.error(head(), 408));
}

void HttpSession::begin_request() {
  ++service_.busy;
  parser_ = std::make_unique<RequestParser>(service_.options.max_body_bytes);
  began_ = Clock::now();
  status_ = 0;
  count_arriving(input_.size());
  connection_->set_deadline(began_ + service_.options.request_timeout);
}

void HttpSession::advance() {
  using Progress = RequestParser::Progress;
  if (!parser_) {
    input_.erase(0, input_.find_first_not_of("\r\n"));  // some send an empty line too many
    if (input_.empty()) return;
    begin_request();
  }
  while (state_ == State::reading) {
    switch (parser_->put(input_)) {
      case Progress::more:
        if (received_ > service_.options.max_body_bytes + kFrameBytes) {
          closes_ = true;
          return answer(service_.routes.error(head(), 413));
        }
        if (service_.arriving_bytes > service_.options.max_arriving_bytes) {
          closes_ = true;
          return answer(service_.routes.error(
              head(), HttpError(503, "too many requests are arriving; try again", true)));
        }
        return;
      case Progress::head:
        take_head();
        break;
      case Progress::whole:
        return handle();
      case Progress::bad:
        closes_ = true;
        return answer(service_.routes.error(head(), parser_->status()));
    }
  }
}

void HttpSession::take_head() {
  if (!head().keeps_alive) closes_ = true;
  if (std::optional<HttpAnswer> early = service_.routes.early_answer(head())) {
    // The body that comes would be taken for the next request.
    if (head().has_body) closes_ = true;
    return answer(std::move(*early));
  }
  if (head().has_body && !head().http_1_0 && !head().value("Expect").empty())
    send(answer_head(100, {}));
}

void HttpSession::handle() {
  state_ = State::handling;
  connection_->set_deadline(Connection::kNever);
  service_.arriving_bytes -= std::exchange(received_, 0);
  auto request = std::make_shared<HttpRequest>(HttpRequest{.body = parser_->take_body(),
                                                           .peer = connection_->peer(),
                                                           .id = service_.routes.id(head()),
                                                           .query = head().query});
  const HttpHandler& handler = service_.routes.handler(head());
  service_.workers.post([self = shared_from_this(), request, &handler] {
    auto result = std::make_shared<HttpReply>();
    std::optional<HttpError> failed;
    try {
      *result = handler(*request);
    } catch (const std::exception&) {
      failed = current_http_error();
    }
    self->connection_->post([self, result, failed = std::move(failed)] {
      if (self->state_ != State::handling) return;  // it has ended meanwhile
      if (failed) return self->answer(self->service_.routes.error(self->head(), *failed));
      self->reply(std::move(*result));
    });
  });
}

void HttpSession::reply(HttpReply reply) {
  if (!reply.next)
    return answer({.body = std::move(reply.body), .content_type = std::move(reply.content_type)});
  state_ = State::replying;
  reply_ = std::move(reply);
  if (no_more_) return end();
  if (reply_.listen) {
    reply_.listen([weak = weak_from_this(), post_to = std::weak_ptr(connection_)] {
      if (const auto connection = post_to.lock())
        connection->post([weak] {
          if (const auto self = weak.lock()) self->pump();
        });
    });
  }
  if (reply_.whole) return pump_whole();
  begin_stream();
}

void HttpSession::begin_stream() {
  chunked_ = !head().http_1_0;
  if (!chunked_) closes_ = true;  // which is how the client knows the end
  HttpFields fields = common_fields();
  fields.emplace_back("Content-Type", reply_.content_type);
  if (chunked_) fields.emplace_back("Transfer-Encoding", "chunked");
  status_ = 200;
  if (service_.options.on_answer) service_.options.on_answer(service_.routes.name(head()), status_);
  if (head().method == "HEAD") reply_.next = [] { return std::optional<std::string>(); };
  send(answer_head(status_, fields));
}

/// The next pieces are asked for when those before have left, so that what waits for a client is
/// never more than one write.
void HttpSession::pump() {
  if (state_ != State::replying || !reply_.next || writing_) return;
  if (reply_.whole) return pump_whole();
  std::string out;
  while (out.size() < kSliceBytes) {
    const std::optional<std::string> piece = reply_.next();
    if (!piece) {
      reply_ = {};
      if (chunked_ && head().method != "HEAD") out += kLastChunk;
      break;
    }
    if (piece->empty()) break;
    out += chunked_ ? body_chunk(*piece) : *piece;
  }
  if (!out.empty()) return send(std::move(out));
  if (!reply_.next)
    finish_request();
  else
    connection_->set_deadline(Connection::kNever);
}

void HttpSession::pump_whole() {
  try {
    for (;;) {
      const std::optional<std::string> piece = reply_.next();
      if (!piece) break;
      if (piece->empty()) return;
      reply_.body += *piece;
    }
  } catch (const std::exception&) {
    reply_ = {};
    return answer(service_.routes.error(head(), current_http_error()));
  }
  HttpAnswer whole{.body = std::move(reply_.body), .content_type = reply_.content_type};
  reply_ = {};
  answer(std::move(whole));
}

HttpFields HttpSession::common_fields() {
  if (service_.stopping) closes_ = true;
  HttpFields fields;
  service_.routes.allow_origin(head(), fields);
  if (closes_) {
    fields.emplace_back("Connection", "close");
  } else {
    const auto seconds =
        std::chrono::duration_cast<std::chrono::seconds>(service_.options.idle_timeout);
    if (head().http_1_0) fields.emplace_back("Connection", "keep-alive");
    fields.emplace_back("Keep-Alive", "timeout=" + std::to_string(seconds.count()));
  }
  return fields;
}

void HttpSession::answer(HttpAnswer answer) {
  state_ = State::replying;
  if (answer.closes) closes_ = true;
  HttpFields fields = common_fields();
  fields.insert(fields.end(), answer.fields.begin(), answer.fields.end());
  if (answer.status != 204) {
    fields.emplace_back("Content-Type", answer.content_type);
    fields.emplace_back("Content-Length", std::to_string(answer.body.size()));
  }
  status_ = answer.status;
  if (service_.options.on_answer && !refused_)
    service_.options.on_answer(service_.routes.name(head()), status_);
  std::string bytes = answer_head(status_, fields);
  if (head().method != "HEAD") bytes += answer.body;
  send(std::move(bytes));
}

void HttpSession::send(std::string bytes) {
  if (queued_.empty())
    queued_ = std::move(bytes);
  else
    queued_ += bytes;
  if (!writing_) write_slice();
}

void HttpSession::write_slice() {
  if (sent_ == sending_.size()) {
    sending_ = std::exchange(queued_, {});
    sent_ = 0;
  }
  writing_ = true;
  if (state_ != State::reading)
    connection_->set_deadline(Clock::now() + service_.options.write_timeout);
  connection_->write(std::string_view(sending_).substr(sent_, kSliceBytes));
}

void HttpSession::on_written() {
  sent_ = std::min(sending_.size(), sent_ + kSliceBytes);
  if (sent_ < sending_.size() || !queued_.empty()) return write_slice();
  writing_ = false;
  sending_.clear();
  sent_ = 0;
  if (state_ != State::replying) return;  // a 100
  if (reply_.next) return pump();
  finish_request();
}

void HttpSession::finish_request() {
  log(status_);
  if (closes_ || no_more_ || service_.stopping) return leave();
  state_ = State::reading;
  for (std::string* buffer : {&sending_, &queued_, &input_})
    buffer->shrink_to_fit();  // thousands may be held open behind something large
  connection_->set_deadline(Clock::now() + service_.options.idle_timeout);
  advance();  // the next one may be there
  read_on();
}

void HttpSession::leave() {
  if (no_more_) return end();
  state_ = State::leaving;
  input_.clear();
  connection_->set_deadline(Clock::now() + kLeaveTimeout);
  connection_->finish_sending();
  read_on();
}

/// Of the request that is under way, which it ends.
void HttpSession::log(int status) {
  if (!parser_) return;
  --service_.busy;
  service_.arriving_bytes -= std::exchange(received_, 0);
  if (service_.options.access_log)
    spdlog::info("{} {} {} {} {:.3f} s",
                 connection_->peer(),
                 head().method,
                 head().path,
                 status,
                 std::chrono::duration<double>(Clock::now() - began_).count());
  parser_.reset();
}

void HttpSession::end() {
  if (state_ == State::over) return;
  constexpr int kClientHasGone = 499;
  const std::shared_ptr<HttpSession> self = shared_from_this();
  const int status = status_ == 0 ? kClientHasGone : status_;
  if (parser_ && status_ == 0 && service_.options.on_answer)
    service_.options.on_answer(service_.routes.name(head()), status);
  state_ = State::over;
  reply_ = {};
  connection_->close();
  log(status);
  service_.ended(self);
}

}  // namespace ferry
