// How made-up tokens choose their experts: distinct ones, each with a chance in proportion to how
// popular it is among those that are left.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ferry/core/types.h"

namespace ferry {

/// One layer's. Threads: read only, but for draws, which each need a Stream.
class Popularity {
 public:
  /// weights: [E] finite and not negative. Where all are 0 all are alike.
  explicit Popularity(std::span<const double> weights);

  /// All experts alike.
  static Popularity uniform(int experts);

  /// The n-th of them 1 / n^exponent; which is the n-th, the seed says.
  static Popularity zipf(int experts, double exponent, std::uint64_t seed);

  int experts() const { return static_cast<int>(weights_.size()); }

  /// Numbers that are the same on every machine for the same seed.
  class Stream {
   public:
    explicit Stream(std::uint64_t seed) : state_(seed) {}

    std::uint64_t next();

    /// In [0, 1).
    double part() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }

   private:
    std::uint64_t state_;
  };

  /// Fills [tokens, topk]. REQUIRES: topk <= experts().
  void draw(Stream& stream, int topk, std::span<ExpertId> chosen) const;

 private:
  ExpertId draw_one(Stream& stream) const;
  ExpertId draw_left(Stream& stream, std::span<const ExpertId> taken) const;

  std::vector<double> weights_;
  // Walker's alias table: expert e keeps a draw of its cell with chance keeps_[e].
  std::vector<double> keeps_;
  std::vector<ExpertId> alias_;
};

}  // namespace ferry
