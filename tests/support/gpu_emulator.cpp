#include "support/gpu_emulator.h"

#include <cxxabi.h>
#include <fmt/core.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <map>
#include <new>
#include <vector>

#include "support/gpu/launch.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace ferry::testing {

using gpu::Access;
using gpu::Actor;
using gpu::Clocks;
using gpu::ClocksPtr;
using gpu::HasTurn;
using gpu::WarpStep;

namespace {

/// By doubles, since the host may flush floats that are denormal.
double value_of_bf16(std::uint32_t bits) {
  const auto exponent = static_cast<int>(bits >> 7 & 0xffU);
  const auto mantissa = static_cast<int>(bits & 0x7fU);
  double magnitude =
      std::ldexp(exponent == 0 ? mantissa : mantissa + 128, std::max(exponent, 1) - 134);
  if (exponent == 255) magnitude = mantissa == 0 ? HUGE_VAL : std::nan("");
  return (bits & 0x8000U) != 0 ? -magnitude : magnitude;
}

std::uint16_t bf16_product(std::uint32_t a, std::uint32_t b) {
  const double exact = value_of_bf16(a) * value_of_bf16(b);
  if (std::isnan(exact)) return 0x7fff;
  const auto sign = static_cast<std::uint16_t>((a ^ b) & 0x8000U);
  if (exact == 0) return sign;
  int exponent = 0;
  std::frexp(exact, &exponent);
  const int unit = std::max(exponent - 8, -133);
  // Bits of numbers that follow each other count on, from denormals over all exponents.
  const double bits = std::nearbyint(std::ldexp(std::fabs(exact), -unit)) + 128.0 * (unit + 133);
  return static_cast<std::uint16_t>(sign |
                                    static_cast<std::uint16_t>(std::min(bits, double{0x7f80})));
}

}  // namespace

// --- EmulatedThread
// --------------------------------------------------------------------------------

EmulatedThread::EmulatedThread(gpu::Thread& self)
    : self_(self),
      block_(static_cast<int>(self.block->number)),
      blocks_(self.launch->grid().blocks),
      thread_(static_cast<int>(self.actor.thread)),
      threads_(self.launch->grid().threads),
      shared_(std::bit_cast<std::byte*>(self.block->shared->begin)) {}

void EmulatedThread::before_load(const void* p, std::size_t bytes, Site site) const {
  self_.launch->access(self_, p, bytes, Access::read, site);
}

void EmulatedThread::before_store(const void* p, std::size_t bytes, Site site) const {
  self_.launch->access(self_, p, bytes, Access::write, site);
}

void EmulatedThread::sync(Site site) const { self_.launch->sync(self_, site); }

void EmulatedThread::sync_warp(Site site) const {
  self_.launch->warp_step(self_, WarpStep::sync, 0, 0, 0, site);
}

std::uint64_t EmulatedThread::shuffle_bits(std::uint64_t v,
                                           std::size_t bytes,
                                           int lane,
                                           Site site) const {
  return self_.launch->warp_step(self_, WarpStep::shuffle, bytes, v, lane, site);
}

std::uint64_t EmulatedThread::shuffle_xor_bits(std::uint64_t v,
                                               std::size_t bytes,
                                               int mask,
                                               Site site) const {
  return self_.launch->warp_step(self_, WarpStep::shuffle_xor, bytes, v, lane() ^ mask, site);
}

std::uint64_t EmulatedThread::shuffle_up_bits(std::uint64_t v,
                                              std::size_t bytes,
                                              int lanes,
                                              Site site) const {
  const int from = lanes <= lane() ? lane() - lanes : lane();
  return self_.launch->warp_step(self_, WarpStep::shuffle_up, bytes, v, from, site);
}

std::uint32_t EmulatedThread::ballot(bool b, Site site) const {
  return static_cast<std::uint32_t>(
      self_.launch->warp_step(self_, WarpStep::ballot, 0, b ? 1 : 0, 0, site));
}

void EmulatedThread::copy_async(std::byte* to, const std::byte* from, bool there, Site site) {
  self_.launch->start_copy(self_, to, site);
  self_.copies.push_back({.to = to, .from = there ? from : nullptr});
}

void EmulatedThread::commit_copies() {
  std::size_t in_groups = 0;
  for (const std::size_t copies : self_.copy_groups) in_groups += copies;
  self_.copy_groups.push_back(self_.copies.size() - in_groups);
}

