// Which options ranks must share. A structured binding has to name every member of its struct, so
// that nobody can add an option and forget to decide about it here.
#include <string>
#include <tuple>

#include "ferry/model/kv_type.h"
#include "ferry/runtime/model_options.h"
#include "ferry/version.h"

namespace ferry {

namespace {

std::string yes_no(bool value) { return value ? "yes" : "no"; }

std::string wire_text(std::optional<WireType> wire) {
  return wire ? std::string(wire_type_name(*wire)) : std::string();
}

/// A member that each rank may have as it likes, or that matters to rank 0 alone.
template <class... Members>
void of_each_rank(const Members&... members) {
  static_cast<void>(std::tie(members...));
}

void add(const LaunchOptions& options, Agreement& agreement) {
  const auto& [transport,
               ranks,
               start_timeout,
               join_timeout,
               world,
               agreement_of_caller,
               ranks_per_host,
               fabric_provider,
               fabric_rails,
               fabric_progress_thread] = options;
  // Ranks that meet have the transport in common, are counted by it, and settle provider and rails.
  of_each_rank(transport, ranks, world, agreement_of_caller, fabric_provider, fabric_rails);
  of_each_rank(start_timeout, join_timeout, fabric_progress_thread);
  agreement.emplace_back("--ranks-per-host", std::to_string(ranks_per_host));
}

void add(const DecoderOptions& options, Agreement& agreement) {
  const auto& [tp,
               expert_slices,
               max_tokens,
               backend,
               deepep_mode,
               layout,
               two_batch_overlap,
               replica_rule,
               dispatch_wire,
               combine_wire,
               experts_device,
               kv_type,
               timeout] = options;
  of_each_rank(timeout);
  agreement.emplace_back("--tp", std::to_string(tp));
  agreement.emplace_back("--expert-slices", std::to_string(expert_slices));
  agreement.emplace_back("--moe-a2a-backend", backend_name(backend));
  agreement.emplace_back("--deepep-mode", deepep_mode_name(deepep_mode));
  agreement.emplace_back("--layout", layout ? std::string(format_name(*layout)) : std::string());
  agreement.emplace_back("--two-batch-overlap", yes_no(two_batch_overlap));
  agreement.emplace_back("--dispatch-wire", wire_text(dispatch_wire));
  agreement.emplace_back("--combine-wire", wire_text(combine_wire));
  // Devices have their own order of sums; which of them a rank has is its own affair.
  agreement.emplace_back("--experts-device", experts_device ? "cuda" : "cpu");
  agreement.emplace_back("--kv-cache-dtype",
                         kv_type ? std::string(kv_type_name(*kv_type)) : std::string());
  agreement.emplace_back("--max-tokens", std::to_string(max_tokens));
  agreement.emplace_back("--eplb-replica-choice", replica_rule_name(replica_rule));
}

void add(const RebalanceOptions& options, Agreement& agreement) {
  const auto& [enabled,
               every,
               early_below,
               policy,
               weighted,
               nodes,
               enough,
               least_gain,
               step_bytes,
               canary] = options;
  of_each_rank(every, early_below, policy, enough, least_gain);  // rank 0 plans
  of_each_rank(weighted, nodes);  // the Balancer takes them from decoder and transport
  agreement.emplace_back("--enable-eplb", yes_no(enabled));
  agreement.emplace_back("--eplb-bytes-per-step", std::to_string(step_bytes));
  agreement.emplace_back("--eplb-canary", yes_no(canary));
}

void add(const BalanceOptions& options, Agreement& agreement) {
  const auto& [record, phase, window, rebalance] = options;
  of_each_rank(record, phase, window);  // rank 0 keeps what all count
  agreement.emplace_back("recording of expert load", yes_no(options.on()));
  add(rebalance, agreement);
}

void add(const EngineOptions& options, Agreement& agreement) {
  const auto& [max_sequences_per_rank,
               max_tokens_per_step,
               max_context,
               max_running,
               max_waiting,
               max_kv_tokens,
               keep_prefixes,
               drafts,
               hash_logits,
               timeout,
               balance,
               grammars,
               warn] = options;
  // Rank 0 plans steps and takes requests; the context is settled with the model.
  // Drafts travel with its records, but a layer that makes some is one of the model's.
  of_each_rank(max_tokens_per_step, max_waiting, max_context, keep_prefixes);
  agreement.emplace_back("--speculate mtp", yes_no(drafts.by_layer()));
  of_each_rank(timeout, grammars, warn);
  agreement.emplace_back("--max-running-requests", std::to_string(max_running));
  agreement.emplace_back("--max-sequences", std::to_string(max_sequences_per_rank));
  agreement.emplace_back("--max-total-tokens", std::to_string(max_kv_tokens));
  agreement.emplace_back("hashing of logits (--json)", yes_no(hash_logits));
  add(balance, agreement);
}

}  // namespace

Agreement agreement_of(const ModelOptions& options) {
  const auto& [model,
               launch,
               threads,
               weights,
               activations,
               mapped,
               numerics,
               decoder,
               choose_by,
               allow_prereduce,
               engine,
               kv_memory_fraction,
               expert_location] = options;
  // What these make of the model is compared instead (Model::open).
  of_each_rank(model, weights, expert_location);
  of_each_rank(threads, mapped);
  Agreement agreement = {{"version", std::string(version())}};
  agreement.emplace_back("--numerics, as the machine has it", numerics_name(numerics));
  agreement.emplace_back("--activations", activations_name(activations));
  add(decoder, agreement);
  agreement.emplace_back("--choose-by", choose_by_name(choose_by));
  agreement.emplace_back("--allow-prereduce", yes_no(allow_prereduce));
  add(launch, agreement);
  add(engine, agreement);
  // Each measures its own memory, and all take the least: but all or none.
  agreement.emplace_back("memory for keys and values is measured", yes_no(kv_memory_fraction > 0));
  return agreement;
}

}  // namespace ferry
