#include "ferry/exchange/cpu_plane.h"

#include <algorithm>
#include <cstring>

#include "ferry/buffer.h"
#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

constexpr std::size_t kCopyGrainBytes = std::size_t{128}
                                        << 10;  // less is not worth a second thread

constexpr std::int64_t kEncodeGrain = 8;  // rows

std::int64_t copy_grain(std::size_t row_bytes) {
  return static_cast<std::int64_t>(std::max<std::size_t>(1, kCopyGrainBytes / row_bytes));
}

class HostMemory final : public PlaneMemory {
 public:
  explicit HostMemory(Buffer memory)
      : PlaneMemory(memory.data(), memory.data()), memory_(std::move(memory)) {}

 private:
  Buffer memory_;
};

void place_weights(const ArrivedRows& arrived) {
  for (std::size_t i = 0; i < arrived.weights.size(); ++i)
    arrived.weights_to[arrived.places[i]] = arrived.weights[i];
}

std::byte* target_of(const GatherRows& work, std::size_t i) {
  return work.to + static_cast<std::size_t>(work.arrived.places[i]) * work.to_bytes;
}

// Rows of the records [begin, end), case by case.

void copy_rows(const Kernels& /*kernels*/,
               const GatherRows& work,
               std::size_t begin,
               std::size_t end) {
  for (std::size_t i = begin; i < end; ++i)
    std::memcpy(target_of(work, i), work.arrived.row(i), work.arrived.row_bytes);
}

/// What one exchange brings is read once, by the experts; beyond the caches it is not found there.
void stream_rows(const Kernels& kernels,
                 const GatherRows& work,
                 std::size_t begin,
                 std::size_t end) {
  for (std::size_t i = begin; i < end; ++i)
    kernels.stream_copy(target_of(work, i), work.arrived.row(i), work.arrived.row_bytes);
  kernels.stream_fence();
}

void decode_rows(const Kernels& kernels,
                 const GatherRows& work,
                 std::size_t begin,
                 std::size_t end) {
  const DType type = element_type(work.expert_type).value();
  const std::size_t bytes = static_cast<std::size_t>(work.columns) * dtype_bytes(type);
  const std::span<const Record> records = work.arrived.records;
  for (std::size_t i = begin; i < end; ++i) {
    if (i > begin && records[i].token == records[i - 1].token) {
      std::memcpy(target_of(work, i), target_of(work, i - 1), bytes);
    } else {
      kernels.decode(work.arrived.row(i), work.wire, target_of(work, i), type, work.columns);
    }
  }
}

}  // namespace

CpuPlane::CpuPlane(ThreadPool& pool)
    : pool_(pool), scratch_(static_cast<std::size_t>(pool.size())) {}

void CpuPlane::check(const MemoryPlace& place, std::string_view what) const {
  if (place.kind == MemoryKind::device) {
    fail<ConfigError>(
        "{}: the rows lie on device {}, which the cpu plane cannot read; hand over host memory or "
        "use a plane of that device",
        what,
        place.device);
  }
  if (place.queue != nullptr) {
    fail<ConfigError>(
        "{}: the rows are valid on a queue of {} memory, and the cpu plane has none; synchronise "
        "first and hand them over without a queue",
        what,
        memory_kind_name(place.kind));
  }
}

std::unique_ptr<PlaneMemory> CpuPlane::allocate(std::size_t bytes, bool sparse) {
  return std::make_unique<HostMemory>(
      Buffer(bytes, sparse ? Buffer::Use::sparse : Buffer::Use::dense));
}

void CpuPlane::reserve(const ReduceLimits& limits) {
  for (Scratch& scratch : scratch_) {
    scratch.list.reserve(limits.sums, limits.terms);
    scratch.sum.resize(std::max(scratch.sum.size(), limits.columns));
  }
}

