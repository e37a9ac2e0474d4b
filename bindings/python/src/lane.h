// One all-to-all of a rank, as Python holds it: the lane, scratch for what its callers hand over in
// another form, and which exchange is in progress.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "arrays.h"
#include "comm.h"
#include "expert_rows.h"
#include "ferry/buffer.h"
#include "ferry/moe_forward.h"
#include "ferry/placement.h"
#include "settings.h"

namespace ferry::python {

class NativeExperts;

/// Tokens of this rank, as arrays that are checked. Kept by who calls.
struct TokenArrays {
  Array x;        ///< [tokens, H], plain or codes of the dispatch wire
  Array scales;   ///< of codes, else nothing
  Array ids;      ///< [tokens, K]
  Array weights;  ///< [tokens, K], or nothing: ones
  Array logits;   ///< [tokens, E] instead of ids and weights
  Framework framework = Framework::numpy;
};

/// What a call may say besides.
struct CallOptions {
  bool physical = false;
  bool accumulate = false;
  int layer = -1;
  std::optional<std::chrono::nanoseconds> timeout;
  std::shared_ptr<const Placement> placement;  ///< null: the identity
  Array selection_bias;                        ///< [E] f32, or nothing
};

/// Owned by the AllToAll and by arrays over its memory; owns its part of the comm. Threads: as the
/// comm; arrays may be dropped on any.
class Lane : public RowsOwner, public std::enable_shared_from_this<Lane> {
 public:
  Lane(std::shared_ptr<CommState> comm, const MoeAllToAll::Options& options);
  ~Lane() override;

  CommState& comm() { return *comm_; }

  MoeAllToAll& a2a() { return *a2a_; }

  const MoeAllToAll::Options& options() const { return options_; }

  const Placement& identity() const { return identity_; }

  /// Throw ConfigError for arrays of another shape or type.
  void check(const TokenArrays& tokens) const;
  void check_out(const Array& out, std::int64_t tokens) const;

  void dispatch_send(const TokenArrays& tokens,
                     const CallOptions& call,
                     const CachedRouting* routing);
  nb::object dispatch_recv();
  void combine_send();
  /// For who has them only now: weights [tokens, K] that combine_recv shall use instead of those of
  /// dispatch_send, where ids [tokens, K] name an expert.
  void set_result_weights(const Array& weights, const Array& ids);
  /// Weights are those of dispatch_send, unless others have been set.
  void combine_recv(const Array& out, bool accumulate);
  /// `experts`: a NativeExperts, or anything callable with ExpertRows.
  void forward(const TokenArrays& tokens,
               const Array& out,
               nb::handle experts,
               const CallOptions& call);

  /// Of the last call, be it an exchange in phases or a moe_forward.
  std::span<const int> lost_tokens() const;

  /// Nanoseconds of each of `count` exchanges with experts that do nothing.
  std::vector<std::int64_t> time_exchanges(const TokenArrays& tokens, const Array& out, int count);

  /// Tokens and element type of dispatch_send, for who makes the array that combine fills.
  std::int64_t tokens() const { return tokens_; }

  Element element() const { return element_; }

 private:
  struct Rows {
    RowsView rows;
    DType type = DType::f32;
    bool encoded = false;
  };

  Rows rows_of(const TokenArrays& tokens);
  MoeTokens moe_tokens(const TokenArrays& tokens, const Array& out, const CallOptions& call);
  void route(const TokenArrays& tokens, const CallOptions& call);
  std::unique_ptr<HeldRows> held(const ExpertRows& rows);

  const std::shared_ptr<CommState> comm_;
  const MoeAllToAll::Options options_;
  const Placement identity_;
  std::unique_ptr<MoeAllToAll> a2a_;
  Element element_ = Element::f32;
  std::int64_t tokens_ = 0;
  bool in_phases_ = false;           // the last call was
  Buffer encoded_;                   // rows of codes with their scales behind them
  std::vector<ExpertId> experts_;    // [max_tokens, K]
  std::vector<SlotId> slots_;        // [max_tokens, K]
  std::vector<float> weights_;       // [max_tokens, K], 0 beside an id of none
  std::vector<float> home_weights_;  // what results are multiplied with: weights_, or ones
};

/// The options of an all-to-all as AllToAll's __init__ makes them (all_to_all.py).
MoeAllToAll::Options lane_options(Settings& settings, Transport& transport);

}  // namespace ferry::python
