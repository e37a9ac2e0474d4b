#include "ferry/runtime/engine_front.h"

#include <algorithm>
#include <future>
#include <utility>

namespace ferry {

namespace {

/// For a task between two steps: far longer than a step.
constexpr std::chrono::seconds kTaskTimeout{10};

}  // namespace

EngineFront::EngineFront(Engine& engine, RequestListener* listener)
    : listener_(listener), engine_(&engine) {}

void EngineFront::check_lives_locked() const {
  if (failure_) throw Refused(Refused::Reason::ended, *failure_);
}

void EngineFront::check_open_locked() const {
  check_lives_locked();
  if (refusing_) throw Refused(Refused::Reason::closing, "no more requests are taken");
}

std::unique_ptr<Call> EngineFront::start(std::vector<Request> requests) {
  std::unique_ptr<Call> call(new Call(*this));
  const std::shared_lock stays(leaving_);
  std::unique_lock lock(mutex_);
  check_lives_locked();
  Engine& engine = *engine_;
  lock.unlock();  // a check may compile a grammar, and the tokens of all calls need the lock
  for (const Request& request : requests) engine.check(request);
  lock.lock();  // over submit(), so that no token can arrive for a request that has no place yet
  check_open_locked();
  for (Request& request : requests) {
    const std::size_t prompt_tokens = request.prompt.size();
    const std::optional<std::uint64_t> id = engine_->submit(std::move(request));
    if (!id) {
      if (listener_) listener_->refused();
      lock.unlock();  // the call's destructor cancels those that did start
      throw Refused(Refused::Reason::full, "there are as many requests as may be held; try again");
    }
    places_[*id] = {.call = call.get(), .index = call->asked_.size()};
    call->asked_.push_back({.id = *id, .prompt_tokens = prompt_tokens, .last_token = call->began_});
    if (listener_) listener_->prompt_tokens(prompt_tokens);
  }
  return call;
}

void EngineFront::between_steps(std::function<void(Engine&)> task) {
  // Shared with the engine, which may get to it after we have given up.
  struct Shared {
    std::mutex mutex;
    bool given_up = false;
    std::promise<void> done;
  };

  const auto shared = std::make_shared<Shared>();
  std::unique_lock lock_engine(mutex_);
  check_lives_locked();
  engine_->post([&engine = *engine_, shared, task = std::move(task)] {
    const std::lock_guard lock(shared->mutex);
    if (shared->given_up) return;
    try {
      task(engine);
      shared->done.set_value();
    } catch (...) {
      shared->done.set_exception(std::current_exception());
    }
  });
  lock_engine.unlock();
  std::future<void> done = shared->done.get_future();
  if (done.wait_for(kTaskTimeout) != std::future_status::ready) {
    const std::lock_guard lock(shared->mutex);  // it may be at it right now
    if (done.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
      shared->given_up = true;
      throw Refused(Refused::Reason::busy, "the engine is busy; try again");
    }
  }
  done.get();
}

void EngineFront::on_token(const TokenEvent& event) {
  std::shared_ptr<Call::Mailbox> mail;
  std::size_t index = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto found = places_.find(event.request);
    if (found == places_.end()) return;  // cancelled
    Call& call = *found->second.call;
    mail = call.mail_;
    index = found->second.index;
    Call::Asked& asked = call.asked_[index];
    const Call::Clock::time_point now = Call::Clock::now();
    const std::chrono::duration<double> since = now - std::exchange(asked.last_token, now);
    const bool first = asked.tokens++ == 0;
    if (listener_ && first && event.began)
      listener_->queued(std::chrono::duration<double>(*event.began - call.began_).count());
    if (listener_) listener_->token(first, since.count());
    if (event.last) {
      asked.done = true;
      places_.erase(found);
    }
  }
  bool sleeps = false;
  {
    const std::lock_guard lock(mail->mutex);
    sleeps = mail->arrivals.empty();  // else it has been woken for those
    mail->arrivals.push_back({.index = index, .event = event});
    if (sleeps && mail->wake) mail->wake();
  }
  if (sleeps) mail->changed.notify_one();
}

void EngineFront::fail(const std::string& message) {
  const std::lock_guard lock(mutex_);
  fail_locked(message);
}

void EngineFront::fail_locked(const std::string& message) {
  if (!failure_) failure_ = message;
  for (const auto& [id, place] : places_) {
    Call::Mailbox& mail = *place.call->mail_;
    const std::lock_guard lock_mail(mail.mutex);
    mail.failure = failure_;
    mail.changed.notify_one();
    if (mail.wake) mail.wake();
  }
}

void EngineFront::refuse_new() {
  const std::lock_guard lock(mutex_);
  refusing_ = true;
}

void EngineFront::end_all(const std::string& message) {
  const std::lock_guard lock(mutex_);
  end_all_locked(message);
}

void EngineFront::end_all_locked(const std::string& message) {
  fail_locked(message);
  if (engine_ == nullptr) return;
  for (const auto& [id, place] : places_) engine_->cancel(id);
}

void EngineFront::stop(const std::string& message) {
  const std::lock_guard lock(mutex_);
  end_all_locked(message);
  if (engine_ != nullptr) engine_->close();
}

void EngineFront::detach(const std::string& message) {
  const std::unique_lock leaves(leaving_);
  const std::lock_guard lock(mutex_);
  fail_locked(message);
  engine_ = nullptr;
}

std::vector<EngineFront::LiveRequest> EngineFront::live() const {
  std::vector<LiveRequest> all;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, place] : places_) {
      const Call::Asked& asked = place.call->asked_[place.index];
      all.push_back({.id = id,
                     .prompt_tokens = asked.prompt_tokens,
                     .tokens = asked.tokens,
                     .seconds = place.call->age().count()});
    }
  }
  std::sort(all.begin(), all.end(), [](const LiveRequest& a, const LiveRequest& b) {
    return a.id < b.id;
  });
  return all;
}

void EngineFront::check_open() const {
  const std::lock_guard lock(mutex_);
  check_open_locked();
}

void EngineFront::end(Call& call, std::size_t index, EndedRequest::Ending ending, int tokens) {
  Call::Asked& asked = call.asked_[index];
  if (!std::exchange(asked.done, true)) {
    places_.erase(asked.id);
    if (engine_ != nullptr) engine_->cancel(asked.id);
  }
  if (std::exchange(asked.told, true) || !listener_) return;
  listener_->ended({.ending = ending,
                    .seconds = call.age().count(),
                    .prompt_tokens = asked.prompt_tokens,
                    .tokens = tokens});
}

Call::~Call() {
  for (std::size_t i = 0; i < asked_.size(); ++i) cancel(i);
}

void Call::cancel(std::size_t index) {
  const std::lock_guard lock(front_.mutex_);
  front_.end(*this, index, EndedRequest::Ending::cancelled, asked_[index].tokens);
}

void Call::end(std::size_t index, EndedRequest::Ending ending, int tokens) {
  const std::lock_guard lock(front_.mutex_);
  front_.end(*this, index, ending, tokens);
}

void Call::listen(std::function<void()> wake) {
  const std::lock_guard lock(mail_->mutex);
  mail_->wake = std::move(wake);
  if (!mail_->arrivals.empty() || mail_->failure) mail_->wake();
}

std::vector<Call::Arrival> Call::take(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mail_->mutex);
  mail_->changed.wait_for(
      lock, timeout, [this] { return !mail_->arrivals.empty() || mail_->failure; });
  if (mail_->arrivals.empty() && mail_->failure)
    throw Refused(Refused::Reason::ended, *mail_->failure);
  return std::exchange(mail_->arrivals, {});
}

}  // namespace ferry
