// The oracle's weights, packed as a rank holds them.
#pragma once

#include <random>
#include <utility>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/kernels/kernels.h"
#include "ferry/moe/moe_layer.h"
#include "support/reference_moe.h"

namespace ferry::testing {

struct OwnedPack {
  Buffer memory;
  PackedMatrix view;
};

inline OwnedPack pack(const std::vector<float>& source, int n, int k, DType dtype) {
  OwnedPack out;
  out.view = {.type = weight_type(dtype), .k = k, .n = n};
  out.memory = Buffer(static_cast<std::size_t>(out.view.panels()) * out.view.panel_bytes());
  out.view.data = out.memory.data();
  pack_matrix({.type = weight_type(dtype),
               .source = reinterpret_cast<const std::byte*>(source.data()),
               .source_type = DType::f32,
               .k = k,
               .n = n,
               .out = out.memory.data()});
  return out;
}

inline OwnedPack pack_gate_up(
    const std::vector<float>& gate, const std::vector<float>& up, int inter, int k, DType dtype) {
  OwnedPack out;
  out.view = {.type = weight_type(dtype), .k = k, .n = 2 * inter};
  out.memory = Buffer(static_cast<std::size_t>(out.view.gated_panels()) * out.view.panel_bytes());
  out.view.data = out.memory.data();
  for (const int half : {0, 1}) {
    pack_matrix({.type = weight_type(dtype),
                 .source = reinterpret_cast<const std::byte*>((half ? up : gate).data()),
                 .source_type = DType::f32,
                 .k = k,
                 .n = inter,
                 .out = out.memory.data() + static_cast<std::size_t>(half) * out.view.panel_bytes(),
                 .panel_step = 2});
  }
  return out;
}

/// Some rows of a matrix of k columns.
inline std::vector<float> rows_of_matrix(const std::vector<float>& source,
                                         const ColumnRange& rows,
                                         int k) {
  return {source.begin() + rows.begin * k, source.begin() + rows.end * k};
}

/// The weights of one rank, packed; of experts the columns of its slice.
struct RankWeights {
  RankWeights(const RankWeights&) = delete;  // weights.local points into it
  RankWeights& operator=(const RankWeights&) = delete;

  RankWeights(const ReferenceMoe& moe,
              const Placement& placement,
              Rank rank,
              DType dtype,
              const GroupMember& slice = {}) {
    const ColumnRange inter = slice.columns(moe.inter);
    const ColumnRange hidden = slice.columns(moe.hidden);
    const auto keep = [this](OwnedPack p) {
      owned.push_back(std::move(p));
      return owned.back().view;
    };
    weights.router = keep(pack(moe.router, moe.experts, moe.hidden, DType::f32));
    for (int slot = 0; slot < placement.slots_per_rank(); ++slot) {
      const ExpertId e = placement.expert_of(rank * placement.slots_per_rank() + slot);
      local.emplace_back();
      if (e < 0) continue;
      const auto i = static_cast<std::size_t>(e);
      local.back() = {keep(pack_gate_up(rows_of_matrix(moe.gate[i], inter, moe.hidden),
                                        rows_of_matrix(moe.up[i], inter, moe.hidden),
                                        static_cast<int>(inter.size()),
                                        moe.hidden,
                                        dtype)),
                      keep(pack(rows_of_matrix(moe.down[i], hidden, moe.inter),
                                static_cast<int>(hidden.size()),
                                moe.inter,
                                dtype))};
    }
    weights.local = local;
    if (moe.shared_inter > 0) {
      weights.shared = {
          keep(pack_gate_up(
              moe.shared_gate_proj, moe.shared_up, moe.shared_inter, moe.hidden, dtype)),
          keep(pack(moe.shared_down, moe.hidden, moe.shared_inter, dtype))};
      weights.shared_gate = keep(pack(moe.shared_gate, 1, moe.hidden, DType::f32));
    }
  }

  std::vector<OwnedPack> owned;
  std::vector<GatedFfnWeights> local;
  MoeWeights weights;
};

inline std::vector<float> random_rows(int tokens, int hidden, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> rows(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(hidden));
  for (float& x : rows) x = normal(engine);
  return rows;
}

}  // namespace ferry::testing
