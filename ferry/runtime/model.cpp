#include "ferry/runtime/model.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "ferry/checkpoint/tensor_source.h"
#include "ferry/choose_backend.h"
#include "ferry/core/error.h"
#include "ferry/core/types.h"
#include "ferry/kernels/kernels.h"
#include "ferry/model/kv_type.h"
#include "ferry/model/summary.h"
#include "ferry/runtime/backend_trial.h"
#include "ferry/runtime/core_map.h"
#include "ferry/runtime/kv_memory.h"
#include "ferry/transport/registry.h"

namespace ferry {

namespace {

bool reads_peers(const std::string& transport) {
  const auto known = known_transports();
  const auto found = std::find_if(
      known.begin(), known.end(), [&](const TransportEntry& t) { return t.name == transport; });
  if (found != known.end()) return found->load_store;
  std::string names;
  for (const TransportEntry& t : known)
    names += fmt::format("{}{}", names.empty() ? "" : ", ", t.name);
  fail<ConfigError>("unknown transport \"{}\"; this build knows {}", transport, names);
}

void check_tp(int tp, int ranks) {
  if (tp >= 1 && ranks % tp == 0) return;
  fail<ConfigError>(
      "--tp {}: {} ranks do not divide into groups of that; choose a divisor of --ep", tp, ranks);
}

/// Ranks that hold slices of the same experts are one of those that a placement knows.
ExpertPlacement placement_for(const ModelOptions& options, const ModelConfig& config, int ranks) {
  return initial_placement(options.expert_location,
                           config,
                           ranks / options.decoder.expert_slices,
                           {options.engine.balance.rebalance.policy, options.decoder.replica_rule});
}

}  // namespace

void check_groups(const ModelOptions& options) {
  const int tp = options.decoder.tp;
  const int slices = options.decoder.expert_slices;
  check_tp(tp, options.launch.ranks);
  if (slices < 1 || tp % slices != 0) {
    fail<ConfigError>(
        "--expert-slices {}: --tp {} does not divide by that; choose a divisor of --tp",
        slices,
        tp);
  }
  if (slices > 1 && options.engine.balance.rebalance.enabled) {
    fail<ConfigError>(
        "--expert-slices {}: --enable-eplb moves whole experts; choose one of the two "
        "(--init-expert-location and --ep-num-redundant-experts go with both)",
        slices);
  }
}

Model Model::open(const ModelOptions& options, ModelListener listener) {
  check_groups(options);
  static_cast<void>(kernels());  // an unknown FERRY_ISA is wrong usage, and known before any work
  Model model(options,
              std::move(listener),
              Checkpoint::open(options.model, options.engine.drafts.by_layer()));
  for (const std::string& note : model.checkpoint().notes())
    if (model.listener_.warn) model.listener_.warn(note);
  if (options.mapped && model.checkpoint().source().packed() == nullptr && model.listener_.warn) {
    model.listener_.warn(fmt::format(
        "--load mapped: {} is not packed, so its weights are read; `ferry pack` packs it",
        options.model.string()));
  }
  if (Tokenizer::exists(options.model)) {
    model.tokenizer_ = std::make_unique<const Tokenizer>(Tokenizer::load(options.model));
    model.grammars_ =
        std::make_unique<Grammars>(*model.tokenizer_, model.config().vocab, model.config().eos_ids);
  }
  model.agree();
  model.choose_backend();
  check_slices(model.options().decoder, model.config());
  check_experts_device(model.options(), model.config(), model.weights_.type);
  return model;
}

Model::Model(const ModelOptions& options, ModelListener listener, Checkpoint checkpoint)
    : options_(options),
      listener_(std::move(listener)),
      checkpoint_(std::move(checkpoint)),
      max_context_(0),
      experts_(placement_for(options, checkpoint_.config(), options.launch.ranks)) {
  max_context_ = resolve_context(config(), options.engine.max_context);
  weights_ = choose_weights(checkpoint_, options.weights, options.activations);
  weights_.in_place = options.mapped;
  held_as_ = held_names(checkpoint_, weights_);
  const std::string rounded = check_activations(checkpoint_, weights_);
  if (!rounded.empty() && listener_.info) listener_.info(rounded);
  check_kv_type(options.decoder.kv_type, config());
}

WireType Model::kv_type() const {
  return options_.decoder.kv_type.value_or(wire_type(activation_type(weights_.type)));
}

/// Replaces `automatic` by what it stands for here.
void Model::choose_backend() {
  DecoderOptions& decoder = options_.decoder;
  const WireType own = wire_type(activation_type(weights_.type));
  const int slices = decoder.expert_slices;
  BackendSituation situation{
      .ranks = options_.launch.ranks / slices,
      .tokens = static_cast<int>(ceil_div(decoder.max_tokens, decoder.tp / slices)),
      .hidden = config().hidden,
      .topk = config().moe.topk,
      .dispatch_wire = decoder.dispatch_wire.value_or(own),
      .combine_wire = decoder.combine_wire.value_or(own),
      .load_store = reads_peers(options_.launch.transport),
      .allow_prereduce = options_.allow_prereduce && slices == 1};
  situation.experts_take_pointers = situation.dispatch_wire == own;
  const BackendChoice choice =
      options_.choose_by == ChooseBy::measured && config().sparse_layers() > 0
          ? try_backends(options_,
                         config(),
                         activation_type(weights_.type),
                         experts_.slots_per_rank(),
                         situation)
          : ferry::choose_backend(decoder.backend, decoder.deepep_mode, situation);
  decoder.backend = choice.backend;
  decoder.deepep_mode = choice.mode;
  if (!choice.why.empty() && listener_.info) listener_.info(choice.why);
}

/// What ranks that were started apart must have alike: options as they were given, and the model.
void Model::agree() {
  Agreement agreement = agreement_of(options_);
  const ModelConfig& c = config();
  for (auto& more :
       Agreement{{"architecture", c.architecture},
                 {"experts", std::to_string(c.moe.experts)},
                 {"hidden size", std::to_string(c.hidden)},
                 {"top-k", std::to_string(c.moe.topk)},
                 {"weight type", held_as_},
                 {"context", std::to_string(max_context_)},
                 {"expert location", fmt::format("{:016x}", experts_.hash())},
                 {"model files", fmt::format("{:016x}", fingerprint(checkpoint_.source()))}})
    agreement.push_back(std::move(more));
  Agreement& all = options_.launch.agreement;  // with what the caller has put there
  all.insert(all.end(), agreement.begin(), agreement.end());
}

const Tokenizer& Model::need_tokenizer() const {
  if (!tokenizer_) {
    fail<ModelError>(
        "{}: no such file, nor tiktoken.model; text needs one (ids do not: --input-ids)",
        (options_.model / "tokenizer.json").string());
  }
  return *tokenizer_;
}

std::string Model::text_of(std::span<const std::int32_t> ids) const {
  if (!tokenizer_) return {};
  StreamDecoder decoder(*tokenizer_);
  std::string text;
  for (const std::int32_t id : ids)
    if (tokenizer_->has_token(id)) text += decoder.put(id);
  return text + decoder.finish();
}

LoadProgress Model::loading(std::string_view what) const {
  return listener_.loading ? listener_.loading(what) : LoadProgress();
}

std::shared_ptr<const DenseWeights> Model::load_dense(const GroupMember& member,
                                                      ThreadPool& pool) const {
  return std::make_shared<const DenseWeights>(
      load_dense_weights(checkpoint_, weights_, pool, loading("dense weights"), member));
}

std::shared_ptr<const DenseWeights> Model::load_dense() const {
  ThreadPool pool(options_.threads);  // gone again before processes are forked
  return load_dense({}, pool);
}

/// Where experts move from one place to another, these are written to.
WeightChoice Model::choice_of_experts() const {
  WeightChoice choice = weights_;
  if (options_.engine.balance.rebalance.enabled) choice.in_place = false;
  return choice;
}

ExpertHolder Model::holder_of(Rank rank) const {
  const int slices = options_.decoder.expert_slices;
  return {.rank = rank / slices, .slice = {.member = rank % slices, .tp = slices}};
}

Decoder Model::decoder_on(Transport& transport,
                          ThreadPool& pool,
                          std::shared_ptr<const DenseWeights> dense) const {
  if (transport.size() != options_.launch.ranks) {
    fail<ConfigError>("the model was opened for {} ranks, the transport has {}",
                      options_.launch.ranks,
                      transport.size());
  }
  const Rank rank = transport.rank();
  const int tp = options_.decoder.tp;
  if (!dense) dense = load_dense({.member = rank % tp, .tp = tp}, pool);
  ExpertWeights experts =
      load_expert_weights(checkpoint_,
                          choice_of_experts(),
                          experts_,
                          holder_of(rank),
                          pool,
                          rank == 0 ? loading("experts of rank 0") : LoadProgress());
  return {config(), std::move(dense), std::move(experts), options_.decoder, transport, pool};
}

ExpertWeights Model::experts_of(Rank rank, int ranks, ThreadPool& pool) const {
  return load_expert_weights(checkpoint_,
                             weights_,
                             placement_for(options_, config(), ranks),
                             holder_of(rank),
                             pool,
                             loading("experts"));
}

Decoder Model::next_decoder_on(Transport& transport,
                               ThreadPool& pool,
                               ExpertWeights held,
                               std::shared_ptr<const DenseWeights> dense) const {
  const Rank rank = transport.rank();
  const int tp = options_.decoder.tp;
  check_tp(tp, transport.size());
  if (!dense) dense = load_dense({.member = rank % tp, .tp = tp}, pool);
  ExpertWeights experts = next_expert_weights(std::move(held),
                                              checkpoint_,
                                              choice_of_experts(),
                                              placement_for(options_, config(), transport.size()),
                                              holder_of(rank),
                                              pool);
  return {config(), std::move(dense), std::move(experts), options_.decoder, transport, pool};
}

Engine Model::engine_on(Decoder& decoder, Transport& transport) const {
  EngineOptions options = engine_options();
  if (options.max_kv_tokens == 0 && options_.kv_memory_fraction > 0) {
    options.max_kv_tokens = kv_tokens_in_memory(
        options_.kv_memory_fraction, decoder, mapped_bytes(), options.timeout, transport);
  }
  return {options, decoder, transport};
}

Engine Model::late_engine_on(Decoder& decoder, Transport& transport) const {
  return {engine_options(), decoder, transport};
}

std::uint64_t Model::mapped_bytes() const {
  std::uint64_t bytes = 0;
  if (!weights_.in_place || checkpoint_.source().packed() == nullptr) return bytes;
  for (const SourceFile& file : checkpoint_.source().files()) bytes += file.bytes;
  return bytes;
}

EngineOptions Model::engine_options() const {
  EngineOptions options = options_.engine;
  if (!options.warn) options.warn = listener_.warn;
  options.grammars = grammars_.get();
  return options;
}

int Model::run(const std::function<int(Decoder&, Transport&)>& body) const {
  const LaunchOptions& launch = options_.launch;
  // Loaded before there are ranks: threads share it, and so do forked processes, which never write
  // to it. Ranks that were started apart meet first, to learn early when something is wrong, and
  // load their share alone.
  const auto dense = launch.world ? nullptr : load_dense();
  return run_bound_ranks(launch, [&](Transport& transport) {
    ThreadPool pool(options_.threads, &kernels(options_.numerics));
    Decoder decoder = decoder_on(transport, pool, dense);
    return body(decoder, transport);
  });
}

int Model::run_engine(const std::function<int(Engine&)>& lead) const {
  return run([&](Decoder& decoder, Transport& transport) {
    Engine engine = engine_on(decoder, transport);
    if (transport.rank() == 0) return lead(engine);
    engine.run({});
    return 0;
  });
}

}  // namespace ferry
