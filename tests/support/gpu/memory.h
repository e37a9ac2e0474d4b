// What emulated threads may touch, and who touched it: bounds, alignment, unwritten shared memory
// and races, checked at every access. One thread of the host at a time (turn.h).
//
// Memory is seen in lines of 16 bytes; no access crosses one. A line keeps one record for each
// access that a later one may race with: whose (a warp's lanes at one clock are one record), which
// of its bytes, and what kind. A record goes when an access that every later rival of it would race
// with too happened after it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "support/gpu/clocks.h"
#include "support/gpu/site.h"

namespace ferry::testing::gpu {

enum class Access : std::uint8_t {
  read,
  write,
  device_add,   ///< atomic for the threads of one device: those that one host thread launches
  system_read,  ///< atomic for everybody
  system_write,
};

/// Who accesses: a thread of a launch, or of the host (a launch of one thread).
struct Actor {
  std::uint32_t host = 0, number = 0, block = 0, thread = 0;
  std::uint32_t clock = 1;
  ClocksPtr known = {};
  const BlockClocks* own = nullptr;  ///< in `known`, of the actor's block; null: nothing

  void look_up() { own = known == nullptr ? nullptr : known->find(host, number, block); }
};

/// 32 bytes; plain, as many thousand are kept.
struct Record {
  std::uint32_t number, block, clock;
  std::uint32_t lanes;
  std::uint16_t bytes;  // of the line, a bit each
  std::uint16_t host;
  std::uint8_t warp;
  Access kind;
  Site site;
};

struct Line {
  Record* records;  // of Memory's pool
  std::uint16_t count, capacity;
  std::uint16_t written;   // bytes, a bit each; of shared memory alone
  std::uint16_t released;  // whether somebody released something here
};

/// Whose memory it is where every host thread is a process: everybody's.
inline constexpr std::uint32_t kAnyProcess = ~std::uint32_t{0};

struct Region {
  std::uintptr_t begin = 0;
  std::size_t bytes = 0;
  std::string name;
  bool shared = false;  ///< of one block
  int uses = 1;
  std::uint32_t process = kAnyProcess;  ///< the host thread whose launches may touch it
  std::uintptr_t original = 0;          ///< of memory opened by a handle: where its owner has it
  Line* lines = nullptr;                // calloc'ed, so that untouched lines take no memory

  bool holds(std::uintptr_t p, std::size_t size) const {
    return p >= begin && p - begin <= bytes && size <= bytes - (p - begin);
  }

  Line& line(std::uintptr_t p) const { return lines[p / 16 - begin / 16]; }

  std::size_t num_lines() const { return (begin + bytes + 15) / 16 - begin / 16; }
};

class Memory {
 public:
  Memory() = default;
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  /// Memory that every thread, or those of one process, may touch from now on. The same again, or a
  /// part, is counted.
  void add(const void* memory,
           std::size_t bytes,
           std::string name,
           std::uint32_t process = kAnyProcess);
  /// The memory at `original`, as a process that has opened it sees it: one memory at two places.
  void add_opened(const void* memory,
                  std::size_t bytes,
                  std::string name,
                  std::uint32_t process,
                  const void* original);
  void remove(const void* memory);

  /// A block's shared memory; the caller keeps it, and clears it before the next block has it.
  std::unique_ptr<Region> make_shared(std::size_t bytes);
  void clear(Region& shared);
  void drop(Region& shared);

  /// Throws GpuFault. `shared` is that of the actor's block.
  void access(
      const Actor& actor, Region* shared, const void* p, std::size_t size, Access kind, Site site);
  /// As access(), for a thread of the host and any number of bytes.
  void host_access(const Actor& actor, const void* p, std::size_t bytes, bool write, Site site);

  /// From here on nobody has written the line at `p` of a block's shared memory.
  void unwrite(Region& shared, const void* p, Site site);

  /// Whether any of these bytes is memory that kernels may reach.
  bool touches(const void* p, std::size_t bytes) const;

  /// What acquiring at this address makes known. A plain store does not end it: who acquires behind
  /// that store without a race knows as much through it.
  ClocksPtr released(const void* p) const;
  void release(const void* p, ClocksPtr known);

  /// Gives the name of a launch, for messages. Numbers of a host begin at 1.
  void name_launch(std::uint32_t host, std::uint32_t number, const std::string& kernel);

  const std::string& kernel_of(std::uint32_t host, std::uint32_t number) const;
  /// "kernel K, block B, thread T".
  std::string who(std::uint32_t host,
                  std::uint32_t number,
                  std::uint32_t block,
                  std::uint32_t warp,
                  std::uint32_t lanes) const;
  std::string who(const Actor& actor) const;
  /// "allocation 3 (64 bytes) + 8".
  std::string where(const void* p, const Region* shared) const;

 private:
  Region* find(std::uintptr_t p, std::size_t size);
  const char* resolve(Region*& region, std::uintptr_t& at, std::size_t size, const Actor& actor);
  /// Where the watcher keeps what it knows of this address: at the owner's.
  std::uintptr_t original_of(std::uintptr_t p) const;
  void check_races(
      const Actor& actor, Region& region, std::uintptr_t p, unsigned size, Access kind, Site site);
  [[noreturn]] void race(const Actor& actor,
                         const Region& region,
                         std::uintptr_t p,
                         const Record& now,
                         const Record& earlier) const;
  void push(Line& line, const Record& record);
  void forget(Region& region);

  std::map<std::uintptr_t, Region> regions_;  // by where they begin
  Region* last_ = nullptr;                    // that was found
  std::unordered_map<std::uintptr_t, ClocksPtr> released_;
  std::map<std::string, int> kernels_;
  std::vector<const std::string*> kernel_names_;
  std::vector<std::vector<int>> launches_;  // [host][number - 1]: its kernel
  std::vector<std::vector<Record*>> free_;  // by the logarithm of their capacity
  std::vector<std::unique_ptr<Record[]>> pools_;
};

std::string describe(Site site);
/// Whether both are the same line of the same file.
bool same(Site a, Site b);

}  // namespace ferry::testing::gpu
