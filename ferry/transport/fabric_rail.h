// One network interface as libfabric shows it: an endpoint, its completion queue, and what peers
// have told of theirs. Everything of libfabric that fabric.cpp needs is here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/function_ref.h"
#include "ferry/transport.h"
#include "ferry/transport/byte_stream.h"

namespace ferry {

/// The providers that this machine can use of those we know, best first: efa, verbs, tcp, shm.
/// Looked up once: it takes 0.1 s.
const std::vector<std::string>& usable_fabric_providers();

/// How many interfaces a provider would use by itself: all of an RDMA network, else one.
int num_fabric_interfaces(const std::string& provider);

/// A process that is killed leaves shared memory of provider shm behind; removes that of a rank
/// with this address. Nothing where the address is another provider's.
void remove_left_behind(std::string_view address);

/// Threads: one at a time. Errors: TransportError{io} with libfabric's own text.
class FabricRail {
 public:
  struct Options {
    std::string provider;
    std::string host;   ///< the address to be reached at, where the provider has such
    int interface = 0;  ///< counted round where there are fewer
    int ranks = 1;
  };

  /// Throws TransportError where the provider cannot be used.
  explicit FabricRail(const Options& options);
  ~FabricRail();
  FabricRail(const FabricRail&) = delete;
  FabricRail& operator=(const FabricRail&) = delete;

  /// Memory that this rail can read and its peers can write.
  class Memory {
   public:
    /// Throws Error that names ulimit -l.
    Memory(const FabricRail& rail, std::span<std::byte> memory, std::uint64_t key);
    ~Memory();
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    /// Where peers find it.
    struct Remote {
      std::uint64_t key = 0;
      std::uint64_t base = 0;  ///< 0 where the provider counts from the memory's start
    };

    const Remote& remote() const { return remote_; }

    void* descriptor() const;

   private:
    struct Handle;
    std::unique_ptr<Handle> handle_;
    Remote remote_;
  };

  struct Write {
    Rank peer = 0;
    Memory::Remote target;
    std::size_t offset = 0;
    std::span<const std::byte> source;
    void* descriptor = nullptr;  ///< of the source's memory
    std::uint32_t immediate = 0;
    void* context = nullptr;  ///< comes back with the completion; null: the source is copied now
  };

  /// What poll() tells.
  struct Event {
    enum class Kind : std::uint8_t { arrived, completed, failed };
    Kind kind = Kind::arrived;
    std::uint32_t immediate = 0;  ///< arrived
    void* context = nullptr;      ///< completed, failed
    std::string_view why = {};    ///< failed
  };

  /// 0, or libfabric's error; see is_full(). Without a context no completion follows, and the
  /// source must not be longer than inject_bytes().
  long start(const Write& write);
  static bool is_full(long status);
  static std::string_view error_text(long status);

  void poll(FunctionRef<void(const Event&)> event);

  std::size_t inject_bytes() const;
  std::size_t max_put_bytes() const;
  /// Whether what is registered must be backed by memory (verbs, EFA), touched or not.
  bool pins_memory() const;
  /// This rail's address, for its peers.
  Bytes address() const;
  /// In order of rank.
  void learn_address(Rank peer, std::span<const std::byte> address);

 private:
  struct Handles;
  std::unique_ptr<Handles> handles_;
  std::vector<std::uint64_t> peers_;
};

}  // namespace ferry