void CpuPlane::stage(const StageRows& work) {
  const std::size_t row_bytes = wire_row_bytes(work.wire, work.columns);
  const std::optional<DType> plain = element_type(work.wire);
  const auto stage_row = [&](std::int64_t t) {
    if (work.encoded) {
      std::memcpy(work.to.row(t), work.from.row(t), row_bytes);
    } else if (plain) {
      kernels_of(pool_).convert(work.from.row(t), work.type, work.to.row(t), *plain, work.columns);
    } else {
      kernels_of(pool_).encode(
          work.from.row(t), work.type, work.to.row(t), work.wire, work.columns);
    }
  };
  pool_.parallel_for(
      work.tokens, copy_grain(row_bytes), [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t t = begin; t < end; ++t)
          if (t % work.step == work.first) stage_row(t);
      });
}

void CpuPlane::gather(const GatherRows& work) {
  place_weights(work.arrived);
  const bool as_delivered = work.expert_type == work.wire;
  void (*const rows)(const Kernels&, const GatherRows&, std::size_t, std::size_t) =
      !as_delivered  ? decode_rows
      : work.streams ? stream_rows
                     : copy_rows;
  pool_.parallel_for(static_cast<std::int64_t>(work.arrived.records.size()),
                     copy_grain(work.arrived.row_bytes),
                     [&](std::int64_t begin, std::int64_t end, int) {
                       rows(kernels_of(pool_),
                            work,
                            static_cast<std::size_t>(begin),
                            static_cast<std::size_t>(end));
                     });
}

void CpuPlane::point(const ArrivedRows& work, const std::byte** pointers) {
  place_weights(work);
  for (std::size_t i = 0; i < work.records.size(); ++i) pointers[work.places[i]] = work.row(i);
}

void CpuPlane::encode(const EncodeRows& work) {
  for (std::size_t slot = 0; slot < work.counts.size(); ++slot) {
    const auto first = static_cast<std::size_t>(work.offsets[slot]);
    pool_.parallel_for(
        work.counts[slot], kEncodeGrain, [&](std::int64_t begin, std::int64_t end, int) {
          for (std::size_t row = first + static_cast<std::size_t>(begin);
               row < first + static_cast<std::size_t>(end);
               ++row) {
            kernels_of(pool_).encode(work.from + row * work.from_bytes,
                                     work.type,
                                     work.to + row * work.to_bytes,
                                     work.wire,
                                     work.columns);
          }
        });
  }
}

void CpuPlane::reduce(const ReduceRows& work) {
  pool_.parallel_for(work.items, work.grain, [&](std::int64_t begin, std::int64_t end, int worker) {
    Scratch& scratch = scratch_[static_cast<std::size_t>(worker)];
    for (std::int64_t first = begin; first < end; first += work.grain) {
      scratch.list.clear();
      work.terms(first, std::min(first + work.grain, end), scratch.list);
      add_up(work, scratch);
    }
  });
}

void CpuPlane::add_up(const ReduceRows& work, Scratch& scratch) const {
  auto* encoded_next = reinterpret_cast<std::byte*>(scratch.sum.data());
  for (const SumList::Sum& sum : scratch.list.sums()) {
    if (sum.terms == 1 && work.single_bytes > 0) {
      std::memcpy(sum.out, *scratch.list.rows_of(sum), work.single_bytes);
      continue;
    }
    kernels_of(pool_).weighted_sum({.rows = scratch.list.rows_of(sum),
                                    .weights = scratch.list.weights_of(sum),
                                    .k = static_cast<std::int64_t>(sum.terms),
                                    .n = work.columns,
                                    .in_type = work.in_type,
                                    .out = work.encode_as ? encoded_next : sum.out,
                                    .out_type = work.out_type,
                                    .accumulate = work.accumulate});
    if (work.encode_as)
      kernels_of(pool_).encode(encoded_next, work.out_type, sum.out, *work.encode_as, work.columns);
  }
}

}  // namespace ferry
