#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <random>
#include <string>
#include <utility>

#include "ferry/buffer.h"
#include "ferry/choose_backend.h"
#include "ferry/core/error.h"
#include "ferry/core/threads.h"
#include "ferry/transport/gather_words.h"

namespace ferry {

namespace {

/// Rows of one exchange beyond which more would show nothing new: no cache holds them.
constexpr std::size_t kMostRowBytes = std::size_t{32} << 20;
/// The first rounds touch memory that nobody has touched before.
constexpr int kFirstRounds = 2;
constexpr int kRounds = 16;

/// One token a rank, as decode has, and many, as prompts have.
struct TrialTimes {
  double one_us = 0;
  double many_us = 0;
};

struct Candidate {
  BackendCost counted;
  TrialTimes times = {};
};

ExchangeOptions exchange_of(const BackendCost& cost) {
  return exchange_options(cost.backend, cost.mode);
}

/// What `asked` leaves open here; of two names for the same exchange the first.
std::vector<Candidate> candidates(MoeA2ABackend asked,
                                  DeepepMode mode,
                                  const BackendSituation& situation) {
  std::vector<Candidate> all;
  if (!leaves_choice(asked, mode)) return all;
  for (const BackendCost& cost : backend_costs(situation)) {
    if (asked != MoeA2ABackend::automatic && cost.backend != asked) continue;
    const bool known = std::ranges::any_of(all, [&](const Candidate& other) {
      return exchange_of(other.counted) == exchange_of(cost);
    });
    if (!known) all.push_back({.counted = cost});
  }
  return all;
}

int tokens_of_trial(const DispatcherOptions& shape) {
  const std::size_t of_token =
      static_cast<std::size_t>(shape.topk) * static_cast<std::size_t>(shape.hidden) * sizeof(float);
  const auto most = static_cast<int>(std::max<std::size_t>(1, kMostRowBytes / of_token));
  return std::min(shape.max_tokens, most);
}

/// Exchanges of one candidate, with tokens whose experts are drawn at random.
class Trial {
 public:
  Trial(const DispatcherOptions& options, Transport& transport, ThreadPool& pool)
      : transport_(transport),
        pool_(pool),
        dispatcher_(options, transport, pool),
        row_bytes_(static_cast<std::size_t>(options.hidden) * dtype_bytes(type_of(options))),
        rows_(static_cast<std::size_t>(options.max_tokens) * row_bytes_),
        sums_(rows_.size()),
        weights_(entries(options.max_tokens), 1.0F / static_cast<float>(options.topk)) {
    draw_slots();
  }

  /// On the slowest rank; a quarter of the rounds were faster. Busy machines have slow rounds, and
  /// ranks that happen to share a core very fast ones.
  double time_us(int tokens) {
    for (int i = 0; i < kFirstRounds; ++i) exchange(tokens);
    std::array<std::uint64_t, kRounds> times{};
    for (std::uint64_t& time : times) {
      meet();
      const auto start = std::chrono::steady_clock::now();
      exchange(tokens);
      const std::chrono::nanoseconds taken = std::chrono::steady_clock::now() - start;
      time = static_cast<std::uint64_t>(taken.count());
    }
    const std::vector<std::uint64_t> all = gather_words(
        times, "times of exchanges that are tried", dispatcher_.options().timeout, transport_);
    std::array<std::uint64_t, kRounds> slowest{};
    for (std::size_t i = 0; i < all.size(); ++i)
      slowest[i % kRounds] = std::max(slowest[i % kRounds], all[i]);
    std::ranges::sort(slowest);
    return static_cast<double>(slowest[kRounds / 4]) / 1e3;
  }

 private:
  static DType type_of(const DispatcherOptions& options) {
    return options.dispatch_wire == WireType::bf16 ? DType::bf16 : DType::f32;
  }

  std::size_t entries(int tokens) const {
    return static_cast<std::size_t>(tokens) * static_cast<std::size_t>(dispatcher_.options().topk);
  }

  /// Ranks that hold the same tokens draw the same; a token names no slot twice.
  void draw_slots() {
    const DispatcherOptions& o = dispatcher_.options();
    std::mt19937 engine(static_cast<unsigned>(transport_.rank() / o.tp) + 1);
    std::vector<SlotId> all(static_cast<std::size_t>(o.slots_per_rank) *
                            static_cast<std::size_t>(transport_.size()));
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<SlotId>(i);
    slots_.assign(entries(o.max_tokens), -1);
    const std::size_t named = std::min(all.size(), static_cast<std::size_t>(o.topk));
    for (std::size_t t = 0; t < static_cast<std::size_t>(o.max_tokens); ++t) {
      for (std::size_t k = 0; k < named; ++k) {
        std::swap(all[k], all[k + engine() % (all.size() - k)]);
        slots_[t * static_cast<std::size_t>(o.topk) + k] = all[k];
      }
    }
  }

