#include "gpu_harness.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/core/threads.h"

namespace ferry::testing {

namespace {

/// Rows are brought to the host and results back.
void compute_on_host(GpuLane::Experts experts,
                     const ExpertRows& rows,
                     std::int64_t num_rows,
                     GpuQueue& queue) {
  const auto n = static_cast<std::size_t>(num_rows);
  const auto in_bytes = n * static_cast<std::size_t>(rows.in.stride);
  const auto out_bytes = n * static_cast<std::size_t>(rows.out.stride);
  const auto counts = download(queue, rows.counts.data(), rows.counts.size());
  const auto offsets = download(queue, rows.offsets.data(), rows.offsets.size());
  std::vector<std::byte> in;
  std::vector<const std::byte*>
      in_rows;  // where each of those is here, if they are told by address
  if (rows.in.pointers == nullptr) {
    in = download(queue, rows.in.base, in_bytes);
  } else {
    in.resize(in_bytes);
    in_rows.resize(n);
    const auto there = download(queue, rows.in.pointers, n);
    for (std::size_t slot = 0; slot < counts.size(); ++slot) {
      for (std::int64_t row = offsets[slot]; row < offsets[slot] + counts[slot]; ++row) {
        const auto r = static_cast<std::size_t>(row);
        in_rows[r] = in.data() + row * rows.in.stride;
        queue.copy(
            in.data() + row * rows.in.stride, there[r], static_cast<std::size_t>(rows.in.stride));
      }
    }
    queue.synchronise();
  }
  const auto weights = download(queue, rows.weights.data(), rows.weights.size());
  std::vector<std::byte> out = download<std::byte>(queue, rows.out.base, out_bytes);
  ExpertRows here = rows;
  here.place = {};
  here.counts = counts;
  here.offsets = offsets;
  here.in = {in.data(), rows.in.stride, in_rows.empty() ? nullptr : in_rows.data()};
  here.weights = weights;
  here.out = {out.data(), rows.out.stride};
  experts(here);
  queue.copy(rows.out.base, out.data(), out_bytes);
  queue.synchronise();
}

std::size_t values_of(const DispatcherOptions& o) {
  return static_cast<std::size_t>(o.max_tokens) * static_cast<std::size_t>(o.hidden);
}

std::size_t entries_of(const DispatcherOptions& o) {
  return static_cast<std::size_t>(o.max_tokens) * static_cast<std::size_t>(o.topk);
}

/// An exchange's two halves, captured, without accumulate and with it.
struct Graphs {
  explicit Graphs(GpuLane& lane, GpuQueue& queue) {
    for (const bool accumulate : {false, true}) {
      dispatch[accumulate] = queue.capture([&] {
        lane.dispatch_send();
        lane.dispatch_recv();
      });
      combine[accumulate] = queue.capture([&] {
        lane.combine_send();
        lane.combine_recv(accumulate);
      });
    }
  }

