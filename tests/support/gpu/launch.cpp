#include "support/gpu/launch.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>
#include <thread>
#include <tuple>

#include "support/gpu_emulator.h"

namespace ferry::testing::gpu {

namespace {

constexpr int kAtomicWeight = 8;  // atomics are switched at as often as so many plain accesses

const char* name_of(WarpStep step) {
  switch (step) {
    case WarpStep::sync:
      return "sync_warp()";
    case WarpStep::shuffle:
      return "shuffle()";
    case WarpStep::shuffle_xor:
      return "shuffle_xor()";
    case WarpStep::shuffle_up:
      return "shuffle_up()";
    case WarpStep::ballot:
      return "ballot()";
  }
  return "";
}

Warp& warp_of(Thread& thread) { return thread.block->warps[thread.actor.thread / kWarpThreads]; }

void run_kernel(void* argument) {
  auto& thread = *static_cast<Thread*>(argument);
  EmulatedThread handle(thread);
  thread.launch->call(handle);
}

}  // namespace

Launch::Launch(Device& device, KernelCall call, const GpuGrid& grid, Actor host, std::uint64_t seed)
    : device_(device),
      call_(call),
      grid_(grid),
      host_(std::move(host)),
      random_(static_cast<std::uint32_t>(seed ^ (seed >> 32))),
      deadline_(std::chrono::steady_clock::now() + device.options.timeout) {
  candidates_ = 1 << random_() % 3;
  switch_every_ = 4 << random_() % 7;
  pass_every_ = 1U << random_() % 6;
  for (int block = grid.blocks; block-- > 0;) order_.push_back(static_cast<std::uint32_t>(block));
  if (random_() % 4 != 0) std::shuffle(order_.begin(), order_.end(), random_);
}

Launch::~Launch() {
  for (auto* const blocks : {&blocks_, &idle_blocks_}) {
    for (auto& block : *blocks) {
      for (Thread& thread : block->threads) {
        if (thread.fibre != nullptr) give_back(std::move(thread.fibre));
      }
      device_.memory.drop(*block->shared);
    }
  }
}

void Launch::call(EmulatedThread& handle) const { call_.call(call_.kernel, handle); }

ClocksPtr Launch::run() {
  known_at_end_ = host_.known;
  while (!order_.empty() && static_cast<int>(blocks_.size()) < device_.options.resident_blocks) {
    start_block();
  }
  while (!blocks_.empty()) {
    if (ready_.empty() && pausing_.empty()) stuck("every thread waits for another");
    run_thread(draw());
    ++turns_;
    ++quiet_turns_;
    if (turns_ % 64 == 0 || quiet_turns_ > 2 * (ready_.size() + pausing_.size())) {
      look_after_others();
    }
  }
  return known_at_end_;
}

void Launch::start_block() {
  std::unique_ptr<Block> block;
  if (idle_blocks_.empty()) {
    block = std::make_unique<Block>();
    block->shared = device_.memory.make_shared(grid_.shared_bytes);
    block->threads.resize(static_cast<unsigned>(grid_.threads));
  } else {
    block = std::move(idle_blocks_.back());
    idle_blocks_.pop_back();
  }
  block->number = order_.back();
  order_.pop_back();
  block->live = grid_.threads;
  block->warps.assign(static_cast<unsigned>(grid_.threads / kWarpThreads), Warp());
  device_.memory.clear(*block->shared);
  const auto priority = static_cast<std::uint32_t>(random_());
  for (std::uint32_t i = 0; i < block->threads.size(); ++i) {
    if (i % kWarpThreads == 0)
      block->warps[i / kWarpThreads].priority = priority / 2 + random_() / 2;
    Thread& thread = block->threads[i];
    thread = {.launch = this, .block = block.get(), .actor = host_};
    thread.actor.block = block->number;
    thread.actor.thread = i;
    thread.actor.look_up();
    ready_.push_back(&thread);
  }
  blocks_.push_back(std::move(block));
  quiet_turns_ = 0;
}

void Launch::end_block(Block& block) {
  const auto found = std::find_if(
      blocks_.begin(), blocks_.end(), [&](const auto& other) { return other.get() == &block; });
  idle_blocks_.push_back(std::move(*found));
  blocks_.erase(found);
  if (!order_.empty()) start_block();
}

// Those who pause have less of the time, but never none of it: somebody may wait for them.
Thread& Launch::draw() {
  const bool pausing = ready_.empty() || (!pausing_.empty() && random_() % 8 == 0);
  return take(pausing ? pausing_ : ready_);
}

Thread& Launch::take(std::vector<Thread*>& from) {
  std::size_t best = random_() % from.size();
  for (int i = 1; i < candidates_; ++i) {
    const std::size_t other = random_() % from.size();
    if (warp_of(*from[other]).priority < warp_of(*from[best]).priority) best = other;
  }
  std::swap(from[best], from.back());
  Thread& thread = *from.back();
  from.pop_back();
  return thread;
}

void Launch::run_thread(Thread& thread) {
  if (thread.fibre == nullptr) {
    thread.fibre = take_fibre();
    thread.fibre->start(&run_kernel, &thread);
  }
  thread.state = Thread::State::ready;
  const bool goes_on = thread.fibre->resume();
  if (!fault_.empty()) throw GpuFault(fault_);
  if (!goes_on) thread_returned(thread);
}

void Launch::thread_returned(Thread& thread) {
  Block& block = *thread.block;
  Warp& warp = warp_of(thread);
  quiet_turns_ = 0;
  thread.state = Thread::State::returned;
  give_back(std::move(thread.fibre));
  joiner_.join(known_at_end_, thread.actor.known);
  --block.live;
  --warp.live;
  if (warp.waiting > 0) {
    if (warp.step != WarpStep::sync) {
      throw GpuFault(fmt::format("{} returned, and lanes of its warp wait for it in {} ({})",
                                 device_.memory.who(thread.actor),
                                 name_of(warp.step),
                                 describe(warp.site)));
    }
    if (warp.waiting == warp.live) complete_warp_step(thread);
  }
  if (block.live == 0) {
    end_block(block);
  } else if (block.in_sync == block.live) {
    complete_sync(block);
  }
}

void Launch::ready(Thread& thread) {
  thread.state = Thread::State::ready;
  ready_.push_back(&thread);
}

void Launch::look_after_others() {
  if (!device_.fault.empty()) {
    throw GpuFault("this launch was ended by another one's fault: " + device_.fault);
  }
  if (std::chrono::steady_clock::now() > deadline_) {
    stuck(fmt::format("has not ended after {} ms", device_.options.timeout.count()));
  }
  const bool quiet = quiet_turns_ > 2 * (ready_.size() + pausing_.size());
  if (!quiet && random_() % pass_every_ != 0) return;
  if (!device_.turn.pass() && quiet && ready_.empty()) std::this_thread::yield();
  if (quiet) quiet_turns_ = 0;
}

void Launch::stuck(const std::string& what) const {
  throw GpuFault(fmt::format(
      "kernel {}: {}; {}", device_.memory.kernel_of(host_.host, host_.number), what, waits()));
}

// Threads that wait at the same place are told together; the first few places.
std::string Launch::waits() const {
  using Place = std::tuple<std::uint32_t, Thread::State, const char*, unsigned>;

  struct Waiters {
    int count = 0;
    const Thread* first = nullptr;
  };

  std::map<Place, Waiters> places;
  for (const auto& block : blocks_) {
    for (const Thread& thread : block->threads) {
      if (thread.state == Thread::State::returned || thread.site.line() == 0) continue;
      Waiters& waiters =
          places[{block->number, thread.state, thread.site.file_name(), thread.site.line()}];
      if (waiters.count++ == 0) waiters.first = &thread;
    }
  }
  std::string text;
  if (!order_.empty()) text = fmt::format("{} blocks have not begun", order_.size());
  int left = 8;
  for (const auto& [place, waiters] : places) {
    if (left-- == 0) return text + "; and others";
    const Thread& thread = *waiters.first;
    text += fmt::format("{}block {}, {} of {} threads, the first {}: ",
                        text.empty() ? "" : "; ",
                        thread.block->number,
                        waiters.count,
                        thread.block->threads.size(),
                        thread.actor.thread);
    switch (thread.state) {
      case Thread::State::in_sync:
        text += "in sync()";
        break;
      case Thread::State::in_warp_step:
        text += fmt::format("in {}", name_of(warp_of(const_cast<Thread&>(thread)).step));
        break;
      case Thread::State::pausing:
        text += fmt::format("waiting for {}",
                            device_.memory.where(thread.touched, thread.block->shared.get()));
        break;
      default:
        text += "running";
    }
    text += fmt::format(" ({})", describe(thread.site));
  }
  return text;
}

// --- On the thread's fibre
// -------------------------------------------------------------------------

template <class Work>
void Launch::guard(Thread& thread, const Work& work) {
  try {
    work();
    return;
  } catch (const GpuFault& fault) {
    fault_ = fault.what();
  }
  for (;;) thread.fibre->suspend();  // for ever: run_thread() throws it, and the fibre is forgotten
}

void Launch::maybe_switch(Thread& thread, int weight) {
  until_switch_ -= weight;
  if (until_switch_ > 0) return;
  until_switch_ = static_cast<int>(random_() % (2 * static_cast<unsigned>(switch_every_))) + 1;
  ready(thread);
  thread.fibre->suspend();
}

void Launch::access(Thread& thread, const void* p, std::size_t size, Access kind, Site site) {
  const bool plain = kind == Access::read || kind == Access::write;
  thread.site = site;
  thread.touched = p;
  maybe_switch(thread, plain ? 1 : kAtomicWeight);
  if (kind != Access::read && kind != Access::system_read) quiet_turns_ = 0;
  if (!device_.options.watch) return;
  guard(thread, [&] {
    device_.memory.access(thread.actor, thread.block->shared.get(), p, size, kind, site);
  });
}

void Launch::start_copy(Thread& thread, const void* to, Site site) {
  access(thread, to, 16, Access::write, site);
  if (!device_.options.watch) return;
  guard(thread, [&] { device_.memory.unwrite(*thread.block->shared, to, site); });
}

void Launch::pause(Thread& thread) {
  thread.state = Thread::State::pausing;
  pausing_.push_back(&thread);
  thread.fibre->suspend();
}

void Launch::sync(Thread& thread, Site site) {
  thread.site = site;
  guard(thread, [&] {
    Block& block = *thread.block;
    Warp& warp = warp_of(thread);
    if (warp.waiting > 0) {
      throw GpuFault(
          fmt::format("{} is in sync() ({}), and lanes of its warp wait for it in {} ({})",
                      device_.memory.who(thread.actor),
                      describe(site),
                      name_of(warp.step),
                      describe(warp.site)));
    }
    if (block.in_sync > 0 && !same(block.sync_site, site)) {
      throw GpuFault(
          fmt::format("{} is in sync() ({}), and {} threads of its block are in another ({})",
                      device_.memory.who(thread.actor),
                      describe(site),
                      block.in_sync,
                      describe(block.sync_site)));
    }
    block.sync_site = site;
    thread.state = Thread::State::in_sync;
    ++warp.in_sync;
    if (++block.in_sync == block.live) complete_sync(block);
  });
  thread.fibre->suspend();
}

void Launch::complete_sync(Block& block) {
  quiet_turns_ = 0;
  block.in_sync = 0;
  for (Warp& warp : block.warps) warp.in_sync = 0;
  ClocksPtr known;
  std::uint32_t latest = 0;
  if (device_.options.watch) {
    for (const Thread& thread : block.threads) {
      if (thread.state == Thread::State::returned) continue;
      joiner_.join(known, thread.actor.known);
      latest = std::max(latest, thread.actor.clock);
    }
    auto next = known == nullptr ? std::make_shared<Clocks>() : std::make_shared<Clocks>(*known);
    BlockClocks& own = next->at(host_.host, host_.number, block.number);
    std::vector<ThreadClock> returned;  // of them is known what was known before
    for (const Thread& thread : block.threads) {
      const std::uint32_t clock = own.of(thread.actor.thread);
      if (thread.state == Thread::State::returned && clock != latest) {
        returned.push_back({.thread = thread.actor.thread, .clock = clock});
      }
    }
    own.all = latest;
    own.but = std::move(returned);
    known = std::move(next);
  }
  for (Thread& thread : block.threads) {
    if (thread.state == Thread::State::returned) continue;
    thread.actor.known = known;
    thread.actor.clock = latest + 1;
    thread.actor.look_up();
    ready(thread);
  }
}

std::uint64_t Launch::warp_step(
    Thread& thread, WarpStep step, std::size_t bytes, std::uint64_t value, int source, Site site) {
  thread.site = site;
  guard(thread, [&] {
    Warp& warp = warp_of(thread);
    const auto fault = [&](const std::string& what) {
      throw GpuFault(fmt::format("{} is in {} ({}), {}",
                                 device_.memory.who(thread.actor),
                                 name_of(step),
                                 describe(site),
                                 what));
    };
    if (source < 0 || source >= kWarpThreads) fault(fmt::format("which has no lane {}", source));
    if (warp.in_sync > 0) {
      fault(fmt::format("and {} lanes of its warp are in sync() ({})",
                        warp.in_sync,
                        describe(thread.block->sync_site)));
    }
    if (step != WarpStep::sync && warp.live < kWarpThreads) {
      fault(fmt::format("and {} lanes of its warp have returned", kWarpThreads - warp.live));
    }
    if (warp.waiting > 0 && (warp.step != step || warp.bytes != bytes || !same(warp.site, site))) {
      fault(fmt::format("and {} lanes of its warp are in {} ({})",
                        warp.waiting,
                        name_of(warp.step),
                        describe(warp.site)));
    }
    warp.step = step;
    warp.bytes = bytes;
    warp.site = site;
    thread.given = value;
    thread.source = source;
    thread.state = Thread::State::in_warp_step;
    if (++warp.waiting == warp.live) complete_warp_step(thread);
  });
  thread.fibre->suspend();
  return thread.got;
}

void Launch::complete_warp_step(Thread& last) {
  quiet_turns_ = 0;
  Warp& warp = warp_of(last);
  warp.waiting = 0;
  const std::size_t first = last.actor.thread / kWarpThreads * kWarpThreads;
  const std::span<Thread> lanes(&last.block->threads[first], kWarpThreads);
  if (warp.step == WarpStep::sync) {
    join_lanes(lanes);
  } else if (warp.step == WarpStep::ballot) {
    std::uint64_t bits = 0;
    for (int lane = 0; lane < kWarpThreads; ++lane) {
      bits |= lanes[static_cast<unsigned>(lane)].given << lane;
    }
    for (Thread& lane : lanes) lane.got = bits;
  } else {
    for (Thread& lane : lanes) lane.got = lanes[static_cast<unsigned>(lane.source)].given;
  }
  for (Thread& lane : lanes) {
    if (lane.state != Thread::State::returned) ready(lane);
  }
}

void Launch::join_lanes(std::span<Thread> lanes) {
  if (!device_.options.watch) return;
  ClocksPtr known;
  for (const Thread& lane : lanes) {
    if (lane.state != Thread::State::returned) joiner_.join(known, lane.actor.known);
  }
  const auto next =
      known == nullptr ? std::make_shared<Clocks>() : std::make_shared<Clocks>(*known);
  BlockClocks& own = next->at(host_.host, host_.number, lanes[0].block->number);
  for (Thread& lane : lanes) {
    if (lane.state == Thread::State::returned) continue;
    own.set(lane.actor.thread, lane.actor.clock++);
  }
  for (Thread& lane : lanes) {
    if (lane.state == Thread::State::returned) continue;
    lane.actor.known = next;
    lane.actor.look_up();
  }
}

// What the thread gives away; what it does from here on is not in it.
ClocksPtr Launch::publish(Thread& thread) {
  Actor& actor = thread.actor;
  auto given =
      actor.known == nullptr ? std::make_shared<Clocks>() : std::make_shared<Clocks>(*actor.known);
  given->at(actor.host, actor.number, actor.block).set(actor.thread, actor.clock);
  ++actor.clock;
  return given;
}

void Launch::learn(Thread& thread, const ClocksPtr& known) {
  if (known == nullptr) return;
  joiner_.join(thread.actor.known, known);
  thread.actor.look_up();
}

void Launch::acquire(Thread& thread, const void* p) {
  if (device_.options.watch) learn(thread, device_.memory.released(p));
}

void Launch::release(Thread& thread, const void* p, bool keep) {
  if (!device_.options.watch) return;
  ClocksPtr given = publish(thread);
  if (keep) joiner_.join(given, device_.memory.released(p));
  device_.memory.release(p, std::move(given));
}

void Launch::add_relaxed(Thread& thread, const void* p) {
  if (!device_.options.watch) return;
  ClocksPtr there = device_.memory.released(p);
  joiner_.join(thread.relaxed, there);
  if (thread.fenced == nullptr) return;
  joiner_.join(there, thread.fenced);
  device_.memory.release(p, std::move(there));
}

void Launch::fence(Thread& thread) {
  if (!device_.options.watch) return;
  learn(thread, thread.relaxed);
  thread.relaxed = nullptr;
  thread.fenced = publish(thread);
}

}  // namespace ferry::testing::gpu
