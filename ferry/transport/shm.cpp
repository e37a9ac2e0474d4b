// Ranks that are processes of one host. All shared memory is one unnamed sparse file (memfd) that
// rank 0 makes and hands to the others over a Unix socket: a control block, and behind it region
// after region, at offsets that every rank computes alike. Nothing has a name, so nothing is left
// behind however ranks end, and limits on /dev/shm do not apply.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <new>
#include <optional>
#include <utility>

#include "ferry/buffer.h"
#include "ferry/core/error.h"
#include "ferry/core/types.h"
#include "ferry/transport/handover.h"
#include "ferry/transport/host_memory.h"
#include "ferry/transport/mapped.h"
#include "ferry/transport/processes.h"
#include "ferry/transport/registry.h"
#include "ferry/transport/shared_store.h"
#include "ferry/transport/unique_fd.h"

namespace ferry {

namespace {

/// Regions start at multiples of a huge page, so that the kernel may use those.
constexpr std::int64_t kRegionAlignment = std::int64_t{2} << 20;

/// Maps part of the file, or throws.
std::byte* map_file(const UniqueFd& file, std::size_t offset, std::size_t bytes) {
  void* p = mmap(nullptr,
                 bytes,
                 PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_NORESERVE,
                 file.get(),
                 static_cast<off_t>(offset));
  if (p == MAP_FAILED) {
    fail<Error>("shm: cannot map {} bytes of shared memory: {}; use fewer ranks or --max-tokens",
                bytes,
                std::strerror(errno));
  }
  return static_cast<std::byte*>(p);
}

void grow_file(const UniqueFd& file, std::size_t bytes) {
  if (ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) {
    fail<Error>("shm: cannot reserve {} bytes of shared memory: {}; see ulimit -f",
                bytes,
                std::strerror(errno));
  }
}

/// Made by rank 0, which hands it to the others.
class SharedFile {
 public:
  SharedFile() : file_(memfd_create("ferry", MFD_CLOEXEC)) {
    if (!file_.valid()) fail<Error>("shm: cannot make shared memory: {}", std::strerror(errno));
    grow_file(file_, regions_at());
    control_ = new (map_file(file_, 0, sizeof(ControlBlock))) ControlBlock;
  }

  explicit SharedFile(UniqueFd file) : file_(std::move(file)) {
    control_ = reinterpret_cast<ControlBlock*>(map_file(file_, 0, sizeof(ControlBlock)));
  }

  ~SharedFile() { munmap(control_, sizeof(ControlBlock)); }

  SharedFile(const SharedFile&) = delete;
  SharedFile& operator=(const SharedFile&) = delete;

  static std::size_t regions_at() {
    return static_cast<std::size_t>(round_up(sizeof(ControlBlock), kRegionAlignment));
  }

  const UniqueFd& file() const { return file_; }

  ControlBlock& control() const { return *control_; }

 private:
  UniqueFd file_;
  ControlBlock* control_ = nullptr;
};

/// A region as this process maps it. The last rank to unmap it gives its pages back; until then
/// peers may read what a rank wrote before it destroyed its part.
class SharedMemory final : public RegionMemory {
 public:
  SharedMemory(std::shared_ptr<SharedFile> file, std::size_t offset, std::size_t bytes, int ranks)
      : file_(std::move(file)),
        offset_(offset),
        bytes_(bytes),
        ranks_(ranks),
        base_(map_file(file_->file(), offset, mapped_bytes(bytes))) {
    advise_huge_pages(base_, bytes);
  }

  ~SharedMemory() override {
    const std::atomic_ref<std::uint32_t> unmapped(
        *reinterpret_cast<std::uint32_t*>(base_ + bytes_));
    if (unmapped.fetch_add(1) + 1 == static_cast<std::uint32_t>(ranks_)) {
      fallocate(file_->file().get(),
                FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                static_cast<off_t>(offset_),
                static_cast<off_t>(mapped_bytes(bytes_)));
    }
    munmap(base_, mapped_bytes(bytes_));
  }

  /// The region and, behind it, a page that counts the ranks which have unmapped it.
  static std::size_t mapped_bytes(std::size_t bytes) {
    return bytes + static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  }

  std::byte* base() const override { return base_; }

 private:
  std::shared_ptr<SharedFile> file_;  // owned by the transport and its regions
  std::size_t offset_;
  std::size_t bytes_;
  int ranks_;
  std::byte* base_;
};

class ShmTransport final : public MappedTransport {
 public:
  ShmTransport(std::shared_ptr<SharedFile> file, const JoinOptions& join)
      : MappedTransport({.name = "shm",
                         .control = std::shared_ptr<ControlBlock>(file, &file->control()),
                         .shared = true,
                         .join = join}),
        file_(std::move(file)) {}

 protected:
  std::shared_ptr<RegionMemory> create_memory(std::size_t bytes) override {
    grow_file(file_->file(), next_offset_ + SharedMemory::mapped_bytes(bytes));
    return attach_memory(bytes);
  }

