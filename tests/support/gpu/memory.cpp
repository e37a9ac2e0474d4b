#include "support/gpu/memory.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <new>
#include <span>
#include <stdexcept>

#include "support/gpu_emulator.h"

namespace ferry::testing::gpu {

namespace {

constexpr std::size_t kPoolRecords = 8192;

bool writes(Access kind) { return kind != Access::read && kind != Access::system_read; }

// Among whom an access is atomic: nobody, the threads of its device, all.
int scope(Access kind) {
  switch (kind) {
    case Access::read:
    case Access::write:
      return 0;
    case Access::device_add:
      return 1;
    case Access::system_read:
    case Access::system_write:
      return 2;
  }
  return 0;
}

const char* name_of(Access kind) {
  switch (kind) {
    case Access::read:
      return "load";
    case Access::write:
      return "store";
    case Access::device_add:
      return "add";
    case Access::system_read:
      return "acquire";
    case Access::system_write:
      return "release";
  }
  return "";
}

// Whether everything that conflicts with `earlier` conflicts with `later` too.
bool stands_for(Access later, Access earlier) {
  return (writes(later) || !writes(earlier)) && scope(later) <= scope(earlier);
}

bool conflict(const Record& earlier, const Record& later) {
  if (!writes(earlier.kind) && !writes(later.kind)) return false;
  const int both = std::min(scope(earlier.kind), scope(later.kind));
  if (both == 0 || earlier.bytes != later.bytes) return true;
  return both == 1 && earlier.host != later.host;
}

// Whether lanes of one warp do the same at one time, so that one record will do for them.
bool like(const Record& a, const Record& b) {
  return a.number == b.number && a.block == b.block && a.clock == b.clock && a.bytes == b.bytes &&
         a.host == b.host && a.warp == b.warp && a.kind == b.kind &&
         std::bit_cast<std::uintptr_t>(a.site) == std::bit_cast<std::uintptr_t>(b.site);
}

// Whether the earlier access happened before what `actor` does now.
bool happened_before(const Record& earlier, const Actor& actor) {
  const Clocks* const known = actor.known.get();
  std::uint32_t lanes = earlier.lanes;
  const BlockClocks* block = actor.own;
  if (earlier.number == actor.number && earlier.host == actor.host) {
    if (earlier.block == actor.block) {
      if (earlier.warp == actor.thread / 32) lanes &= ~(1U << (actor.thread % 32));
      if (lanes == 0) return true;
    } else {
      block = known == nullptr ? nullptr : known->find(earlier.host, earlier.number, earlier.block);
    }
  } else {
    if (known == nullptr) return false;
    if (known->knows_whole(earlier.host, earlier.number)) return true;
    block = known->find(earlier.host, earlier.number, earlier.block);
  }
  if (block == nullptr) return false;
  if (block->but.empty()) return block->all >= earlier.clock;
  for (; lanes != 0; lanes &= lanes - 1) {
    const std::uint32_t thread =
        earlier.warp * 32U + static_cast<unsigned>(std::countr_zero(lanes));
    if (block->of(thread) < earlier.clock) return false;
  }
  return true;
}

std::string lanes_text(std::uint32_t warp, std::uint32_t lanes) {
  const unsigned first = warp * 32 + static_cast<unsigned>(std::countr_zero(lanes));
  if (std::has_single_bit(lanes)) return fmt::format("thread {}", first);
  const unsigned last = warp * 32 + 31 - static_cast<unsigned>(std::countl_zero(lanes));
  return fmt::format("{} threads of {} to {}", std::popcount(lanes), first, last);
}

}  // namespace

std::string describe(Site site) {
  const char* const slash = std::strrchr(site.file_name(), '/');
  return fmt::format("{}:{}", slash == nullptr ? site.file_name() : slash + 1, site.line());
}

bool same(Site a, Site b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

Memory::~Memory() {
  for (auto& [begin, region] : regions_) std::free(region.lines);
}

void Memory::add(const void* memory, std::size_t bytes, std::string name, std::uint32_t process) {
  const auto begin = reinterpret_cast<std::uintptr_t>(memory);
  if (memory == nullptr || bytes == 0) {
    throw std::invalid_argument(fmt::format("'{}' is no memory to watch: {} bytes", name, bytes));
  }
  if (Region* const known = find(begin, bytes)) {
    ++known->uses;
    return;
  }
  const auto next = regions_.lower_bound(begin);
  if ((next != regions_.end() && next->first < begin + bytes) ||
      (next != regions_.begin() && std::prev(next)->second.holds(begin, 1))) {
    throw std::invalid_argument(
        fmt::format("'{}' is half in memory that is watched already", name));
  }
  Region region = {.begin = begin, .bytes = bytes, .name = std::move(name), .process = process};
  region.lines = static_cast<Line*>(std::calloc(region.num_lines(), sizeof(Line)));
  if (region.lines == nullptr) throw std::bad_alloc();
  regions_.emplace(begin, std::move(region));
}

void Memory::add_opened(const void* memory,
                        std::size_t bytes,
                        std::string name,
                        std::uint32_t process,
                        const void* original) {
  const auto begin = reinterpret_cast<std::uintptr_t>(memory);
  regions_[begin] = {.begin = begin,
                     .bytes = bytes,
                     .name = std::move(name),
                     .process = process,
                     .original = reinterpret_cast<std::uintptr_t>(original)};
}

std::uintptr_t Memory::original_of(std::uintptr_t p) const {
  const auto after = regions_.upper_bound(p);
  if (after == regions_.begin()) return p;
  const Region& region = std::prev(after)->second;
  return region.original != 0 && region.holds(p, 1) ? p - region.begin + region.original : p;
}

void Memory::remove(const void* memory) {
  Region* const region = find(reinterpret_cast<std::uintptr_t>(memory), 1);
  if (region == nullptr) throw std::invalid_argument("this memory is not watched");
  if (--region->uses > 0) return;
  if (region->lines != nullptr) forget(*region);
  std::free(region->lines);
  last_ = nullptr;
  regions_.erase(region->begin);
}

std::unique_ptr<Region> Memory::make_shared(std::size_t bytes) {
  auto region = std::make_unique<Region>();
  void* const memory = std::aligned_alloc(256, (bytes + 256) / 256 * 256);
  if (memory == nullptr) throw std::bad_alloc();
  *region = {.begin = reinterpret_cast<std::uintptr_t>(memory), .bytes = bytes, .shared = true};
  region->lines = static_cast<Line*>(std::calloc(region->num_lines(), sizeof(Line)));
  if (region->lines == nullptr) throw std::bad_alloc();
  return region;
}

void Memory::clear(Region& shared) {
  forget(shared);
  std::memset(std::bit_cast<void*>(shared.begin), 0xa5, shared.bytes);
}

void Memory::drop(Region& shared) {
  forget(shared);
  std::free(shared.lines);
  std::free(std::bit_cast<void*>(shared.begin));
}

// Of all its records, and what was released there.
void Memory::forget(Region& region) {
  const std::size_t lines = region.num_lines();
  for (std::size_t i = 0; i < lines; ++i) {
    Line& line = region.lines[i];
    if (line.capacity != 0) {
      free_[static_cast<unsigned>(std::countr_zero(line.capacity))].push_back(line.records);
    }
    if (line.released != 0) {
      const std::uintptr_t first = (region.begin / 16 + i) * 16;
      for (std::uintptr_t p = first; p < first + 16; ++p) released_.erase(p);
    }
    line = {};
  }
}

Region* Memory::find(std::uintptr_t p, std::size_t size) {
  if (last_ != nullptr && last_->holds(p, size)) return last_;
  auto after = regions_.upper_bound(p);
  if (after == regions_.begin()) return nullptr;
  Region& region = std::prev(after)->second;
  if (!region.holds(p, size)) return nullptr;
  last_ = &region;
  return last_;
}

/// Of memory that was opened, to where its owner has it. Gives what is wrong with it, or null.
const char* Memory::resolve(Region*& region,
                            std::uintptr_t& at,
                            std::size_t size,
                            const Actor& actor) {
  if (region->process != kAnyProcess && region->process != actor.host)
    return "that is another process's address; open its handle";
  if (region->original == 0) return nullptr;
  at = at - region->begin + region->original;
  region = find(at, size);
  return region == nullptr ? "its owner has freed it" : nullptr;
}

void Memory::access(
    const Actor& actor, Region* shared, const void* p, std::size_t size, Access kind, Site site) {
  auto at = reinterpret_cast<std::uintptr_t>(p);
  const bool is_shared = shared != nullptr && shared->holds(at, size);
  Region* region = is_shared ? shared : find(at, size);
  const auto fault = [&](const std::string& what) {
    throw GpuFault(fmt::format("{} ({}): {} of {} bytes at {}: {}",
                               who(actor),
                               describe(site),
                               name_of(kind),
                               size,
                               where(p, shared),
                               what));
  };
  if (region == nullptr) fault("not in memory that kernels may reach");
  if (const char* why = resolve(region, at, size, actor)) fault(why);
  if (at % size != 0) fault("not aligned to its size");
  const auto bytes = static_cast<std::uint16_t>(((1U << size) - 1) << (at % 16));
  if (is_shared) {
    if (scope(kind) == 2) fault("acquire and release are for global memory");
    Line& line = region->line(at);
    if (kind != Access::write && (line.written & bytes) != bytes) {
      fault("nobody has written there yet");
    }
    if (writes(kind)) line.written |= bytes;
  }
  check_races(actor, *region, at, static_cast<unsigned>(size), kind, site);
}

void Memory::unwrite(Region& shared, const void* p, Site site) {
  const auto at = reinterpret_cast<std::uintptr_t>(p);
  if (!shared.holds(at, 16))
    throw GpuFault(fmt::format(
        "copy_async() ({}) to {}: not in shared memory", describe(site), where(p, &shared)));
  shared.line(at).written = 0;
}

void Memory::host_access(
    const Actor& actor, const void* p, std::size_t bytes, bool write, Site site) {
  auto begin = reinterpret_cast<std::uintptr_t>(p);
  Region* region = find(begin, bytes);
  const char* const why =
      region == nullptr ? "not in memory of the device" : resolve(region, begin, bytes, actor);
  const std::uintptr_t end = begin + bytes;
  if (why != nullptr) {
    throw GpuFault(fmt::format("{} ({}): {} of {} bytes at {}: {}",
                               who(actor),
                               describe(site),
                               write ? "store" : "load",
                               bytes,
                               where(p, nullptr),
                               why));
  }
  for (std::uintptr_t at = begin; at < end;) {
    const std::uintptr_t next = std::min(end, (at / 16 + 1) * 16);
    check_races(actor,
                *region,
                at,
                static_cast<unsigned>(next - at),
                write ? Access::write : Access::read,
                site);
    at = next;
  }
}

bool Memory::touches(const void* p, std::size_t bytes) const {
  const auto begin = reinterpret_cast<std::uintptr_t>(p);
  const auto after = regions_.lower_bound(begin + bytes);
  if (after == regions_.begin()) return false;
  const Region& last = std::prev(after)->second;
  return last.begin + last.bytes > begin;
}

void Memory::check_races(
    const Actor& actor, Region& region, std::uintptr_t p, unsigned size, Access kind, Site site) {
  Line& line = region.line(p);
  const Record now = {.number = actor.number,
                      .block = actor.block,
                      .clock = actor.clock,
                      .lanes = 1U << (actor.thread % 32),
                      .bytes = static_cast<std::uint16_t>(((1U << size) - 1) << (p % 16)),
                      .host = static_cast<std::uint16_t>(actor.host),
                      .warp = static_cast<std::uint8_t>(actor.thread / 32),
                      .kind = kind,
                      .site = site};
  const std::span<Record> known(line.records, line.count);
  const auto same = std::find_if(
      known.begin(), known.end(), [&](const Record& earlier) { return like(earlier, now); });
  const bool is_new = same == known.end();
  for (unsigned i = 0; i < line.count;) {
    Record& earlier = line.records[i];
    const bool rivals = conflict(earlier, now);
    const bool replaced = is_new && stands_for(now.kind, earlier.kind);
    if ((earlier.bytes & now.bytes) != 0 && (rivals || replaced)) {
      const bool before = happened_before(earlier, actor);
      if (rivals && !before) race(actor, region, p, now, earlier);
      if (replaced && before) {
        earlier.bytes &= static_cast<std::uint16_t>(~now.bytes);
        if (earlier.bytes == 0) {
          earlier = line.records[--line.count];
          continue;
        }
      }
    }
    ++i;
  }
  if (is_new) {
    push(line, now);
  } else {
    same->lanes |= now.lanes;
  }
}

void Memory::push(Line& line, const Record& record) {
  if (line.count == line.capacity) {
    const unsigned capacity = line.capacity == 0 ? 1 : line.capacity * 2U;
    const auto log = static_cast<unsigned>(std::countr_zero(capacity));
    if (capacity > 0x8000) throw GpuFault("more accesses of one place than can be kept");
    if (free_.size() <= log) free_.resize(log + 1);
    auto& free = free_[log];
    if (free.empty()) {
      const std::size_t pieces = std::max<std::size_t>(1, kPoolRecords / capacity);
      pools_.push_back(std::make_unique_for_overwrite<Record[]>(pieces * capacity));
      for (std::size_t i = 0; i < pieces; ++i) free.push_back(&pools_.back()[i * capacity]);
    }
    Record* const records = free.back();
    free.pop_back();
    std::copy_n(line.records, line.count, records);
    if (line.capacity != 0) free_[log - 1].push_back(line.records);
    line.records = records;
    line.capacity = static_cast<std::uint16_t>(capacity);
  }
  line.records[line.count++] = record;
}

void Memory::race(const Actor& actor,
                  const Region& region,
                  std::uintptr_t p,
                  const Record& now,
                  const Record& earlier) const {
  const bool devices = scope(now.kind) > 0 && scope(earlier.kind) > 0 && earlier.host != actor.host;
  throw GpuFault(
      fmt::format("race: {} ({}): {} of {} bytes at {}, and {} ({}): {} of {} bytes there before, "
                  "with nothing that orders them{}",
                  who(actor),
                  describe(now.site),
                  name_of(now.kind),
                  std::popcount(now.bytes),
                  where(std::bit_cast<const void*>(p), region.shared ? &region : nullptr),
                  who(earlier.host, earlier.number, earlier.block, earlier.warp, earlier.lanes),
                  describe(earlier.site),
                  name_of(earlier.kind),
                  std::popcount(earlier.bytes),
                  devices ? "; add() is atomic for the threads of one device alone" : ""));
}

ClocksPtr Memory::released(const void* p) const {
  const auto found = released_.find(original_of(reinterpret_cast<std::uintptr_t>(p)));
  return found == released_.end() ? nullptr : found->second;
}

void Memory::release(const void* p, ClocksPtr known) {
  const std::uintptr_t at = original_of(reinterpret_cast<std::uintptr_t>(p));
  if (Region* const region = find(at, 1)) region->line(at).released = 1;
  released_[at] = std::move(known);
}

void Memory::name_launch(std::uint32_t host, std::uint32_t number, const std::string& kernel) {
  const auto [entry, is_new] = kernels_.try_emplace(kernel, static_cast<int>(kernels_.size()));
  if (is_new) kernel_names_.push_back(&entry->first);
  if (launches_.size() <= host) launches_.resize(host + 1);
  if (launches_[host].size() < number) launches_[host].resize(number);
  launches_[host][number - 1] = entry->second;
}

const std::string& Memory::kernel_of(std::uint32_t host, std::uint32_t number) const {
  return *kernel_names_[static_cast<unsigned>(launches_[host][number - 1])];
}

std::string Memory::who(std::uint32_t host,
                        std::uint32_t number,
                        std::uint32_t block,
                        std::uint32_t warp,
                        std::uint32_t lanes) const {
  const std::string& kernel = kernel_of(host, number);
  if (kernel.empty()) return fmt::format("host thread {}", host);
  return fmt::format("kernel {} (launch {} of host thread {}), block {}, {}",
                     kernel,
                     number,
                     host,
                     block,
                     lanes_text(warp, lanes));
}

std::string Memory::who(const Actor& actor) const {
  return who(actor.host, actor.number, actor.block, actor.thread / 32, 1U << (actor.thread % 32));
}

std::string Memory::where(const void* p, const Region* shared) const {
  const auto at = reinterpret_cast<std::uintptr_t>(p);
  if (at == 0) return "null";
  if (shared != nullptr && shared->holds(at, 0)) {
    return fmt::format(
        "the block's shared memory ({} bytes) + {}", shared->bytes, at - shared->begin);
  }
  // The region that it is in, or the nearest.
  const auto after = regions_.upper_bound(at);
  const Region* nearest = after == regions_.end() ? nullptr : &after->second;
  if (after != regions_.begin()) {
    const Region& below = std::prev(after)->second;
    const std::uintptr_t end = below.begin + below.bytes;
    if (nearest == nullptr || at < end || at - end <= nearest->begin - at) nearest = &below;
  }
  if (nearest == nullptr) return fmt::format("{}", p);
  constexpr std::uintptr_t kNear = 1 << 20;
  const std::uintptr_t end = nearest->begin + nearest->bytes;
  if (at >= nearest->begin && at < end + kNear) {
    return fmt::format("{} ({} bytes) + {}", nearest->name, nearest->bytes, at - nearest->begin);
  }
  if (at < nearest->begin && nearest->begin - at < kNear) {
    return fmt::format("{} ({} bytes) - {}", nearest->name, nearest->bytes, nearest->begin - at);
  }
  return fmt::format("{}", p);
}

}  // namespace ferry::testing::gpu
