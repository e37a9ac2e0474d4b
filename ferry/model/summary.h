// What a checkpoint holds and what a rank would load of it: the data behind `ferry inspect`.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "ferry/model/checkpoint.h"
#include "ferry/model/weights.h"

namespace ferry {

struct ModelSummary {
  std::int64_t parameters = 0;         ///< of the tensors the model uses
  std::int64_t expert_parameters = 0;  ///< of these, in routed experts
  std::int64_t active_parameters = 0;  ///< one token's share: all but the experts it does not go to
  std::int64_t parameters_per_expert = 0;

  struct TypeBytes {
    std::int64_t tensors = 0;
    std::uint64_t bytes = 0;
  };

  std::map<std::string, TypeBytes> by_type;  ///< "BF16" -> what the files hold of it
  std::uint64_t file_bytes = 0;
  std::vector<std::string> unused;  ///< tensors in the files that the model does not use
};

ModelSummary summarize(const Checkpoint& checkpoint);

/// Weights in bytes.
struct WeightBytes {
  std::uint64_t dense = 0;  ///< all but the routed experts; the same on every rank
  std::uint64_t experts = 0;

  std::uint64_t total() const { return dense + experts; }
};

/// What one rank reads, and what it then holds.
struct RankBytes {
  WeightBytes file;      ///< as they lie in the files
  WeightBytes memory;    ///< packed, without --weights
  int experts_held = 0;  ///< per sparse layer
};

/// Bytes of weights as they are held, of which a step reads each at most once.
struct HeldBytes {
  std::uint64_t dense = 0;             ///< what every step reads
  std::uint64_t looked_up = 0;         ///< of which a token reads one row
  std::vector<std::uint64_t> experts;  ///< one routed expert of each layer; 0: a dense layer
};

HeldBytes held_bytes(const Checkpoint& checkpoint, const WeightChoice& choice);

/// How matrices are held, for people: "bf16", "bf16, q4_k, q6_k".
std::string held_names(const Checkpoint& checkpoint, const WeightChoice& choice);

/// Where rows are rounded to int8 and where not, a line for people; empty unless that was asked
/// for. Throws ConfigError where it was and no matrix is held in a form that meets such rows.
std::string check_activations(const Checkpoint& checkpoint, const WeightChoice& choice);

/// For R ranks with ceil(E / R) slots each, experts in order. REQUIRES: ranks >= 1.
std::vector<RankBytes> bytes_per_rank(const Checkpoint& checkpoint, int ranks);

}  // namespace ferry
