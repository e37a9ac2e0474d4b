#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "ferry/runtime/model_options.h"

namespace ferry {
namespace {

using Change = std::function<void(ModelOptions&)>;

/// The names under which two agreements differ.
std::vector<std::string> differences(const Change& change) {
  ModelOptions options;
  const Agreement before = agreement_of(options);
  change(options);
  const Agreement after = agreement_of(options);
  EXPECT_EQ(before.size(), after.size());
  std::vector<std::string> names;
  for (std::size_t i = 0; i < before.size(); ++i) {
    EXPECT_EQ(before[i].first, after[i].first);
    if (before[i].second != after[i].second) names.push_back(after[i].first);
  }
  return names;
}

TEST(Agreement, EveryOptionThatRanksShareIsComparedUnderItsName) {
  const std::vector<std::pair<std::string, Change>> shared = {
      {"--tp", [](ModelOptions& o) { o.decoder.tp = 2; }},
      {"--expert-slices", [](auto& o) { o.decoder.expert_slices = 2; }},
      {"--experts-device", [](auto& o) { o.decoder.experts_device = 1; }},
      {"--moe-a2a-backend", [](auto& o) { o.decoder.backend = MoeA2ABackend::automatic; }},
      {"--deepep-mode", [](auto& o) { o.decoder.deepep_mode = DeepepMode::normal; }},
      {"--layout", [](auto& o) { o.decoder.layout = DispatchFormat::ragged; }},
      {"--choose-by", [](auto& o) { o.choose_by = ChooseBy::measured; }},
      {"--allow-prereduce", [](auto& o) { o.allow_prereduce = true; }},
      {"--two-batch-overlap", [](auto& o) { o.decoder.two_batch_overlap = true; }},
      {"--dispatch-wire", [](auto& o) { o.decoder.dispatch_wire = WireType::int8; }},
      {"--combine-wire", [](auto& o) { o.decoder.combine_wire = WireType::bf16; }},
      {"--activations", [](auto& o) { o.activations = Activations::int8; }},
      {"--kv-cache-dtype", [](auto& o) { o.decoder.kv_type = WireType::fp8; }},
      {"--max-tokens", [](auto& o) { o.decoder.max_tokens = 3; }},
      {"--eplb-replica-choice", [](auto& o) { o.decoder.replica_rule = ReplicaRule::nearest; }},
      {"--ranks-per-host", [](auto& o) { o.launch.ranks_per_host = 2; }},
      {"--max-sequences", [](auto& o) { o.engine.max_sequences_per_rank = 2; }},
      {"--max-running-requests", [](auto& o) { o.engine.max_running = 2; }},
      {"--max-total-tokens", [](auto& o) { o.engine.max_kv_tokens = 64; }},
      {"hashing of logits (--json)", [](auto& o) { o.engine.hash_logits = true; }},
      {"recording of expert load", [](auto& o) { o.engine.balance.record = true; }},
      {"--eplb-bytes-per-step", [](auto& o) { o.engine.balance.rebalance.step_bytes = 1; }},
      {"--eplb-canary", [](auto& o) { o.engine.balance.rebalance.canary = true; }},
      {"memory for keys and values is measured", [](auto& o) { o.kv_memory_fraction = 0.5; }}};
  for (const auto& [name, change] : shared)
    EXPECT_EQ(differences(change), std::vector<std::string>{name});
  EXPECT_EQ(differences([](auto& o) { o.engine.balance.rebalance.enabled = true; }),
            (std::vector<std::string>{"recording of expert load", "--enable-eplb"}));
}

TEST(Agreement, WhatEachRankMayHaveAsItLikesIsNotCompared) {
  const std::vector<Change> own = {
      [](ModelOptions& o) { o.threads = 7; },
      [](ModelOptions& o) { o.model = "elsewhere"; },
      [](ModelOptions& o) { o.decoder.timeout = std::chrono::seconds(1); },
      [](ModelOptions& o) { o.engine.timeout = std::chrono::seconds(1); },
      [](ModelOptions& o) { o.engine.warn = [](const std::string&) {}; },
      [](ModelOptions& o) { o.engine.max_waiting = 5; },
      [](ModelOptions& o) { o.engine.balance.rebalance.every = 5; },
      [](ModelOptions& o) { o.launch.fabric_progress_thread = true; },
      [](ModelOptions& o) { o.launch.start_timeout = std::chrono::seconds(1); }};
  for (std::size_t i = 0; i < own.size(); ++i)
    EXPECT_EQ(differences(own[i]), std::vector<std::string>{}) << i;
  const auto half = [](ModelOptions& o) { o.kv_memory_fraction = 0.5; };
  ModelOptions a, b;
  half(a);
  b.kv_memory_fraction = 0.25;
  EXPECT_EQ(agreement_of(a), agreement_of(b));
}

}  // namespace
}  // namespace ferry
