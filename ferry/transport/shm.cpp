// Ranks that are processes of one host. All shared memory is one unnamed sparse file (memfd) made
// before the fork and inherited: a control block, and behind it region after region, at offsets
// that every rank computes alike. Nothing has a name, so nothing is left behind however ranks end,
// and limits on /dev/shm do not apply.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <exception>
#include <new>
#include <utility>

#include "ferry/core/buffer.h"
#include "ferry/core/error.h"
#include "ferry/transport/mapped.h"
#include "ferry/transport/processes.h"
#include "ferry/transport/registry.h"
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

/// Made by the launcher, inherited by the ranks.
class SharedFile {
 public:
  SharedFile() : file_(memfd_create("ferry", MFD_CLOEXEC)) {
    if (!file_.valid()) fail<Error>("shm: cannot make shared memory: {}", std::strerror(errno));
    grow_file(file_, regions_at());
    control_ = new (map_file(file_, 0, sizeof(ControlBlock))) ControlBlock;
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
  ShmTransport(std::shared_ptr<SharedFile> file,
               Rank rank,
               int size,
               std::chrono::nanoseconds start_timeout)
      : MappedTransport({.name = "shm",
                         .control = std::shared_ptr<ControlBlock>(file, &file->control()),
                         .rank = rank,
                         .size = size,
                         .shared = true,
                         .start_timeout = start_timeout}),
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
      // The launcher writes it, and reaps no rank before all have ended: it cannot be someone else.
      const pid_t pid = control().ranks[peer].process_id.load();
      if (pid == 0) return false;
      process = open_process(pid);
      if (!process.valid()) {
        if (errno == ESRCH) return true;
        throw TransportError(TransportError::Kind::io,
                             peer,
                             fmt::format("shm: rank {} cannot watch rank {} (pid {}): {}",
                                         rank(),
                                         peer,
                                         pid,
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

int run_rank(const LaunchOptions& options,
             const RankBody& body,
             const std::shared_ptr<SharedFile>& file,
             Rank rank) {
  ShmTransport transport(file, rank, options.ranks, options.start_timeout);
  try {
    return body(transport);
  } catch (...) {
    transport.abort(describe(std::current_exception()));
    throw;
  }
}

int run_shm(const LaunchOptions& options, const RankBody& body) {
  const auto file = std::make_shared<SharedFile>();
  return run_processes(
      {.ranks = options.ranks,
       .child = [&](Rank rank) { return run_rank(options, body, file, rank); },
       .started = [&](Rank rank,
                      pid_t pid) { file->control().ranks[rank].process_id.store(pid); }});
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
          .run = run_shm,
          .load_store = true};
}

}  // namespace ferry
