#include "ferry/generator.h"

#include <algorithm>
#include <future>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string_view>
#include <thread>
#include <utility>

#include "ferry/checkpoint/hub_cache.h"
#include "ferry/core/error.h"
#include "ferry/model/kv_type.h"
#include "ferry/runtime/core_map.h"
#include "ferry/runtime/engine_front.h"
#include "ferry/runtime/generation.h"
#include "ferry/runtime/model.h"
#include "ferry/runtime/settings_members.h"
#include "ferry/text/chat.h"

namespace ferry {

namespace {

using Clock = std::chrono::steady_clock;

/// Between two looks whether a callback's call is done.
constexpr std::chrono::milliseconds kPatience{1000};
constexpr const char* kClosed = "the generator is closed";

ModelOptions model_options(const GeneratorOptions& o) {
  ModelOptions options;
  options.model = find_model(o.model);
  options.launch.ranks = o.ranks != 0 ? o.ranks : o.tp > 1 ? o.tp : default_ranks();
  check_launch(options.launch);
  options.threads = o.threads != 0 ? o.threads : default_threads(options.launch.ranks);
  if (options.threads < 1) fail<ConfigError>("{} threads of a rank; at least 1", options.threads);
  if (o.max_tokens_per_step < 1 || o.max_sequences_per_rank < 1 || o.max_waiting < 0) {
    fail<ConfigError>(
        "{} tokens a step, {} sequences, {} waiting requests: at least 1, 1 and 0 are possible",
        o.max_tokens_per_step,
        o.max_sequences_per_rank,
        o.max_waiting);
  }
  if (!(o.kv_memory_fraction > 0 && o.kv_memory_fraction <= 1))
    fail<ConfigError>("a part of {} of the memory; above 0 and up to 1 are possible",
                      o.kv_memory_fraction);
  if (!o.weights.empty()) options.weights = parse_weight_type(o.weights, "weights");
  options.mapped = parse_load(o.load, "load");
  options.activations = parse_activations(o.activations, "activations");
  options.decoder.kv_type = parse_kv_type(o.kv_type, "kv_type");
  options.numerics = parse_numerics(o.numerics, "numerics");
  options.decoder.tp = o.tp;
  options.decoder.expert_slices = o.expert_slices;
  options.decoder.experts_device = parse_experts_device(o.experts_device, "experts_device");
  options.decoder.max_tokens = o.max_tokens_per_step;
  options.decoder.backend = parse_backend(o.backend);
  options.decoder.deepep_mode = DeepepMode::automatic;
  options.choose_by = ChooseBy::measured;
  options.engine.max_sequences_per_rank = o.max_sequences_per_rank;
  options.engine.max_tokens_per_step = o.max_tokens_per_step;
  options.engine.max_context = o.max_context;
  options.engine.max_waiting = o.max_waiting;
  options.engine.drafts = {.tokens = o.draft_tokens,
                           .source = parse_draft_source("draft_method", o.draft_method),
                           .shortest_run = o.draft_ngram_min,
                           .longest_run = o.draft_ngram_max};
  check_drafts(options.engine.drafts);
  options.kv_memory_fraction = o.kv_memory_fraction;
  return options;
}

}  // namespace

class Generator::Impl {
 public:
  explicit Impl(const GeneratorOptions& options)
      : model_(Model::open(model_options(options), {.info = options.log, .warn = options.log})) {
    renderer_ = chat_renderer(model_.options().model, options.log);
    if (model_.options().numerics != Numerics::exact && options.log)
      options.log(fmt::format("numerics: {}", numerics_name(model_.options().numerics)));
    thread_ = std::thread([this] { run(); });
    try {
      running_.get_future().get();
    } catch (...) {
      thread_.join();
      throw;
    }
  }

  ~Impl() { close(); }

  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  const Model& model() const { return model_; }

  EngineFront& front() { return *front_; }

  const ChatRenderer& chat() const { return renderer_; }

  GenerationModel generation_model() const {
    return {.tokenizer = model_.tokenizer(),
            .eos_ids = model_.config().eos_ids,
            .max_context = model_.max_context()};
  }

  void close() {
    const std::lock_guard lock(closing_);
    if (!thread_.joinable()) return;
    front_->stop(kClosed);
    thread_.join();
  }

 private:
  /// The thread of rank 0; those of the others begin and end below it.
  void run() {
    bool runs = false;
    try {
      model_.run_engine([&](Engine& engine) {
        front_.emplace(engine, /*listener=*/nullptr);
        engine.open();
        runs = true;
        running_.set_value();
        try {
          engine.run([this](const TokenEvent& event) { front_->on_token(event); });
          front_->detach(kClosed);
        } catch (const std::exception& e) {
          front_->detach(std::string("the engine has failed: ") + e.what());
          throw;
        }
        return 0;
      });
    } catch (...) {
      // Once it runs, the front tells those who call.
      if (!runs) running_.set_exception(std::current_exception());
    }
  }