void EmulatedThread::finish_copies(std::size_t groups_left, Site site) {
  using Line = std::array<std::byte, 16>;
  std::vector<gpu::AsyncCopy>& copies = self_.copies;
  std::vector<std::size_t>& groups = self_.copy_groups;
  while (groups.size() > groups_left) {
    const auto done = static_cast<std::ptrdiff_t>(groups.front());
    for (std::ptrdiff_t i = 0; i < done; ++i) {
      const gpu::AsyncCopy& copy = copies[static_cast<std::size_t>(i)];
      const Line line =
          copy.from != nullptr ? load(reinterpret_cast<const Line*>(copy.from), site) : Line{};
      store(reinterpret_cast<Line*>(copy.to), line, site);
    }
    copies.erase(copies.begin(), copies.begin() + done);
    groups.erase(groups.begin());
  }
}

void EmulatedThread::multiply(
    float (&sums)[4], const MatrixWords& a, std::uint32_t b0, std::uint32_t b1, Site site) const {
  const auto pair = [](std::uint32_t low, std::uint32_t high) {
    return std::uint64_t{high} << 32 | low;
  };
  const auto value = [](std::uint64_t four, int i) {  // of four bf16, in halves of each word
    return std::bit_cast<float>(static_cast<std::uint32_t>(four >> 16 * i) << 16);
  };
  // Of the rows of a that this lane sums, and the columns of b: 16 numbers each, as four lanes hold
  // them: two of the first eight and two of the others.
  std::uint64_t upper[4], lower[4], columns[2][4];
  for (int q = 0; q < 4; ++q) {
    const int of_row = lane() / 4 * 4 + q;
    upper[q] = shuffle(pair(a.word[0], a.word[2]), of_row, site);
    lower[q] = shuffle(pair(a.word[1], a.word[3]), of_row, site);
    for (int c = 0; c < 2; ++c)
      columns[c][q] = shuffle(pair(b0, b1), (lane() % 4 * 2 + c) * 4 + q, site);
  }
  for (int k = 0; k < 16; ++k) {
    const int q = k % 8 / 2;
    const int i = k % 2 + k / 8 * 2;
    for (int c = 0; c < 2; ++c) {
      sums[c] = std::fma(value(upper[q], i), value(columns[c][q], i), sums[c]);
      sums[2 + c] = std::fma(value(lower[q], i), value(columns[c][q], i), sums[2 + c]);
    }
  }
}

std::uint32_t EmulatedThread::multiply_pairs(std::uint32_t a, std::uint32_t b) const {
  return std::uint32_t{bf16_product(a >> 16, b >> 16)} << 16 |
         bf16_product(a & 0xffffU, b & 0xffffU);
}

std::uint32_t EmulatedThread::pick_bytes(std::uint32_t v, std::uint32_t picks) const {
  std::uint32_t picked = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const std::uint32_t pick = picks >> 4 * i & 15U;
    std::uint32_t byte = v >> 8 * (pick & 3U) & 0xffU;
    if (pick >= 8) byte = (byte & 0x80U) != 0 ? 0xffU : 0;
    picked |= byte << 8 * i;
  }
  return picked;
}

template <class V>
V EmulatedThread::add_word(V* p, V v, Site site) const {
  self_.launch->access(self_, p, sizeof(V), Access::device_add, site);
  // As strong as with a fence around it: for host threads that touch what kernels do.
  const V before = __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL);
  self_.launch->add_relaxed(self_, p);
  return before;
}

template <class V>
V EmulatedThread::acquire_word(const V* p, Site site) const {
  self_.launch->access(self_, p, sizeof(V), Access::system_read, site);
  const V v = __atomic_load_n(p, __ATOMIC_ACQUIRE);
  self_.launch->acquire(self_, p);
  return v;
}

template <class V>
void EmulatedThread::release_word(V* p, V v, Site site) const {
  self_.launch->access(self_, p, sizeof(V), Access::system_write, site);
  self_.launch->release(self_, p, false);
  __atomic_store_n(p, v, __ATOMIC_RELEASE);
}

template <class V>
void EmulatedThread::add_release_word(V* p, V v, Site site) const {
  self_.launch->access(self_, p, sizeof(V), Access::system_write, site);
  self_.launch->release(self_, p, true);
  __atomic_fetch_add(p, v, __ATOMIC_RELEASE);
}

std::uint32_t EmulatedThread::add(std::uint32_t* p, std::uint32_t v, Site site) const {
  return add_word(p, v, site);
}