  std::shared_ptr<RegionMemory> attach_memory(std::size_t bytes) override {
    const std::size_t offset = next_offset_;
    // Never used again, so fresh regions are zero.
    next_offset_ += static_cast<std::size_t>(
        round_up(static_cast<std::int64_t>(SharedMemory::mapped_bytes(bytes)), kRegionAlignment));
    return std::make_shared<SharedMemory>(file_, offset, bytes, size());
  }

  bool has_ended(Rank peer) override {
    UniqueFd& process = processes_[static_cast<std::size_t>(peer)];
    if (!process.valid()) {
      const RankBlock& block = control().ranks[peer];
      const ProcessId id{.pid = block.process_id, .started = block.process_started};
      process = open_process(id);
      if (!process.valid()) {
        if (errno == ESRCH) return true;
        throw TransportError(TransportError::Kind::io,
                             peer,
                             fmt::format("shm: rank {} cannot watch rank {} (pid {}): {}",
                                         rank(),
                                         peer,
                                         id.pid,
                                         std::strerror(errno)));
      }
    }
    return ferry::has_ended(process);
  }

 private:
  std::shared_ptr<SharedFile> file_;
  std::size_t next_offset_ = SharedFile::regions_at();
  std::array<UniqueFd, kMaxMappedRanks> processes_;  // opened when a wait goes idle
};

/// What a rank tells the others, and rank 0 behind it where the memory is to be had.
struct Card {
  std::string host;
  ProcessId process;
  Bytes invitation;

  Bytes bytes() const { return ByteWriter().text(host).number(process).blob(invitation).bytes(); }

  static Card read(std::span<const std::byte> bytes) {
    ByteReader reader(bytes);
    Card card;
    card.host = reader.text();
    card.process = reader.number<ProcessId>();
    card.invitation = reader.copy();
    return card;
  }
};

class ShmJoiner final : public Joiner {
 public:
  explicit ShmJoiner(const JoinOptions& options) : options_(options) {
    if (options.size > kMaxMappedRanks) {
      fail<ConfigError>(
          "shm: {} ranks asked for; it has at most {}", options.size, kMaxMappedRanks);
    }
  }

  Bytes card() override {
    Card card{.host = this_host(), .process = this_process(), .invitation = {}};
    if (options_.rank == 0 && options_.size > 1) {
      handover_.emplace();
      card.invitation = handover_->invitation();
    }
    return card.bytes();
  }

  std::unique_ptr<Transport> join(std::span<const Bytes> cards, Deadline deadline) override {
    std::vector<ProcessId> processes;
    const Card first = Card::read(cards.front());
    for (std::size_t r = 0; r < cards.size(); ++r) {
      const Card card = Card::read(cards[r]);
      processes.push_back(card.process);
      if (card.host == first.host) continue;
      throw TransportError(
          TransportError::Kind::io,
          static_cast<Rank>(r),
          fmt::format("shm: rank {} is on another host, or in another container, than rank 0; use "
                      "fabric",
                      r));
    }
    if (options_.rank != 0) {
      auto file = std::make_shared<SharedFile>(
          receive_descriptor(first.invitation, first.process, options_.rank, deadline));
      return std::make_unique<ShmTransport>(std::move(file), options_);
    }
    const auto file = std::make_shared<SharedFile>();
    for (std::size_t r = 0; r < processes.size(); ++r) {
      file->control().ranks[r].process_id = processes[r].pid;
      file->control().ranks[r].process_started = processes[r].started;
    }
    // Before the others have the memory: when this fails they are told through it.
    auto transport = std::make_unique<ShmTransport>(file, options_);
    try {
      if (handover_) handover_->give(file->file(), processes, deadline);
    } catch (const TransportError& e) {
      transport->abort(e.what());
      throw;
    }
    return transport;
  }

 private:
  const JoinOptions options_;
  std::optional<Handover> handover_;  // rank 0
};

int run_shm(const LaunchOptions& options, const RankBody& body) {
  SharedStore store;
  return run_processes({.ranks = options.ranks,
                        .child =
                            [&](Rank rank) {
                              const auto transport = join(join_options(options, rank), store);
                              return run_joined(*transport, body);
                            },
                        .ended = [&](Rank rank) { store.ended(rank); }});
}

std::string_view why_not_shm() {
  if (!open_process(getpid()).valid()) return "the kernel has no pidfd_open (Linux 5.3)";
  if (!UniqueFd(memfd_create("ferry", MFD_CLOEXEC)).valid())
    return "the kernel has no memfd_create";
  return "";
}

}  // namespace

TransportEntry shm_transport() {
  return {.name = "shm",
          .about = "ranks are processes of one host that map the same memory",
          .why_not = why_not_shm,
          .joiner = [](const JoinOptions& options) -> std::unique_ptr<Joiner> {
            return std::make_unique<ShmJoiner>(options);
          },
          .run = run_shm,
          .load_store = true};
}

}  // namespace ferry
