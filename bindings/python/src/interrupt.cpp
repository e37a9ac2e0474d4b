#include "interrupt.h"

#include <nanobind/nanobind.h>
#include <pthread.h>

#include <future>
#include <thread>
#include <utility>

namespace ferry::python {

namespace nb = nanobind;

namespace {

pthread_t main_thread;

bool on_main_thread() { return pthread_equal(pthread_self(), main_thread) != 0; }

constexpr const char* kInterrupted = "it was interrupted (Ctrl-C)";

class InterruptibleTransport final : public Transport {
 public:
  explicit InterruptibleTransport(std::unique_ptr<Transport> inner) : inner_(std::move(inner)) {}

  Rank rank() const override { return inner_->rank(); }

  int size() const override { return inner_->size(); }

  std::string_view name() const override { return inner_->name(); }

  Capabilities capabilities() const override { return inner_->capabilities(); }

  int host_of(Rank rank) const override { return inner_->host_of(rank); }

  Rank known_as(Rank rank) const override { return inner_->known_as(rank); }

  std::unique_ptr<Region> allocate_region(std::size_t bytes, int num_signals) override {
    std::unique_ptr<Region> region;
    together([&] { region = inner_->allocate_region(bytes, num_signals); });
    return region;
  }

  std::unique_ptr<Region> register_region(std::span<std::byte> memory, int num_signals) override {
    std::unique_ptr<Region> region;
    together([&] { region = inner_->register_region(memory, num_signals); });
    return region;
  }

  std::unique_ptr<Transport> split(int color, int key) override {
    std::unique_ptr<Transport> end;
    together([&] { end = inner_->split(color, key); });
    return end ? interruptible(std::move(end)) : nullptr;
  }

  void put(const Put& put) override { inner_->put(put); }

  WaitResult wait(Region& region, int signal, std::uint64_t count, Deadline deadline) override {
    if (!on_main_thread()) return inner_->wait(region, signal, count, deadline);
    // A transport tells a rank that has left from a late one at the caller's deadline, so the last
    // stretch, longer than its grace for that, is one wait; so is every one of a wait without a
    // deadline.
    constexpr std::chrono::milliseconds kLastStretch{1500};
    int looks = 0;
    for (;;) {
      Deadline until = deadline;
      if (deadline == kNoDeadline) {
        until = deadline_in(looks++ < 10 ? kLookEvery : kLastStretch);
      } else if (const Deadline next = deadline_in(kLookEvery); next + kLastStretch < deadline) {
        until = next;
      }
      if (inner_->wait(region, signal, count, until) == WaitResult::reached) {
        return WaitResult::reached;
      }
      if (until == deadline) return WaitResult::timed_out;
      look_for_signals();
    }
  }

  std::uint64_t signal_value(Region& region, int signal) override {
    return inner_->signal_value(region, signal);
  }

  bool progress() override { return inner_->progress(); }

  WaitResult barrier(Deadline deadline) override {
    WaitResult result = WaitResult::timed_out;
    together([&] { result = inner_->barrier(deadline); });
    return result;
  }

  void abort(std::string_view reason) noexcept override { inner_->abort(reason); }

  void mask(Rank peer) override { inner_->mask(peer); }

  std::span<std::byte> peer_window(Region& region, Rank peer) override {
    return inner_->peer_window(region, peer);
  }

 private:
  void together(const std::function<void()>& call) {
    run_interruptibly(call, [&] { inner_->abort(kInterrupted); });
  }

  std::unique_ptr<Transport> inner_;
};

class InterruptibleStore final : public Store {
 public:
  explicit InterruptibleStore(Store& inner) : inner_(inner) {}

  void set(const std::string& key, std::span<const std::byte> value) override {
    inner_.set(key, value);
  }

  std::optional<Value> wait(const std::string& key, Deadline deadline) override {
    for (;;) {
      const Deadline until = std::min(deadline, deadline_in(kLookEvery));
      std::optional<Value> value = inner_.wait(key, until);
      if (value || until == deadline) return value;
      look_for_signals();
    }
  }

  std::int64_t add(const std::string& key, std::int64_t amount) override {
    return inner_.add(key, amount);
  }

  void remove(const std::string& key) override { inner_.remove(key); }

 private:
  Store& inner_;
};

}  // namespace

void find_main_thread() {
  const nb::object thread = nb::module_::import_("threading").attr("main_thread")();
  main_thread = nb::cast<pthread_t>(thread.attr("ident"));
}

void look_for_signals() {
  if (!on_main_thread()) return;
  const nb::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

void run_interruptibly(const std::function<void()>& call, const std::function<void()>& give_up) {
  if (!on_main_thread()) {
    call();
    return;
  }
  std::packaged_task<void()> task(call);
  std::future<void> done = task.get_future();
  std::jthread runs(std::move(task));
  while (done.wait_for(kLookEvery) != std::future_status::ready) {
    try {
      look_for_signals();
    } catch (...) {
      give_up();
      done.wait();
      throw;
    }
  }
  done.get();
}

std::unique_ptr<Transport> interruptible(std::unique_ptr<Transport> transport) {
  return std::make_unique<InterruptibleTransport>(std::move(transport));
}

std::unique_ptr<Store> interruptible(Store& store) {
  return std::make_unique<InterruptibleStore>(store);
}

}  // namespace ferry::python
