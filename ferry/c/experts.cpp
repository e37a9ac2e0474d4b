// Our experts on packed weights.
#include "ferry/c/experts.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/c/arguments.h"
#include "ferry/c/status.h"
#include "ferry/kernels/packed_matrix.h"
#include "ferry/moe/experts.h"

namespace ferry::c {

FERRY_C_STRUCT(ferry_experts_options, FERRY_EXPERTS_OPTIONS);
FERRY_C_STRUCT(ferry_expert_weights, FERRY_EXPERT_WEIGHTS);
FERRY_C_STRUCT(ferry_expert_rows, FERRY_EXPERT_ROWS);

namespace {

constexpr int kMostThreads = 4096;
constexpr int kMostColumns = 1 << 24;

/// One expert, packed.
struct Slot {
  Buffer gate_up, down;
  std::vector<float> gate_up_bias, down_bias;
};

ferry_experts_options checked(const ferry_experts_options& o) {
  place(o.place, "ferry_experts_options");
  if (o.slots < 1 || o.hidden < 1 || o.inter < 1 || o.max_rows < 1 || o.hidden > kMostColumns ||
      o.inter > kMostColumns || o.slots > kMostColumns) {
    fail<ConfigError>("{} slots, hidden {}, inter {}, max_rows {}: at least 1 each, at most {}",
                      o.slots,
                      o.hidden,
                      o.inter,
                      o.max_rows,
                      kMostColumns);
  }
  if (o.threads < 1 || o.threads > kMostThreads)
    fail<ConfigError>("{} threads; 1 to {} are possible", o.threads, kMostThreads);
  enumerator(o.weights, WeightType::mxfp4, "weights");
  enumerator(o.gating, Gating::Kind::clamped, "gating");
  return o;
}

class PackedExperts {
 public:
  explicit PackedExperts(const ferry_experts_options& o)
      : hidden_(o.hidden),
        inter_(o.inter),
        type_(static_cast<WeightType>(o.weights)),
        pool_(o.threads),
        experts_({.hidden = o.hidden,
                  .inter = o.inter,
                  .gating = {.kind = static_cast<Gating::Kind>(o.gating),
                             .alpha = o.alpha,
                             .limit = o.limit},
                  .dtype = activation_type(type_),
                  .max_rows = o.max_rows,
                  .row_weights = o.row_weights != 0},
                 pool_),
        row_weights_(o.row_weights != 0),
        slots_(static_cast<std::size_t>(o.slots)),
        views_(static_cast<std::size_t>(o.slots)) {}

  void set(std::int32_t slot, const ferry_expert_weights& w);
  void run(const ferry_expert_rows& rows);

  /// Runs a call. Throws OutOfOrder while another one runs.
  template <class Body>
  void call(Body&& body) {
    if (in_call_.exchange(true, std::memory_order_acquire))
      fail<OutOfOrder>("another call on these experts has not returned");
    try {
      body();
    } catch (...) {
      in_call_.store(false, std::memory_order_release);
      throw;
    }
    in_call_.store(false, std::memory_order_release);
  }

 private:
  std::size_t panel_bytes(std::int64_t k) const {
    return PackedMatrix::packed_panel_bytes(type_, k);
  }

  void pack(const void* source,
            DType dtype,
            std::int64_t n,
            std::int64_t k,
            std::byte* out,
            std::int64_t panel_step) const;
  void set_biases(const ferry_expert_weights& w, Slot& slot) const;
  void check(const ferry_expert_rows& rows) const;

