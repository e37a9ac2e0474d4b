#include "ferry/model/draft_input.h"

#include <algorithm>

#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

constexpr std::int64_t kRowGrain = 8;  // rows a thread takes at a time

}  // namespace

DraftInput::DraftInput(const ModelConfig& config,
                       const DenseWeights& dense,
                       int max_rows,
                       TensorGroup& group,
                       const GemmScratch& gemm_scratch)
    : config_(config),
      dense_(dense),
      group_(group),
      gemm_scratch_(gemm_scratch),
      half_(config.hidden * static_cast<std::ptrdiff_t>(dtype_bytes(dense.dtype))),
      both_(static_cast<std::size_t>(2 * half_ * max_rows)) {}

void DraftInput::make(std::span<const std::int32_t> tokens,
                      std::span<const std::byte* const> hidden,
                      const MutableRowsView& out,
                      float* scratch) {
  const auto count = std::ssize(tokens);
  if (count == 0) return;
  ThreadPool& pool = group_.pool();
  const Kernels& k = kernels_of(pool);
  const auto norm = [&](const std::byte* in, const std::vector<float>& weight, std::byte* to) {
    k.rms_norm(in, dense_.dtype, weight.data(), config_.rms_eps, to, config_.hidden);
  };
  pool.parallel_for(count, kRowGrain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) {
      std::byte* embedding = both_.data() + 2 * half_ * i;
      std::byte* before = embedding + half_;
      const auto row = static_cast<std::size_t>(i);
      dense_.embedding.read(tokens[row], embedding, scratch + i * config_.hidden);
      norm(embedding, dense_.draft.embedding_norm, embedding);
      if (hidden[row] != nullptr)
        norm(hidden[row], dense_.draft.hidden_norm, before);
      else
        std::fill_n(before, half_, std::byte{0});
    }
  });
  group_.multiply(
      gemm_scratch_,
      {.in = {both_.data(), 2 * half_}, .rows = count, .out = out, .out_type = dense_.dtype},
      dense_.draft.projection.strips);
  group_.gather_columns(
      out, count, config_.hidden, dense_.dtype, {.name = "draft", .layer = config_.layers});
}

}  // namespace ferry