  std::unique_ptr<GpuGraph> dispatch[2], combine[2];
};

/// `graphs`: null where the phases are called.
void exchange_once(
    const ExchangeCase& exchange, Rank rank, int number, GpuLane& lane, const Graphs* graphs) {
  const bool accumulate = number % 2 == 1;
  lane.bring(exchange, accumulate);
  if (graphs != nullptr) {
    graphs->dispatch[accumulate]->launch();
  } else {
    lane.dispatch_send();
    lane.dispatch_recv();
  }
  lane.exchange().synchronise();
  FakeExperts experts(exchange, rank);
  lane.compute(experts);
  experts.finish();
  if (graphs != nullptr) {
    graphs->combine[accumulate]->launch();
  } else {
    lane.combine_send();
    lane.combine_recv(accumulate);
  }
  const std::vector<float> sums = expected_sums(exchange, rank);
  const std::vector<float> got = lane.sums(sums.size());
  for (std::size_t i = 0; i < sums.size(); ++i) {
    const float expected = accumulate ? 0.5F + sums[i] : sums[i];
    FERRY_CHECK(std::bit_cast<std::uint32_t>(got[i]) == std::bit_cast<std::uint32_t>(expected),
                "exchange {} rank {} token {} column {}: got {}, expected {}",
                number,
                rank,
                i / static_cast<std::size_t>(exchange.result_columns()),
                i % static_cast<std::size_t>(exchange.result_columns()),
                got[i],
                expected);
  }
}

}  // namespace

GpuLane::GpuLane(const DispatcherOptions& o,
                 Transport& transport,
                 GpuQueue& queue,
                 int ranks_per_host)
    : rank_(transport.rank()),
      queue_(queue),
      gpu_(o, transport, queue, ranks_per_host),
      layout_(gpu_.options(), transport.size()),
      stride_(static_cast<std::ptrdiff_t>(sizeof(float)) * o.hidden),
      result_stride_(static_cast<std::ptrdiff_t>(sizeof(float)) * layout_.result_columns),
      tokens_(queue, 1),
      rows_(queue, values_of(o)),
      input_{reinterpret_cast<std::byte*>(rows_.data()), stride_},
      slots_(queue, entries_of(o)),
      weights_(queue, entries_of(o)),
      row_weights_(queue, entries_of(o)),
      out_(queue, values_of(o)) {}

void GpuLane::bring(const ExchangeCase& exchange, bool accumulate) {
  tokens_.set({exchange.tokens(rank_)});
  const std::vector<float> rows = exchange.rows(rank_);
  queue_.copy(input_.base, rows.data(), rows.size() * sizeof(float));
  queue_.synchronise();
  slots_.set(exchange.slots(rank_));
  weights_.set(exchange.weights(rank_));
  row_weights_.set(exchange.row_weights(rank_));
  out_.set(std::vector<float>(values_of(exchange.options), accumulate ? 0.5F : -1.0F));
}

void GpuLane::dispatch_send() {
  // Of rows that lie whole: this rank's columns.
  gpu_.dispatch_send(
      {.rows = {input_.base + layout_.columns_at(rank_, input_.stride), input_.stride},
       .count = gpu_.options().max_tokens,
       .tokens = tokens_.data(),
       .slots = slots_.data(),
       .weights = weights_.data(),
       .row_weights = row_weights_.data()});
}

void GpuLane::combine_recv(bool accumulate) {
  gpu_.combine_recv({.weights = weights_.data(),
                     .rows = {reinterpret_cast<std::byte*>(out_.data()), result_stride_},
                     .accumulate = accumulate});
}

void GpuLane::compute(Experts experts) {
  compute_on_host(experts, arrived_, layout_.expert_rows, queue_);
}

std::vector<float> GpuLane::sums(std::size_t n) {
  gpu_.synchronise();
  return download<float>(queue_, out_.data(), n);
}

std::vector<RankKind> kinds_that_die() {
  std::vector<RankKind> kinds = bare_rank_kinds();
  std::erase_if(kinds,
                [](const RankKind& kind) { return !kind.killable() || kind.provider == "tcp"; });
  return kinds;
}

void expect_nothing_from(Rank rank, std::string_view phase, GpuExchange& exchange) {
  try {
    exchange.synchronise();
    ADD_FAILURE() << "no error";
  } catch (const TransportError& e) {
    EXPECT_EQ(e.peer(), rank);
    const std::string words = fmt::format("{}: nothing from rank {}", phase, rank);
    EXPECT_NE(std::string_view(e.what()).find(words), std::string_view::npos) << e.what();
  }
}

void run_gpu_exchanges(const GpuHarnessOptions& options, Transport& transport, GpuQueue& queue) {
  const FlushDenormals flush;
  GpuLane lane(options.dispatcher, transport, queue, options.ranks_per_host);
  if (options.in_place) lane.write_in_place();
  std::optional<Graphs> graphs;
  if (options.runs != GpuRuns::calls) graphs.emplace(lane, queue);
  FERRY_CHECK(transport.barrier(kNoDeadline) == WaitResult::reached, "no barrier");
  std::mt19937 draw(static_cast<std::uint32_t>(options.seed) * 64 +
                    static_cast<std::uint32_t>(transport.rank()) + 1);
  for (int n = 0; n < options.count; ++n) {
    const ExchangeCase exchange{.options = options.dispatcher,
                                .ranks = transport.size(),
                                .routing = options.routing,
                                .seed = options.seed * 1'000'003 + static_cast<std::uint64_t>(n)};
    const bool by_graph =
        options.runs == GpuRuns::graphs || (options.runs == GpuRuns::either && draw() % 2 == 0);
    // Who comes late shows who does not wait.
    if (draw() % 4 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    exchange_once(exchange, transport.rank(), n, lane, by_graph ? &*graphs : nullptr);
  }
  lane.exchange().leave();
}

}  // namespace ferry::testing
