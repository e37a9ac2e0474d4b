#include "apps/ferry/session.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <thread>
#include <utility>

#include "apps/ferry/core_map.h"
#include "apps/ferry/progress.h"
#include "ferry/core/error.h"
#include "ferry/core/memory.h"
#include "ferry/exchange/choose_backend.h"
#include "ferry/kernels/kernels.h"
#include "ferry/transport/gather_words.h"

namespace ferry {

namespace {

/// Replaces "auto" by what it stands for here.
void choose_backend_of(Session& session) {
  const RunOptions& o = session.options;
  DecoderOptions& decoder = session.options.decoder;
  const WireType own = wire_type(activation_type(session.weights.type));
  const auto transports = list_transports();
  const auto transport = std::find_if(transports.begin(), transports.end(), [&](const auto& t) {
    return t.name == o.launch.transport;
  });
  BackendSituation situation{.ranks = o.launch.ranks,
                             .tokens = static_cast<int>(ceil_div(decoder.max_tokens, decoder.tp)),
                             .hidden = session.config().hidden,
                             .topk = session.config().moe.topk,
                             .dispatch_wire = decoder.dispatch_wire.value_or(own),
                             .combine_wire = decoder.combine_wire.value_or(own),
                             .load_store = transport->load_store,
                             .allow_prereduce = o.allow_prereduce};
  situation.experts_take_pointers = situation.dispatch_wire == own;
  const BackendChoice choice = choose_backend(decoder.backend, decoder.deepep_mode, situation);
  decoder.backend = choice.backend;
  decoder.deepep_mode = choice.mode;
  if (!choice.why.empty() && !o.quiet) spdlog::info("{}", choice.why);
}

/// Cheap and good enough to tell two checkpoints apart: names and sizes of all tensors, and the
/// first bytes of some.
std::uint64_t fingerprint(const Checkpoint& checkpoint) {
  constexpr std::size_t kSamples = 256;
  constexpr std::size_t kSampleBytes = 256;
  std::uint64_t hash = 0xcbf29ce484222325U;  // FNV-1a
  const auto add = [&](std::span<const std::byte> bytes) {
    for (const std::byte b : bytes) hash = (hash ^ static_cast<std::uint64_t>(b)) * 0x100000001b3U;
  };
  for (const SafetensorsFile& file : checkpoint.files()) {
    const auto& entries = file.entries();
    const std::size_t every = std::max<std::size_t>(1, entries.size() / kSamples);
    for (std::size_t i = 0; i < entries.size(); ++i) {
      add(std::as_bytes(std::span(entries[i].name)));
      add(std::as_bytes(std::span(&entries[i].bytes, 1)));
      if (i % every != 0 || !entries[i].dtype) continue;
      add(file.view(entries[i]).span().first(std::min(entries[i].bytes, kSampleBytes)));
    }
  }
  return hash;
}

/// What ranks that were started apart must have alike, beside options.
void add_model(const Session& session, Agreement& agreement) {
  const ModelConfig& config = session.config();
  agreement.insert(agreement.end(),
                   {{"architecture", config.architecture},
                    {"experts", std::to_string(config.moe.experts)},
                    {"hidden size", std::to_string(config.hidden)},
                    {"top-k", std::to_string(config.moe.topk)},
                    {"weight type", std::string(weight_type_name(session.weights.type))},
                    {"context", std::to_string(session.max_context)},
                    {"expert location", fmt::format("{:016x}", session.experts.hash())},
                    {"model files", fmt::format("{:016x}", fingerprint(session.checkpoint))}});
}

/// Positions of keys and values that this rank has the memory for; none where that is unknown. All
/// ranks of its host have loaded their weights and share what is left.
std::optional<std::int64_t> kv_tokens_in_memory(const Session& session,
                                                const Decoder& decoder,
                                                const Transport& transport) {
  const std::optional<std::size_t> available = available_memory();
  if (!available) return std::nullopt;
  int sharing = 0;
  for (Rank r = 0; r < transport.size(); ++r)
    sharing += transport.host_of(r) == transport.host_of(transport.rank()) ? 1 : 0;
  const std::size_t bytes = decoder.state_layout().bytes_per_position();
  if (bytes == 0) return std::nullopt;  // a member of a group that has no head of any layer
  const double budget = session.options.kv_memory_fraction * static_cast<double>(*available);
  return std::max<std::int64_t>(
      kPagePositions, static_cast<std::int64_t>(budget / sharing / static_cast<double>(bytes)));
}

/// The same for the rank that has least, since all are given work alike; 0 where no rank knows.
std::int64_t least_kv_tokens(std::optional<std::int64_t> own,
                             std::chrono::nanoseconds timeout,
                             Transport& transport) {
  constexpr std::uint64_t kUnknown = UINT64_MAX;
  const std::uint64_t word = own ? static_cast<std::uint64_t>(*own) : kUnknown;
  const std::vector<std::uint64_t> all =
      gather_words({&word, 1}, "memory for keys and values", timeout, transport);
  const std::uint64_t least = *std::min_element(all.begin(), all.end());
  return least == kUnknown ? 0 : static_cast<std::int64_t>(least);
}

}  // namespace

Session open_session(const RunOptions& options) {
  static_cast<void>(kernels());  // an unknown FERRY_ISA is wrong usage, and known before any work
  Checkpoint checkpoint = Checkpoint::open(options.model);
  ExpertPlacement experts =
      initial_placement(options.expert_location,
                        checkpoint.config(),
                        options.launch.ranks,
                        {options.engine.balance.rebalance.policy, options.decoder.replica_rule});
  Session session{.options = options,
                  .checkpoint = std::move(checkpoint),
                  .tokenizer = {},
                  .max_context = 0,
                  .weights = {},
                  .experts = std::move(experts)};
  session.max_context = resolve_context(session.config(), options.engine.max_context);
  session.weights = choose_weights(session.checkpoint, options.weights);
  if (Tokenizer::exists(options.model)) session.tokenizer = Tokenizer::load(options.model);
  choose_backend_of(session);
  add_model(session, session.options.launch.agreement);
  return session;
}

const Tokenizer& need_tokenizer(const Session& session) {
  if (!session.tokenizer) {
    fail<ModelError>(
        "{}: no such file, nor tiktoken.model; text needs one (ids do not: --input-ids)",
        (session.options.model / "tokenizer.json").string());
  }
  return *session.tokenizer;
}

void check_prompt(const Session& session, const Request& request, const std::string& origin) {
  try {
    check_request(request, session.config().vocab, session.max_context);
  } catch (const ConfigError& e) {
    fail<ConfigError>("{}: {}", origin, e.what());
  }
}

int run_ranks_with_decoder(const Session& session,
                           const std::function<int(Decoder&, Transport&)>& body) {
  const RunOptions& options = session.options;
  std::shared_ptr<const DenseWeights> dense;
  const auto load_dense = [&](const GroupMember& member) {
    ThreadPool pool(options.threads);
    Progress progress("dense weights", !options.quiet);
    dense = std::make_shared<DenseWeights>(
        load_dense_weights(session.checkpoint, session.weights, pool, progress.callback(), member));
  };
  // Loaded once, before there are ranks: threads share it, and so do forked processes, which never
  // write to it. The pool is gone before the fork. Ranks that were started apart meet first, to
  // learn early when something is wrong, and load their share alone.
  if (!options.launch.world) load_dense({});
  // Launchers have bound what they started, or were told not to.
  const std::vector<CpuList> cores = options.launch.world
                                         ? std::vector<CpuList>{}
                                         : cores_of_ranks(this_machine(), options.launch.ranks);
  return run_ranks(options.launch, [&](Transport& transport) {
    if (!cores.empty()) bind_this_thread(cores[static_cast<std::size_t>(transport.rank())]);
    const int tp = options.decoder.tp;
    if (!dense) load_dense({.member = transport.rank() % tp, .members = tp});
    const bool leads = transport.rank() == 0;
    ThreadPool pool(options.threads);
    std::optional<ExpertWeights> experts;
    {
      Progress progress("experts of rank 0", leads && !options.quiet);
      experts = load_expert_weights(session.checkpoint,
                                    session.weights,
                                    session.experts,
                                    transport.rank(),
                                    pool,
                                    progress.callback());
    }
    Decoder decoder(session.config(), dense, std::move(*experts), options.decoder, transport, pool);
    return body(decoder, transport);
  });
}

int run_ranks_with_engine(const Session& session, const std::function<int(Engine&)>& lead) {
  return run_ranks_with_decoder(session, [&](Decoder& decoder, Transport& transport) {
    EngineOptions options = session.options.engine;
    if (options.max_kv_tokens == 0 && session.options.kv_memory_fraction > 0) {
      options.max_kv_tokens = least_kv_tokens(
          kv_tokens_in_memory(session, decoder, transport), options.timeout, transport);
    }
    if (!session.options.quiet)
      options.warn = [](const std::string& line) { spdlog::warn("{}", line); };
    Engine engine(options, decoder, transport);
    if (transport.rank() == 0) return lead(engine);
    engine.run({});
    return 0;
  });
}

double rate(std::uint64_t tokens, std::chrono::nanoseconds time) {
  const double seconds = std::chrono::duration<double>(time).count();
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
}

void print_summary(const Session& session, const EngineStats& stats) {
  const RunOptions& o = session.options;
  if (o.quiet) return;
  spdlog::info(
      "prefill {} tokens, {:.1f}/s; decode {} tokens, {:.1f}/s; {} rank{} x {} thread{}{}, {}, {}, "
      "{} weights, {}",
      stats.prefill_tokens,
      rate(stats.prefill_tokens, stats.prefill_time),
      stats.decode_tokens,
      rate(stats.decode_tokens, stats.decode_time),
      o.launch.ranks,
      o.launch.ranks == 1 ? "" : "s",
      o.threads,
      o.threads == 1 ? "" : "s",
      o.decoder.tp == 1 ? "" : fmt::format(" in groups of {}", o.decoder.tp),
      o.launch.transport,
      backend_name(o.decoder.backend),
      weight_type_name(session.weights.type),
      isa_name(kernels().isa));
}

std::string text_of(const Session& session, std::span<const std::int32_t> ids) {
  if (!session.tokenizer) return {};
  StreamDecoder decoder(*session.tokenizer);
  std::string text;
  for (const std::int32_t id : ids)
    if (session.tokenizer->has_token(id)) text += decoder.put(id);
  return text + decoder.finish();
}

}  // namespace ferry
