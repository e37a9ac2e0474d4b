// The one oracle for MoE layers: dense, double precision, no dispatch, no packing, no blocking.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

namespace ferry::testing {

/// Weights as checkpoints store them: row-major [out, in].
struct ReferenceMoe {
  int hidden = 0, inter = 0, experts = 0, topk = 0, shared_inter = 0;
  bool renormalize = false;
  double limit = 0;  // > 0: gate and up become one as gpt-oss has it, with `alpha`
  double alpha = 1;
  bool weigh_rows =
      false;  // an expert reads its row times the weight; results are added up as they are
  std::vector<float> router;                                                 // [E, H]
  std::vector<std::vector<float>> gate, up;                                  // [E] of [inter, H]
  std::vector<std::vector<float>> down;                                      // [E] of [H, inter]
  std::vector<float> shared_gate_proj, shared_up, shared_down, shared_gate;  // empty: none

  static ReferenceMoe random(
      int hidden, int inter, int experts, int topk, int shared_inter, unsigned seed) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal;
    const auto matrix = [&](int rows, int columns) {
      std::vector<float> m(static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns));
      const float scale = 1.0F / std::sqrt(static_cast<float>(columns));
      for (float& x : m) x = normal(engine) * scale;
      return m;
    };
    ReferenceMoe moe{.hidden = hidden,
                     .inter = inter,
                     .experts = experts,
                     .topk = topk,
                     .shared_inter = shared_inter};
    moe.router = matrix(experts, hidden);
    for (float& x : moe.router) x *= 3;  // so that routing differs between tokens
    for (int e = 0; e < experts; ++e) {
      moe.gate.push_back(matrix(inter, hidden));
      moe.up.push_back(matrix(inter, hidden));
      moe.down.push_back(matrix(hidden, inter));
    }
    if (shared_inter > 0) {
      moe.shared_gate_proj = matrix(shared_inter, hidden);
      moe.shared_up = matrix(shared_inter, hidden);
      moe.shared_down = matrix(hidden, shared_inter);
      moe.shared_gate = matrix(1, hidden);
    }
    return moe;
  }

  static std::vector<double> times(const std::vector<float>& w, const std::vector<double>& x) {
    std::vector<double> y(w.size() / x.size());
    for (std::size_t o = 0; o < y.size(); ++o)
      for (std::size_t i = 0; i < x.size(); ++i)
        y[o] += static_cast<double>(w[o * x.size() + i]) * x[i];
    return y;
  }

  double gated(double g, double u) const {
    if (limit == 0) return g / (1 + std::exp(-g)) * u;
    g = std::min(g, limit);
    return g / (1 + std::exp(-alpha * g)) * (std::clamp(u, -limit, limit) + 1);
  }

  std::vector<double> ffn(const std::vector<float>& gate_of,
                          const std::vector<float>& up_of,
                          const std::vector<float>& down_of,
                          const std::vector<double>& x) const {
    std::vector<double> g = times(gate_of, x);
    const std::vector<double> u = times(up_of, x);
    for (std::size_t i = 0; i < g.size(); ++i) g[i] = gated(g[i], u[i]);
    return times(down_of, g);
  }

  /// One token.
  std::vector<double> forward(const float* row) const {
    const std::vector<double> x(row, row + hidden);
    std::vector<double> p = times(router, x);
    const double top = *std::max_element(p.begin(), p.end());
    double sum = 0;
    for (double& v : p) sum += v = std::exp(v - top);
    for (double& v : p) v /= sum;
    std::vector<std::size_t> order(p.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return p[a] > p[b]; });
    double chosen = 0;
    for (int k = 0; k < topk; ++k) chosen += p[order[static_cast<std::size_t>(k)]];

    std::vector<double> out(x.size());
    for (int k = 0; k < topk; ++k) {
      const std::size_t e = order[static_cast<std::size_t>(k)];
      const double weight = renormalize ? p[e] / chosen : p[e];
      std::vector<double> in = x;
      for (double& v : in) v *= weigh_rows ? weight : 1;
      const std::vector<double> y = ffn(gate[e], up[e], down[e], in);
      for (std::size_t h = 0; h < out.size(); ++h) out[h] += (weigh_rows ? 1 : weight) * y[h];
    }
    if (shared_inter > 0) {
      const double scale = 1 / (1 + std::exp(-times(shared_gate, x)[0]));
      const std::vector<double> y = ffn(shared_gate_proj, shared_up, shared_down, x);
      for (std::size_t h = 0; h < out.size(); ++h) out[h] += scale * y[h];
    }
    return out;
  }
};

}  // namespace ferry::testing