  const std::int64_t hidden_, inter_;
  const WeightType type_;
  ThreadPool pool_;
  Experts experts_;
  const bool row_weights_;
  std::vector<Slot> slots_;
  std::vector<GatedFfnWeights> views_;  // of the slots; no data where nothing was set
  std::atomic<bool> in_call_{false};
};

/// Packs [n, k]; what is quantised, in one pass over the matrix before.
void PackedExperts::pack(const void* source,
                         DType dtype,
                         std::int64_t n,
                         std::int64_t k,
                         std::byte* out,
                         std::int64_t panel_step) const {
  const auto* plain = static_cast<const std::byte*>(source);
  PackArgs args{.type = type_,
                .source = plain,
                .source_type = dtype,
                .k = k,
                .n = n,
                .out = out,
                .panel_step = panel_step};
  QuantizedMatrix quantized;
  if (is_quantized(type_)) {
    const FlushDenormals flush;
    quantized = quantize_matrix(type_, plain, dtype, n, k);
    args.source = quantized.codes.data();
    args.scales = quantized.scales.data();
    args.scale_rows = rows_per_scale(type_);
  }
  pack_matrix(args);
}

/// Gate's and up's alternate by panels, as their columns do.
void PackedExperts::set_biases(const ferry_expert_weights& w, Slot& slot) const {
  const auto columns = static_cast<std::size_t>(ceil_div(inter_, kPanelColumns) * kPanelColumns);
  slot.gate_up_bias.assign(2 * columns, 0.0F);
  for (std::int64_t c = 0; c < inter_; ++c) {
    float* at =
        slot.gate_up_bias.data() + 2 * (c / kPanelColumns) * kPanelColumns + c % kPanelColumns;
    at[0] = w.gate_bias[c];
    at[kPanelColumns] = w.up_bias[c];
  }
  slot.down_bias.assign(static_cast<std::size_t>(ceil_div(hidden_, kPanelColumns) * kPanelColumns),
                        0.0F);
  std::copy_n(w.down_bias, hidden_, slot.down_bias.begin());
}

void PackedExperts::set(std::int32_t number, const ferry_expert_weights& w) {
  if (number < 0 || number >= static_cast<std::int32_t>(slots_.size()))
    fail<ConfigError>("slot {}; 0 to {} are possible", number, slots_.size() - 1);
  place(w.place, "ferry_expert_weights");
  const DType dtype = c::dtype(w.type, "type");
  need(w.gate, "gate");
  need(w.up, "up");
  need(w.down, "down");
  const bool biased = w.gate_bias != nullptr;
  if (biased != (w.up_bias != nullptr) || biased != (w.down_bias != nullptr))
    fail<ConfigError>("one or two biases of an expert; give all three or none");
  const std::int64_t inter_panels = ceil_div(inter_, kPanelColumns);
  Slot slot{
      Buffer(panel_bytes(hidden_) * static_cast<std::size_t>(2 * inter_panels)),
      Buffer(panel_bytes(inter_) * static_cast<std::size_t>(ceil_div(hidden_, kPanelColumns))),
      {},
      {}};
  pack(w.gate, dtype, inter_, hidden_, slot.gate_up.data(), 2);
  pack(w.up, dtype, inter_, hidden_, slot.gate_up.data() + panel_bytes(hidden_), 2);
  pack(w.down, dtype, hidden_, inter_, slot.down.data(), 1);
  if (biased) set_biases(w, slot);
  const auto i = static_cast<std::size_t>(number);
  slots_[i] = std::move(slot);
  Slot& own = slots_[i];
  views_[i] = {
      .gate_up = {.type = type_, .k = hidden_, .n = 2 * inter_, .data = own.gate_up.data()},
      .down = {.type = type_, .k = inter_, .n = hidden_, .data = own.down.data()},
      .biased = biased,
      .gate_up_bias = biased ? own.gate_up_bias.data() : nullptr,
      .down_bias = biased ? own.down_bias.data() : nullptr};
}

void PackedExperts::check(const ferry_expert_rows& r) const {
  place(r.place, "ferry_expert_rows");
  const WireType in = wire_type(activation_type(type_));
  if (r.hidden != hidden_ || wire(r.in_type, "in_type") != in) {
    fail<ConfigError>("rows of {} x {}; experts of {} weights take {} x {}",
                      wire_type_name(wire(r.in_type, "in_type")),
                      r.hidden,
                      weight_type_name(type_),
                      wire_type_name(in),
                      hidden_);
  }
  if (dtype(r.out_type, "out_type") == DType::f16)
    fail<ConfigError>("out_type is f16; experts write f32 or bf16");
  if (r.num_slots != static_cast<std::int32_t>(slots_.size()))
    fail<ConfigError>("rows for {} slots; there are {}", r.num_slots, slots_.size());
  if ((r.weights != nullptr) != row_weights_)
    fail<ConfigError>("rows {} weights, experts that want {}",
                      r.weights != nullptr ? "with" : "without",
                      row_weights_ ? "them" : "none");
  const auto counts = array(r.counts, r.num_slots, "counts");
  array(r.offsets, r.num_slots, "offsets");
  for (std::size_t s = 0; s < counts.size(); ++s) {
    if (counts[s] < 0) fail<ConfigError>("slot {} has {} rows", s, counts[s]);
    if (counts[s] == 0) continue;
    if (views_[s].down.data == nullptr)
      fail<ConfigError>(
          "{} rows for slot {}, which has no weights (ferry_experts_set)", counts[s], s);
    if ((r.in == nullptr && r.in_pointers == nullptr) || r.out == nullptr)
      fail<ConfigError>("{} rows for slot {}, and in or out is NULL", counts[s], s);
  }
}

void PackedExperts::run(const ferry_expert_rows& r) {
  check(r);
  const auto num_slots = static_cast<std::size_t>(r.num_slots);
  std::int64_t last = 0;
  for (std::size_t s = 0; s < num_slots; ++s) last = std::max(last, r.offsets[s] + r.counts[s]);
  const FlushDenormals flush;
  experts_.run({.counts = {r.counts, num_slots},
                .offsets = {r.offsets, num_slots},
                .in = {static_cast<const std::byte*>(r.in),
                       static_cast<std::ptrdiff_t>(r.in_stride),
                       reinterpret_cast<const std::byte* const*>(r.in_pointers)},
                .in_type = static_cast<WireType>(r.in_type),
                .weights = {r.weights, r.weights != nullptr ? static_cast<std::size_t>(last) : 0},
                .out = {static_cast<std::byte*>(r.out), static_cast<std::ptrdiff_t>(r.out_stride)},
                .out_type = static_cast<DType>(r.out_type),
                .hidden = r.hidden},
               views_);
}

PackedExperts& of(void* handle) {
  return *static_cast<PackedExperts*>(need(handle, "the experts"));
}

}  // namespace

}  // namespace ferry::c

using namespace ferry::c;  // NOLINT(google-build-using-namespace)

ferry_status ferry_experts_create(const ferry_experts_options* options, ferry_experts** out) {
  return guarded([&] {
    *need(out, "out") = nullptr;
    auto experts = std::make_unique<PackedExperts>(checked(read_struct(options)));
    *out = reinterpret_cast<ferry_experts*>(experts.release());
  });
}

ferry_status ferry_experts_destroy(ferry_experts* experts) {
  return guarded([&] {
    if (experts == nullptr) return;
    of(experts).call([] {});
    delete &of(experts);
  });
}

ferry_status ferry_experts_set(ferry_experts* experts,
                               int32_t slot,
                               const ferry_expert_weights* weights) {
  return guarded([&] {
    PackedExperts& e = of(experts);
    e.call([&] { e.set(slot, read_struct(weights)); });
  });
}

ferry_status ferry_experts_run(void* experts, const ferry_expert_rows* rows) {
  return guarded([&] {
    PackedExperts& e = of(experts);
    e.call([&] { e.run(read_struct(rows)); });
  });
}