std::uint64_t EmulatedThread::add(std::uint64_t* p, std::uint64_t v, Site site) const {
  return add_word(p, v, site);
}

std::uint32_t EmulatedThread::add_acquire_release(std::uint32_t* p,
                                                  std::uint32_t v,
                                                  Site site) const {
  self_.launch->access(self_, p, sizeof v, Access::device_add, site);
  self_.launch->acquire(self_, p);
  self_.launch->release(self_, p, true);
  return __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL);
}

std::uint32_t EmulatedThread::load_acquire(const std::uint32_t* p, Site site) const {
  return acquire_word(p, site);
}

std::uint64_t EmulatedThread::load_acquire(const std::uint64_t* p, Site site) const {
  return acquire_word(p, site);
}

void EmulatedThread::store_release(std::uint32_t* p, std::uint32_t v, Site site) const {
  release_word(p, v, site);
}

void EmulatedThread::store_release(std::uint64_t* p, std::uint64_t v, Site site) const {
  release_word(p, v, site);
}

void EmulatedThread::add_release(std::uint32_t* p, std::uint32_t v, Site site) const {
  add_release_word(p, v, site);
}

void EmulatedThread::add_release(std::uint64_t* p, std::uint64_t v, Site site) const {
  add_release_word(p, v, site);
}

void EmulatedThread::fence(Site) const { self_.launch->fence(self_); }

void EmulatedThread::pause(Site) const { self_.launch->pause(self_); }

std::uint64_t EmulatedThread::nanoseconds() const {
  return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch() /
                                    std::chrono::nanoseconds(1));
}

// --- GpuEmulator
// -----------------------------------------------------------------------------------

namespace {

constexpr std::size_t kZone = 256;                   // around an allocation; its alignment too
constexpr std::size_t kMostSharedBytes = 227 << 10;  // of a block; what sm_90 has

std::string name_of(const std::type_info& type) {
  int status = 0;
  char* const name = abi::__cxa_demangle(type.name(), nullptr, nullptr, &status);
  std::string text = status == 0 ? name : type.name();
  std::free(name);
  return text;
}

std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

// Unlike its id, no later thread gets it again.
std::uint64_t number_of_this_thread() {
  static std::atomic<std::uint64_t> threads = 0;
  thread_local const std::uint64_t number = threads++;
  return number;
}

void check_grid(const GpuGrid& grid) {
  if (grid.blocks < 1 || grid.threads < 1 || grid.threads > 1024 ||
      grid.threads % kWarpThreads != 0 || grid.shared_bytes > kMostSharedBytes) {
    throw std::invalid_argument(
        fmt::format("no such grid: {} blocks of {} threads with {} bytes of shared memory",
                    grid.blocks,
                    grid.threads,
                    grid.shared_bytes));
  }
}

}  // namespace

// All below is for who has the turn.
struct GpuEmulator::Impl {
  struct Host {
    std::uint32_t begun = 0, ended = 0;  // launches
    ClocksPtr known;
  };

  struct Allocation {
    std::uint64_t number = 0;
    std::byte* zone = nullptr;
    std::size_t zone_bytes = 0;  // of zones and all
    std::size_t bytes = 0;
    int file = -1;   // where every host thread is a process: what the memory is made of
    int opened = 0;  // times, and not closed
    std::string name = {};
  };

  struct Opened {
    void* original = nullptr;
    std::byte* zone = nullptr;
    std::size_t zone_bytes = 0;
  };

  static std::byte* map(std::size_t bytes, int file) {
    void* const zone = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (zone == MAP_FAILED) throw std::bad_alloc();
    return static_cast<std::byte*>(zone);
  }

  explicit Impl(GpuEmulatorOptions wanted)
      : options(wanted), device{.options = options, .memory = {}, .turn = gpu::Turn(wanted.seed)} {}

  void know_all_that_ended(Clocks& clocks) const {
    for (std::uint32_t host = 0; host < hosts.size(); ++host) {
      clocks.know_whole(host, hosts[host].ended);
    }
  }

  std::uint32_t this_host() {
    const auto [entry, is_new] =
        host_threads.try_emplace(number_of_this_thread(), static_cast<std::uint32_t>(hosts.size()));
    if (is_new) {
      Clocks known;
      know_all_that_ended(known);
      hosts.push_back({.known = std::make_shared<const Clocks>(std::move(known))});
    }
    return entry->second;
  }

