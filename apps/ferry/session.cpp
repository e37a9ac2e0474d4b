#include "apps/ferry/session.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <thread>
#include <utility>

#include "apps/ferry/progress.h"
#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

Session open_session(const RunOptions& options) {
  static_cast<void>(kernels());  // an unknown FERRY_ISA is wrong usage, and known before any work
  Session session{.options = options,
                  .checkpoint = Checkpoint::open(options.model),
                  .tokenizer = {},
                  .max_context = 0,
                  .weights = DType::f32};
  session.max_context = resolve_context(session.config(), options.engine.max_context);
  session.weights = weight_dtype(session.checkpoint, options.weights);
  if (std::filesystem::exists(options.model / "tokenizer.json"))
    session.tokenizer = Tokenizer::load(options.model);
  return session;
}

const Tokenizer& need_tokenizer(const Session& session) {
  if (!session.tokenizer) {
    fail<ModelError>("{}: no such file; text needs it (ids do not: see --input-ids)",
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
  // Loaded once, before there are ranks: threads share it, and so do forked processes, which never
  // write to it. The pool is gone before the fork.
  std::shared_ptr<const DenseWeights> dense;
  {
    ThreadPool pool(options.threads);
    Progress progress("dense weights", !options.quiet);
    dense = std::make_shared<DenseWeights>(
        load_dense_weights(session.checkpoint, session.weights, pool, progress.callback()));
  }
  return run_ranks(options.launch, [&](Transport& transport) {
    const bool leads = transport.rank() == 0;
    ThreadPool pool(options.threads);
    std::optional<ExpertWeights> experts;
    {
      Progress progress("experts of rank 0", leads && !options.quiet);
      experts = load_expert_weights(session.checkpoint,
                                    session.weights,
                                    transport.rank(),
                                    transport.size(),
                                    pool,
                                    progress.callback());
    }
    Decoder decoder(session.config(), dense, std::move(*experts), options.decoder, transport, pool);
    return body(decoder, transport);
  });
}

int run_ranks_with_engine(const Session& session, const std::function<int(Engine&)>& lead) {
  return run_ranks_with_decoder(session, [&](Decoder& decoder, Transport& transport) {
    Engine engine(session.options.engine, decoder, transport);
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
      "prefill {} tokens, {:.1f}/s; decode {} tokens, {:.1f}/s; {} rank{} x {} thread{}, {}, {}, "
      "{} weights, {}",
      stats.prefill_tokens,
      rate(stats.prefill_tokens, stats.prefill_time),
      stats.decode_tokens,
      rate(stats.decode_tokens, stats.decode_time),
      o.launch.ranks,
      o.launch.ranks == 1 ? "" : "s",
      o.threads,
      o.threads == 1 ? "" : "s",
      o.launch.transport,
      backend_name(o.decoder.backend),
      dtype_name(session.weights),
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
