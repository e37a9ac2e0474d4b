#include "ferry/c/exchange_arguments.h"

#include <string>

#include "ferry/c/status.h"
#include "ferry/choose_backend.h"
#include "ferry/exchange_stats.h"

namespace ferry::c {

FERRY_C_STRUCT(ferry_all_to_all_options, FERRY_ALL_TO_ALL_OPTIONS);

namespace {

void need_at_least(int least, int value, const char* name) {
  if (value < least) fail<ConfigError>("{} is {}; at least {} is possible", name, value, least);
}

/// What `backend` and `deepep_mode` stand for, "auto" included.
ExchangeOptions backend_of(const ferry_all_to_all_options& given,
                           const DispatcherOptions& o,
                           int ranks,
                           const Capabilities& transport) {
  const BackendChoice choice =
      choose_backend(parse_backend(text_or(given.backend, "pplx")),
                     parse_deepep_mode(text_or(given.deepep_mode, "low_latency")),
                     {.ranks = ranks,
                      .tokens = o.max_tokens,
                      .hidden = o.hidden,
                      .topk = o.topk,
                      .dispatch_wire = o.dispatch_wire,
                      .combine_wire = o.combine_wire,
                      .load_store = transport.load_store,
                      .experts_take_pointers = o.expert_type == o.dispatch_wire});
  return ferry::exchange_options(choice.backend, choice.mode);
}

}  // namespace

DispatcherOptions exchange_options(const ferry_all_to_all_options& options,
                                   int ranks,
                                   const Capabilities& transport) {
  const ferry_all_to_all_options given = read_struct(&options);
  need_at_least(1, given.hidden, "hidden");
  need_at_least(1, given.max_tokens, "max_tokens");
  need_at_least(1, given.tp, "tp");
  need_at_least(1, given.row_alignment, "row_alignment");
  need_at_least(0, given.slots_per_rank, "slots_per_rank");
  need_at_least(0, given.topk, "topk");
  DispatcherOptions o{.slots_per_rank = given.slots_per_rank,
                      .hidden = given.hidden,
                      .topk = given.topk,
                      .max_tokens = given.max_tokens,
                      .tp = given.tp,
                      .row_alignment = given.row_alignment,
                      .dispatch_wire = wire(given.dispatch_wire, "dispatch_wire"),
                      .expert_type = wire(given.expert_type, "expert_type"),
                      .combine_wire = wire(given.combine_wire, "combine_wire"),
                      .row_weights = given.row_weights != 0,
                      .timeout = duration(given.timeout_s, "timeout_s")};
  o.exchange = backend_of(given, o, ranks, transport);
  const auto format = enumerator(given.format, FERRY_ROW_POINTERS, "format");
  if (format != FERRY_FORMAT_OF_BACKEND)
    o.exchange.format = static_cast<DispatchFormat>(format - FERRY_PADDED);
  const auto dead = enumerator(given.on_dead_rank, FERRY_MASK_DEAD_RANK, "on_dead_rank");
  if (dead != FERRY_ON_DEAD_RANK_OF_BACKEND)
    o.exchange.on_dead_rank =
        static_cast<ExchangeOptions::OnDeadRank>(dead - FERRY_FAIL_ON_DEAD_RANK);
  o.exchange.hidden_partition = given.hidden_partition != 0;
  o.exchange.fixed_format = given.fixed_format != 0;
  return o;
}

void check_sizes(const DispatcherOptions& o) {
  need_at_least(1, o.slots_per_rank, "slots_per_rank");
  need_at_least(1, o.topk, "topk");
}

std::optional<std::chrono::nanoseconds> timeout_of_call(double seconds) {
  if (seconds < 0) return std::nullopt;
  return duration(seconds, "timeout_s");
}

std::size_t row_bytes(const DispatcherOptions& o, int ranks, DType type) {
  const int columns = o.exchange.hidden_partition ? o.hidden / ranks : o.hidden;
  return static_cast<std::size_t>(columns) * dtype_bytes(type);
}

void check_row_type(const DispatcherOptions& o, DType type, bool encoded) {
  if (!encoded && type == DType::f16 && is_quantized(o.dispatch_wire))
    fail<ConfigError>("{} wires take f32 or bf16 rows, not f16", wire_type_name(o.dispatch_wire));
}

ferry_expert_rows expert_rows(const ExpertRows& rows) {
  ferry_expert_rows c = FERRY_EXPERT_ROWS_INIT;
  c.place = place(rows.place);
  c.format = static_cast<std::int32_t>(rows.format) + FERRY_PADDED;
  c.num_slots = static_cast<std::int32_t>(rows.counts.size());
  c.hidden = rows.hidden;
  c.in_type = static_cast<std::int32_t>(rows.in_type);
  c.out_type = static_cast<std::int32_t>(rows.out_type);
  c.counts = rows.counts.data();
  c.offsets = rows.offsets.data();
  c.in = rows.in.base;
  c.in_stride = rows.in.stride;
  c.in_pointers = reinterpret_cast<const void* const*>(rows.in.pointers);
  c.weights = rows.weights.empty() ? nullptr : rows.weights.data();
  c.out = rows.out.base;
  c.out_stride = rows.out.stride;
  return c;
}

ferry_exchange_stats exchange_stats(const ExchangeStats& stats) {
  ferry_exchange_stats c = FERRY_EXCHANGE_STATS_INIT;
  c.exchanges = stats.exchanges;
  c.bytes_logical = stats.bytes_logical;
  c.bytes_wire = stats.bytes_wire;
  c.bytes_network = stats.bytes_network;
  return c;
}

void call_experts(ferry_experts_fn experts, void* context, const ExpertRows& rows) {
  const ferry_expert_rows c = expert_rows(rows);
  call_caller("the experts' function", [&] { return experts(context, &c); });
}

}  // namespace ferry::c