  // The next launch of this host thread, before it runs.
  Actor begin(const std::string& kernel) {
    const std::uint32_t index = this_host();
    Host& host = hosts[index];
    ++host.begun;
    device.memory.name_launch(index, host.begun, kernel);
    if (options.launches_in_order) {
      auto known = std::make_shared<Clocks>(*host.known);
      know_all_that_ended(*known);
      host.known = std::move(known);
    }
    return {.host = index, .number = host.begun, .known = host.known};
  }

  void end(const Actor& actor, const ClocksPtr& known) {
    Host& host = hosts[actor.host];
    auto all = std::make_shared<Clocks>(*known);
    all->know_whole(actor.host, actor.number);
    host.known = std::move(all);
    host.ended = actor.number;
  }

  void host_access(const void* p, std::size_t bytes, bool write, Site site) {
    if (bytes == 0 || !options.watch) return;
    const Actor actor = begin("");
    device.memory.host_access(actor, p, bytes, write, site);
    end(actor, actor.known);
  }

  void copy(void* to, const void* from, std::size_t bytes, Site site) {
    if (device.memory.touches(from, bytes)) host_access(from, bytes, false, site);
    if (device.memory.touches(to, bytes)) host_access(to, bytes, true, site);
    std::memcpy(to, from, bytes);
  }

  const GpuEmulatorOptions options;
  gpu::Device device;
  std::map<std::uint64_t, std::uint32_t> host_threads;
  std::vector<Host> hosts;
  std::map<const void*, Allocation> allocations;
  std::map<void*, Opened> opened;
  std::uint64_t num_allocations = 0;
};

GpuEmulator::GpuEmulator(GpuEmulatorOptions options) : impl_(std::make_unique<Impl>(options)) {}

GpuEmulator::~GpuEmulator() {
  while (!impl_->allocations.empty()) free(const_cast<void*>(impl_->allocations.begin()->first));
}

void* GpuEmulator::allocate(std::size_t bytes, std::string name) {
  if (bytes == 0) return nullptr;
  const HasTurn turn(impl_->device.turn);
  const std::size_t whole = (bytes + kZone - 1) / kZone * kZone + 2 * kZone;
  const bool own = impl_->options.processes;
  Impl::Allocation made{.number = ++impl_->num_allocations, .zone_bytes = whole, .bytes = bytes};
  if (own) {
    made.file = memfd_create("an allocation", MFD_CLOEXEC);
    if (made.file < 0 || ftruncate(made.file, static_cast<off_t>(whole)) != 0)
      throw std::bad_alloc();
    made.zone = Impl::map(whole, made.file);
  } else {
    made.zone = static_cast<std::byte*>(std::aligned_alloc(kZone, whole));
    if (made.zone == nullptr) throw std::bad_alloc();
  }
  std::byte* const zone = made.zone;
  std::memset(zone, 0xa5, whole);
  std::byte* const memory = zone + kZone;
  made.name = name.empty() ? fmt::format("allocation {}", made.number) : std::move(name);
  impl_->device.memory.add(memory, bytes, made.name, own ? impl_->this_host() : gpu::kAnyProcess);
  impl_->allocations[memory] = std::move(made);
#ifdef __SANITIZE_ADDRESS__
  __asan_poison_memory_region(zone, kZone);
  __asan_poison_memory_region(memory + bytes, whole - kZone - bytes);
#endif
  return memory;
}

void GpuEmulator::free(void* memory) {
  if (memory == nullptr) return;
  const HasTurn turn(impl_->device.turn);
  const auto found = impl_->allocations.find(memory);
  if (found == impl_->allocations.end()) {
    throw std::invalid_argument("this memory was not allocated here");
  }
  Impl::Allocation& gone = found->second;
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(gone.zone, gone.zone_bytes);
#endif
  if (gone.opened > 0 && impl_->device.fault.empty()) {
    impl_->device.fault = fmt::format(
        "{} ({} bytes) was freed while another process had it open", gone.name, gone.bytes);
  }
  impl_->device.memory.remove(memory);
  if (gone.file >= 0) {
    munmap(gone.zone, gone.zone_bytes);
    ::close(gone.file);
  } else {
    std::free(gone.zone);
  }
  impl_->allocations.erase(found);
}

std::uint64_t GpuEmulator::share(const void* memory) {
  const HasTurn turn(impl_->device.turn);
  const auto found = impl_->allocations.find(memory);
  if (found == impl_->allocations.end())
    throw std::invalid_argument("this memory was not allocated here");
  return found->second.number;
}