  void meet() {
    const DispatcherOptions& o = dispatcher_.options();
    if (transport_.barrier(deadline_in(o.timeout)) == WaitResult::timed_out) {
      throw TransportError(
          TransportError::Kind::timeout,
          -1,
          fmt::format("rank {} tries backends and has waited {} s for another rank",
                      transport_.known_as(transport_.rank()),
                      std::chrono::duration<double>(o.timeout).count()));
    }
  }

  void exchange(int tokens) {
    const DispatcherOptions& o = dispatcher_.options();
    const std::span<const float> weights = std::span(weights_).first(entries(tokens));
    const auto stride = static_cast<std::ptrdiff_t>(row_bytes_);
    RoutedTokens routed{.rows = {rows_.data(), stride},
                        .type = type_of(o),
                        .tokens = tokens,
                        .slots = std::span(slots_).first(entries(tokens)),
                        .weights = weights};
    if (o.row_weights) routed.row_weights = weights;
    dispatcher_.dispatch_send(routed);
    dispatcher_.dispatch_recv([&](const ExpertRows& rows) { stand_in(rows); });
    dispatcher_.combine_send();
    dispatcher_.combine_recv(
        {.weights = weights, .rows = {sums_.data(), stride}, .type = type_of(o)});
  }

  /// For the experts: reads every row once and writes every result once.
  void stand_in(const ExpertRows& rows) {
    const DispatcherOptions& o = dispatcher_.options();
    const std::size_t bytes =
        std::min(wire_row_bytes(rows.in_type, rows.hidden),
                 static_cast<std::size_t>(o.columns_of_results()) * dtype_bytes(rows.out_type));
    pool_.parallel_for(static_cast<std::int64_t>(rows.counts.size()),
                       1,
                       [&](std::int64_t begin, std::int64_t end, int) {
                         for (std::int64_t slot = begin; slot < end; ++slot) {
                           const auto s = static_cast<std::size_t>(slot);
                           for (std::int64_t i = 0; i < rows.counts[s]; ++i) {
                             const std::int64_t row = rows.offsets[s] + i;
                             std::memcpy(rows.out.row(row), rows.in.row(row), bytes);
                           }
                         }
                       });
  }

  Transport& transport_;
  ThreadPool& pool_;
  Dispatcher dispatcher_;
  std::size_t row_bytes_;
  Buffer rows_, sums_;
  std::vector<SlotId> slots_;  // [max_tokens, K]
  std::vector<float> weights_;
};

TrialTimes try_out(const Candidate& candidate,
                   const DispatcherOptions& shape,
                   Transport& transport,
                   ThreadPool& pool) {
  DispatcherOptions options = shape;
  options.exchange = exchange_of(candidate.counted);
  if (shape.exchange.fixed_format) {
    options.exchange.format = shape.exchange.format;
    options.exchange.fixed_format = true;
  }
  options.max_tokens = tokens_of_trial(shape);
  Trial trial(options, transport, pool);
  TrialTimes times{.one_us = trial.time_us(1)};
  times.many_us = options.max_tokens == 1 ? times.one_us : trial.time_us(options.max_tokens);
  return times;
}

/// By what each loses at both sizes to the best of that size.
void sort_by_loss(std::vector<Candidate>& all) {
  TrialTimes best = all.front().times;
  for (const Candidate& c : all) {
    best.one_us = std::min(best.one_us, c.times.one_us);
    best.many_us = std::min(best.many_us, c.times.many_us);
  }
  const auto loss = [&](const Candidate& c) {
    return c.times.one_us / best.one_us + c.times.many_us / best.many_us;
  };
  std::ranges::stable_sort(all, {}, loss);
}

}  // namespace

BackendChoice measure_backend(MoeA2ABackend asked,
                              DeepepMode mode,
                              const BackendSituation& situation,
                              const DispatcherOptions& shape,
                              Transport& transport,
                              ThreadPool& pool) {
  std::vector<Candidate> all = candidates(asked, mode, situation);
  if (all.size() < 2) return choose_backend(asked, mode, situation);
  const FlushDenormals flush;
  for (Candidate& c : all) c.times = try_out(c, shape, transport, pool);
  sort_by_loss(all);
  const auto& [best, times] = all.front();
  const auto& [next, times_of_next] = all[1];
  const bool sums = exchange_of(best).reduce_at == ExchangeOptions::ReduceAt::rank_then_home;
  return {best.backend,
          best.mode,
          fmt::format(
              "auto chose {}: exchanges of 1 and of {} tokens a rank took {:.0f} and {:.0f} "
              "us over {}, next {} with {:.0f} and {:.0f}{}",
              best.name(),
              tokens_of_trial(shape),
              times.one_us,
              times.many_us,
              transport.name(),
              next.name(),
              times_of_next.one_us,
              times_of_next.many_us,
              sums ? "; it sums on each rank first, so name it to get the same bits again" : "")};
}

}  // namespace ferry
