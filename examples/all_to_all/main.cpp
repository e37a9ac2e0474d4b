// Tokens of every rank to the ranks that hold their experts and back, around experts of our own.
// Ranks are threads here; with another transport the same code runs on processes.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <vector>

#include "ferry/launch.h"
#include "ferry/moe_forward.h"

namespace {

constexpr int kHidden = 64;
constexpr int kExperts = 8;
constexpr int kTopk = 2;

/// Our kernel: every expert doubles its rows. A real one multiplies with the weights of each slot.
int double_rows(const ferry::ExpertRows& work) {
  int rows = 0;
  for (std::size_t slot = 0; slot < work.counts.size(); ++slot) {
    for (int i = 0; i < work.counts[slot]; ++i, ++rows) {
      const auto* in = reinterpret_cast<const float*>(work.in.row(work.offsets[slot] + i));
      auto* out = reinterpret_cast<float*>(work.out.row(work.offsets[slot] + i));
      for (int h = 0; h < work.hidden; ++h) out[h] = 2 * in[h];
    }
  }
  return rows;
}

/// One rank; returns its exit status.
int run_rank(ferry::Transport& transport) {
  ferry::ThreadPool pool(1);
  ferry::MoeAllToAll a2a({.router = {.experts = kExperts, .topk = kTopk, .renormalize = true},
                          .exchange = ferry::exchange_options(ferry::MoeA2ABackend::pplx),
                          .hidden = kHidden,
                          .max_tokens = 32},
                         transport,
                         pool);

  // Ranks need not have equally many tokens. The routing is made up: logits of a sine.
  const int tokens = 10 * (transport.rank() + 1);
  std::vector<float> hidden(static_cast<std::size_t>(tokens * kHidden), 0.5F);
  std::vector<float> logits(static_cast<std::size_t>(tokens * kExperts));
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = std::sin(static_cast<float>(i * i));
  std::vector<float> out(hidden.size());

  int rows = 0;
  moe_forward(
      a2a,
      {.hidden = {reinterpret_cast<const std::byte*>(hidden.data()), kHidden * sizeof(float)},
       .tokens = tokens,
       .out = {reinterpret_cast<std::byte*>(out.data()), kHidden * sizeof(float)}},
      {.rows = {reinterpret_cast<const std::byte*>(logits.data()), kExperts * sizeof(float)}},
      [&](const ferry::ExpertRows& work) { rows += double_rows(work); });

  // The weights of a token add up to 1, so it comes back doubled.
  bool doubled = true;
  for (const float x : out) doubled = doubled && std::abs(x - 1) < 1e-6F;
  std::printf("rank %d: sent %d tokens, its experts got %d rows, %s\n",
              transport.rank(),
              tokens,
              rows,
              doubled ? "all tokens came back doubled" : "WRONG RESULTS");
  return doubled ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const int ranks = argc > 1 ? std::atoi(argv[1]) : 4;
    return ferry::run_ranks({.transport = "inproc", .ranks = ranks}, run_rank);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "all_to_all: %s\n", e.what());
    return 1;
  }
}
