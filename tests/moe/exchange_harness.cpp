#include "exchange_harness.h"

#include <cmath>
#include <cstring>
#include <random>

#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"

namespace ferry::testing {

namespace {

/// An engine that depends on the exchange and one of its ranks alone.
std::mt19937 engine_of(const ExchangeCase& exchange, Rank rank, int what) {
  std::seed_seq seeds{exchange.seed & 0xFFFFFFFFU,
                      exchange.seed >> 32,
                      static_cast<std::uint64_t>(rank),
                      static_cast<std::uint64_t>(what)};
  return std::mt19937(seeds);
}

float round_to(DType wire, float x) {
  if (wire == DType::f32) return x;
  std::uint16_t bits = 0;
  float back = 0;
  kernels().convert(reinterpret_cast<const std::byte*>(&x),
                    DType::f32,
                    reinterpret_cast<std::byte*>(&bits),
                    DType::bf16,
                    1);
  kernels().convert(reinterpret_cast<const std::byte*>(&bits),
                    DType::bf16,
                    reinterpret_cast<std::byte*>(&back),
                    DType::f32,
                    1);
  return back;
}

float fake_expert(SlotId slot, float x) { return static_cast<float>(slot + 2) * x + 1; }

}  // namespace

int ExchangeCase::tokens(Rank rank) const {
  auto engine = engine_of(*this, rank, 0);
  const auto kind = engine() % 4;
  if (kind == 0) return 0;
  if (kind == 1) return max_tokens;
  return static_cast<int>(engine() % static_cast<unsigned>(max_tokens + 1));
}

std::vector<SlotId> ExchangeCase::slots(Rank rank) const {
  auto engine = engine_of(*this, rank, 1);
  const auto num_slots = static_cast<unsigned>(ranks * slots_per_rank);
  const auto k = static_cast<unsigned>(topk);
  std::vector<SlotId> all(static_cast<std::size_t>(tokens(rank)) * k);
  for (std::size_t i = 0; i < all.size(); ++i) {
    all[i] = static_cast<SlotId>(engine() % num_slots);
    if (routing == Routing::one_expert) all[i] = static_cast<SlotId>(num_slots - 1);
    if (routing == Routing::masked && engine() % 3 == 0) all[i] = -1;
    if (routing == Routing::duplicates && i % k != 0 && engine() % 2 == 0) all[i] = all[i - 1];
  }
  return all;
}

std::vector<float> ExchangeCase::weights(Rank rank) const {
  auto engine = engine_of(*this, rank, 2);
  std::vector<float> all(static_cast<std::size_t>(tokens(rank)) * static_cast<std::size_t>(topk));
  for (float& w : all) w = static_cast<float>(engine() % 1000) / 997.0F;
  return all;
}

std::vector<float> ExchangeCase::rows(Rank rank) const {
  auto engine = engine_of(*this, rank, 3);
  const auto width = static_cast<std::size_t>(hidden);
  std::vector<float> all(static_cast<std::size_t>(tokens(rank)) * width);
  for (std::size_t t = 0; t * width < all.size(); ++t) {
    int sum = 0;
    for (std::size_t h = 0; h < width; ++h) {
      int value = static_cast<int>(engine() % 128);
      if (h == 0) value = rank;
      if (h == 1) value = static_cast<int>(t % 128);
      if (h + 1 == width) value = sum % 128;
      sum += value;
      all[t * width + h] = static_cast<float>(value);
    }
  }
  return all;
}

void run_fake_experts(const ExchangeCase& exchange, Rank rank, const ExpertRows& rows) {
  const auto width = static_cast<std::size_t>(exchange.hidden);
  std::vector<float> in(width);
  for (std::size_t slot = 0; slot < rows.counts.size(); ++slot) {
    const auto global =
        static_cast<SlotId>(rank * exchange.slots_per_rank + static_cast<int>(slot));
    for (std::int64_t i = 0; i < rows.counts[slot]; ++i) {
      const std::int64_t row = rows.offsets[slot] + i;
      kernels().convert(rows.in.row(row),
                        rows.in_type,
                        reinterpret_cast<std::byte*>(in.data()),
                        DType::f32,
                        exchange.hidden);
      int sum = 0;
      for (std::size_t h = 0; h + 1 < width; ++h) sum += static_cast<int>(in[h]);
      FERRY_CHECK(static_cast<int>(in[width - 1]) == sum % 128,
                  "rank {} slot {} row {}: torn or misplaced (says rank {}, token {})",
                  rank,
                  slot,
                  i,
                  in[0],
                  in[1]);
      for (float& x : in) x = fake_expert(global, x);
      kernels().convert(reinterpret_cast<const std::byte*>(in.data()),
                        DType::f32,
                        rows.out.row(row),
                        rows.out_type,
                        exchange.hidden);
    }
  }
}

std::vector<float> expected_sums(const ExchangeCase& exchange,
                                 Rank rank,
                                 ExchangeOptions::ReduceAt reduce_at,
                                 DType wire) {
  const std::vector<float> rows = exchange.rows(rank);
  const std::vector<SlotId> slots = exchange.slots(rank);
  const std::vector<float> weights = exchange.weights(rank);
  const auto width = static_cast<std::size_t>(exchange.hidden);
  const auto topk = static_cast<std::size_t>(exchange.topk);
  std::vector<float> out(rows.size());
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::size_t first = i / width * topk;
    const auto term = [&](std::size_t k, float sum) {
      return std::fmaf(
          weights[first + k], round_to(wire, fake_expert(slots[first + k], rows[i])), sum);
    };
    float sum = 0;
    if (reduce_at == ExchangeOptions::ReduceAt::home) {
      for (std::size_t k = 0; k < topk; ++k)
        if (slots[first + k] >= 0) sum = term(k, sum);
    } else {
      for (Rank peer = 0; peer < exchange.ranks; ++peer) {
        float part = 0;
        bool any = false;
        for (std::size_t k = 0; k < topk; ++k) {
          if (slots[first + k] < 0 || slots[first + k] / exchange.slots_per_rank != peer) continue;
          part = term(k, part);
          any = true;
        }
        if (any) sum = std::fmaf(1.0F, round_to(wire, part), sum);
      }
    }
    out[i] = sum;
  }
  return out;
}