void* GpuEmulator::open(std::uint64_t shared) {
  const HasTurn turn(impl_->device.turn);
  const auto found = std::find_if(impl_->allocations.begin(),
                                  impl_->allocations.end(),
                                  [&](const auto& each) { return each.second.number == shared; });
  if (found == impl_->allocations.end())
    throw std::invalid_argument("this memory was not shared here, or is gone");
  auto* const original = const_cast<void*>(found->first);
  Impl::Allocation& of = found->second;
  if (of.file < 0) return original;
  std::byte* const zone = Impl::map(of.zone_bytes, of.file);
  std::byte* const memory = zone + kZone;
  const std::uint32_t host = impl_->this_host();
  impl_->device.memory.add_opened(memory,
                                  of.bytes,
                                  fmt::format("{}, as host thread {} has it open,", of.name, host),
                                  host,
                                  original);
  ++of.opened;
  impl_->opened[memory] = {.original = original, .zone = zone, .zone_bytes = of.zone_bytes};
  return memory;
}

void GpuEmulator::close(void* opened) {
  const HasTurn turn(impl_->device.turn);
  const auto found = impl_->opened.find(opened);
  if (found == impl_->opened.end()) return;  // of the same process
  const auto original = impl_->allocations.find(found->second.original);
  if (original != impl_->allocations.end()) --original->second.opened;
  impl_->device.memory.remove(opened);
  munmap(found->second.zone, found->second.zone_bytes);
  impl_->opened.erase(found);
}

std::string GpuEmulator::fault() const {
  const HasTurn turn(impl_->device.turn);
  return impl_->device.fault;
}

void GpuEmulator::watch(const void* memory, std::size_t bytes, std::string name) {
  const HasTurn turn(impl_->device.turn);
  impl_->device.memory.add(memory, bytes, std::move(name));
}

void GpuEmulator::unwatch(const void* memory) {
  const HasTurn turn(impl_->device.turn);
  impl_->device.memory.remove(memory);
}

void GpuEmulator::run(const void* kernel,
                      void (*call)(const void*, EmulatedThread&),
                      const std::type_info& type,
                      const GpuGrid& grid) {
  check_grid(grid);
  const HasTurn turn(impl_->device.turn);
  std::string& first_fault = impl_->device.fault;
  if (!first_fault.empty()) {
    throw GpuFault("nothing runs after a fault: " + first_fault);
  }
  const Actor actor = impl_->begin(name_of(type));
  const std::uint64_t seed =
      mix(impl_->options.seed + mix((std::uint64_t{actor.host} << 32) + actor.number));
  try {
    gpu::Launch launch(impl_->device, {.kernel = kernel, .call = call}, grid, actor, seed);
    impl_->end(actor, launch.run());
  } catch (const GpuFault& fault) {
    if (first_fault.empty()) first_fault = fault.what();
    throw;
  }
}

void GpuEmulator::host_reads(const void* p, std::size_t bytes, Site site) {
  const HasTurn turn(impl_->device.turn);
  impl_->host_access(p, bytes, false, site);
}

void GpuEmulator::host_writes(const void* p, std::size_t bytes, Site site) {
  const HasTurn turn(impl_->device.turn);
  impl_->host_access(p, bytes, true, site);
}

void GpuEmulator::copy(void* to, const void* from, std::size_t bytes, Site site) {
  if (bytes == 0) return;
  const HasTurn turn(impl_->device.turn);
  impl_->copy(to, from, bytes, site);
}

void GpuEmulator::host_released(const void* p) {
  const HasTurn turn(impl_->device.turn);
  ClocksPtr known = impl_->hosts[impl_->this_host()].known;
  gpu::ClockJoiner().join(known, impl_->device.memory.released(p));
  impl_->device.memory.release(p, std::move(known));
}

void GpuEmulator::host_acquired(const void* p) {
  const HasTurn turn(impl_->device.turn);
  const std::uint32_t host = impl_->this_host();
  gpu::ClockJoiner().join(impl_->hosts[host].known, impl_->device.memory.released(p));
}

void GpuEmulator::synchronize() {
  const HasTurn turn(impl_->device.turn);
  const std::uint32_t host = impl_->this_host();
  auto known = std::make_shared<Clocks>(*impl_->hosts[host].known);
  impl_->know_all_that_ended(*known);
  impl_->hosts[host].known = std::move(known);
}

}  // namespace ferry::testing
