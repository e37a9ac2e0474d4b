#include "support/queued_plane.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <new>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/core/threads.h"

namespace ferry {

/// One piece of memory at two addresses.
class QueuedPlane::Memory final : public PlaneMemory {
 public:
  static std::unique_ptr<Memory> make(QueuedPlane& plane, std::size_t bytes) {
    if (bytes == 0) return std::unique_ptr<Memory>(new Memory(plane, 0, nullptr, nullptr));
    const int file = memfd_create("queued_plane", 0);
    if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) != 0) throw std::bad_alloc();
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    void* seen = mmap(nullptr, bytes, PROT_NONE, MAP_SHARED, file, 0);
    close(file);
    if (data == MAP_FAILED || seen == MAP_FAILED) throw std::bad_alloc();
    return std::unique_ptr<Memory>(
        new Memory(plane, bytes, static_cast<std::byte*>(data), static_cast<std::byte*>(seen)));
  }

  ~Memory() override {
    std::erase(plane_.memories_, this);
    if (bytes_ == 0) return;
    munmap(data(), bytes_);
    munmap(seen(), bytes_);
  }

  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void open(bool readable) const {
    if (bytes_ > 0) mprotect(seen(), bytes_, readable ? PROT_READ | PROT_WRITE : PROT_NONE);
  }

  bool has(const void* address) const {
    return bytes_ > 0 && address >= seen() && address < seen() + bytes_;
  }

 private:
  Memory(QueuedPlane& plane, std::size_t bytes, std::byte* data, std::byte* seen)
      : PlaneMemory(data, seen), plane_(plane), bytes_(bytes) {
    plane_.memories_.push_back(this);
  }

  QueuedPlane& plane_;
  std::size_t bytes_;
};

QueuedPlane::QueuedPlane(ThreadPool& pool, Start start)
    : cpu_(pool), start_(start), running_(start == Start::at_once), thread_([this] { loop(); }) {}

QueuedPlane::~QueuedPlane() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void QueuedPlane::check(const MemoryPlace& place, std::string_view what) const {
  FERRY_CHECK(place == this->place(), "{}: the rows are not on this queue", what);
}

/// Batches come from steps, and those run on the queue's thread.
void QueuedPlane::on_queue() const {
  FERRY_CHECK(std::this_thread::get_id() == thread_.get_id(), "work outside the queue");
}

void QueuedPlane::loop() {
  const FlushDenormals flush;
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stop_ || (running_ && !steps_.empty()); });
    if (stop_) return;
    const std::function<void()> step = std::move(steps_.front());
    steps_.pop_front();
    busy_ = true;
    lock.unlock();
    std::exception_ptr failure;
    try {
      step();
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    busy_ = false;
    if (failure) {  // what stands behind it is void
      failure_ = failure;
      steps_.clear();
    }
    changed_.notify_all();
  }
}

void QueuedPlane::enqueue(std::function<void()>&& step) {
  if (synchronised_) {
    for (const Memory* memory : memories_) memory->open(false);
    synchronised_ = false;
  }
  {
    const std::lock_guard lock(mutex_);
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
    steps_.push_back(std::move(step));
  }
  changed_.notify_all();
}

void QueuedPlane::synchronise() {
  {
    std::unique_lock lock(mutex_);
    running_ = true;
    changed_.notify_all();
    changed_.wait(lock, [&] { return steps_.empty() && !busy_; });
    running_ = start_ == Start::at_once;
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }
  for (const Memory* memory : memories_) memory->open(true);
  synchronised_ = true;
}

std::unique_ptr<PlaneMemory> QueuedPlane::allocate(std::size_t bytes, bool) {
  return Memory::make(*this, bytes);
}

template <class T>
T* QueuedPlane::as_queue_sees(T* seen) const {
  const auto memory =
      std::ranges::find_if(memories_, [&](const Memory* m) { return m->has(seen); });
  if (memory == memories_.end()) return seen;  // of a region: the host's own
  const auto offset = reinterpret_cast<const std::byte*>(seen) - (*memory)->seen();
  return reinterpret_cast<T*>((*memory)->data() + offset);
}

void QueuedPlane::run(const ExpertRows& rows, std::function<void(const ExpertRows&)> work) {
  ExpertRows queued = rows;
  queued.counts = {as_queue_sees(rows.counts.data()), rows.counts.size()};
  queued.offsets = {as_queue_sees(rows.offsets.data()), rows.offsets.size()};
  queued.weights = {as_queue_sees(rows.weights.data()), rows.weights.size()};
  queued.in.base = as_queue_sees(rows.in.base);
  queued.in.pointers = as_queue_sees(rows.in.pointers);
  queued.out.base = as_queue_sees(rows.out.base);
  submit([queued, work = std::move(work)] { work(queued); });
}

}  // namespace ferry