  const Model model_;
  ChatRenderer renderer_;             // empty: the model has no template
  std::optional<EngineFront> front_;  // made on thread_ before running_
  std::promise<void> running_;
  std::mutex closing_;
  std::thread thread_;
};

class Generator::Stream::Impl {
 public:
  Impl(std::shared_ptr<Generator::Impl> generator,
       const Prompts& prompts,
       const GenerationSettings& settings)
      : generator_(std::move(generator)),
        generation_(generator_->front(), generator_->generation_model(), prompts, settings) {}

  Generation& generation() { return generation_; }

 private:
  std::shared_ptr<Generator::Impl> generator_;  // has what the generation borrows
  Generation generation_;
};

Generator::Stream::Stream(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Generator::Stream::~Stream() = default;
Generator::Stream::Stream(Stream&&) noexcept = default;
Generator::Stream& Generator::Stream::operator=(Stream&&) noexcept = default;

std::optional<GeneratedToken> Generator::Stream::next(std::chrono::milliseconds patience) {
  Generation& generation = impl_->generation();
  const Clock::time_point deadline = Clock::now() + patience;
  while (!generation.done()) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
    std::optional<Generation::Piece> piece =
        generation.next(std::max(left, std::chrono::milliseconds(0)));
    if (piece) {
      const Choice& choice = generation.choices()[piece->choice];
      return GeneratedToken{.choice = piece->choice,
                            .id = piece->token,
                            .text = std::move(piece->text),
                            .logprobs = choice.logprobs.empty()
                                            ? std::nullopt
                                            : std::optional(choice.logprobs.back()),
                            .finish = choice.finish};
    }
    if (!generation.ready() && Clock::now() >= deadline) return std::nullopt;
  }
  return std::nullopt;
}

bool Generator::Stream::done() const { return impl_->generation().done(); }

void Generator::Stream::cancel(std::size_t choice) {
  if (choice >= choices().size())
    fail<ConfigError>("choice {} is to be cancelled; there are {}", choice, choices().size());
  impl_->generation().cancel(choice);
}

const std::vector<Choice>& Generator::Stream::choices() const {
  return impl_->generation().choices();
}

Generator::Generator(const GeneratorOptions& options) : impl_(std::make_shared<Impl>(options)) {}

Generator::~Generator() {
  if (impl_) close();
}

Generator::Generator(Generator&&) noexcept = default;

Generator& Generator::operator=(Generator&& other) noexcept {
  if (impl_ && impl_ != other.impl_) close();
  impl_ = std::move(other.impl_);
  return *this;
}

Generator::Stream Generator::start(const Prompts& prompts, const GenerationSettings& settings) {
  return Stream(std::make_unique<Stream::Impl>(impl_, prompts, settings));
}

std::vector<Choice> Generator::generate(
    const Prompts& prompts,
    const GenerationSettings& settings,
    const std::function<void(const GeneratedToken&)>& on_token) {
  Stream stream = start(prompts, settings);
  while (!stream.done()) {
    const std::optional<GeneratedToken> token = stream.next(kPatience);
    if (token && on_token) on_token(*token);
  }
  return stream.choices();
}

std::vector<std::int32_t> Generator::encode(const std::string& text) const {
  return impl_->model().need_tokenizer().encode(text);
}

std::string Generator::decode(std::span<const std::int32_t> ids) const {
  static_cast<void>(impl_->model().need_tokenizer());
  return impl_->model().text_of(ids);
}

std::vector<std::int32_t> Generator::encode_chat(const std::string& request) const {
  const nlohmann::ordered_json json = parse_object(request);
  const JsonFields fields(json);
  const nlohmann::ordered_json* tools = fields.find("tools");
  if (tools != nullptr && !tools->is_array())
    fail<ConfigError>("\"tools\" must be a list, not {}", shown_value(*tools));
  const std::string prompt = chat_prompt(fields, impl_->chat(), tools);
  if (tools != nullptr && !tools->empty() && prompt == chat_prompt(fields, impl_->chat()))
    fail<ConfigError>("the model's chat template passes over \"tools\"; leave them out");
  fields.refuse_unread();
  return impl_->model().need_tokenizer().encode(prompt, /*add_special=*/false);
}

void Generator::read_settings(const std::string& members, GenerationSettings& settings) const {
  const nlohmann::ordered_json json = parse_object(members);
  const JsonFields fields(json);
  ferry::read_settings(fields, impl_->model().tokenizer(), settings);
  fields.refuse_unread();
}

int Generator::vocab() const { return impl_->model().config().vocab; }

int Generator::max_context() const { return impl_->model().max_context(); }

void Generator::close() { impl_->close(); }

}  // namespace ferry