void run_exchanges(const HarnessOptions& options, Transport& transport, ThreadPool& pool) {
  const DispatcherOptions& d = options.dispatcher;
  Dispatcher dispatcher(d, transport, pool);
  ExchangeCase exchange{.ranks = transport.size(),
                        .slots_per_rank = d.slots_per_rank,
                        .hidden = d.hidden,
                        .topk = d.topk,
                        .max_tokens = d.max_tokens,
                        .routing = options.routing};
  for (int n = 0; n < options.count; ++n) {
    exchange.seed = options.seed * 1'000'003 + static_cast<std::uint64_t>(n);
    const Rank rank = transport.rank();
    const int tokens = exchange.tokens(rank);
    const std::vector<float> rows = exchange.rows(rank);
    const std::vector<SlotId> slots = exchange.slots(rank);
    const std::vector<float> weights = exchange.weights(rank);
    const auto stride = static_cast<std::ptrdiff_t>(sizeof(float)) * d.hidden;
    dispatcher.dispatch_send({.rows = {reinterpret_cast<const std::byte*>(rows.data()), stride},
                              .type = DType::f32,
                              .tokens = tokens,
                              .slots = slots,
                              .weights = weights,
                              .layer = n});
    if (n % 3 == 1) {
      while (!dispatcher.poll()) std::this_thread::yield();
    }
    run_fake_experts(exchange, rank, dispatcher.dispatch_recv());
    dispatcher.combine_send();

    const bool accumulate = n % 2 == 1;
    std::vector<float> out(rows.size(), accumulate ? 0.5F : -1.0F);
    dispatcher.combine_recv({.weights = weights,
                             .rows = {reinterpret_cast<std::byte*>(out.data()), stride},
                             .accumulate = accumulate});
    const std::vector<float> sums =
        expected_sums(exchange, rank, d.exchange.reduce_at, d.combine_wire);
    for (std::size_t i = 0; i < out.size(); ++i) {
      const float expected = accumulate ? 0.5F + sums[i] : sums[i];
      FERRY_CHECK(std::memcmp(&out[i], &expected, sizeof expected) == 0,
                  "exchange {} rank {} token {} element {}: got {}, expected {}",
                  n,
                  rank,
                  i / static_cast<std::size_t>(d.hidden),
                  i % static_cast<std::size_t>(d.hidden),
                  out[i],
                  expected);
    }
  }
}

}  // namespace ferry::testing
